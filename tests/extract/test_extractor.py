"""The extractor: open and neutral at first, hard when asked, blind across pages."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2erag.extract import CLOSED, LAYOUT_FEATURES, Extraction, Extractor, ExtractorConfig, layout_features, network
from e2erag.extract.document import Box, Cell, Document, Page, Unit
from e2erag.testing import tiny_document

CONFIG = ExtractorConfig(text_dim=8, hidden=16)


def inputs(lines: int, pages: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    page = torch.arange(lines) * pages // lines
    return torch.randn(lines, len(LAYOUT_FEATURES)), torch.randn(lines, 8), page


def trained() -> Extractor:
    """An extractor whose heads say something."""
    extractor = Extractor(CONFIG)
    for head in (extractor.gates, extractor.scores):
        torch.nn.init.normal_(head.weight)
    return extractor.eval()


def test_it_starts_open_and_neutral() -> None:
    """At step 0 every keep gate is hard-open and every span has the same prior, whatever the line."""
    out = Extractor(CONFIG)(*inputs(10))
    assert (Extractor(CONFIG).log_gates(out.retrieve, "hard") == 0).all()
    assert (Extractor(CONFIG).log_gates(out.read, "hard") == 0).all()
    spans = torch.tensor([[0, 2, 0], [0, 5, 1], [7, 10, 2]])
    assert (Extractor(CONFIG).log_prior(out, spans).abs() < 1e-6).all()


def test_the_prior_is_edges_plus_inside_plus_mean_score() -> None:
    """Lines 1 and 2 of four: cut before 1 (c = .6) and before 3 (.3), not between them (.2), mean score 2.5."""
    c0 = torch.sigmoid(torch.tensor(CONFIG.cut_logit))
    cut, span = torch.tensor([0.5, 0.6, 0.2, 0.3]).logit(), torch.tensor([9.0, 1.0, 4.0, 9.0])
    zero = torch.zeros(4)
    rows = torch.tensor([0.0, 2.0, 1.0, 0.0])
    extractor, out = Extractor(CONFIG), Extraction(zero, zero, zero, cut, span, rows, -rows)
    edges = torch.log(0.6 / c0) + torch.log(0.3 / c0)
    expected = edges + torch.log(0.8 / (1 - c0)) + 2.5
    prior = extractor.log_prior(out, torch.tensor([[1, 3, 0], [1, 3, 1], [1, 3, 2]]))
    torch.testing.assert_close(prior, torch.stack([expected, expected + 1.5, expected - 1.5]))
    torch.testing.assert_close(extractor.log_prior(out, torch.tensor([[3, 4, 0]]))[0], torch.log(0.3 / c0) + 9)


def test_hard_gates_are_one_or_shut() -> None:
    """A logit over the threshold gives log w = 0, one under it `CLOSED`."""
    extractor = Extractor(CONFIG)
    assert extractor.log_gates(torch.tensor([-1.0, 2.0]), "hard").tolist() == [CLOSED, 0.0]


def test_what_may_travel_is_left_behind_only_where_it_is_clear() -> None:
    """Keep gates at a half, the carry gate at a fifth; of a straight-through sample too, and by what is configured."""
    logits = torch.tensor([-2.0, -1.0, 0.5])
    keeps, carries = [CLOSED, CLOSED, 0.0], [CLOSED, 0.0, 0.0]
    said = Extraction(logits, logits, logits, *[torch.zeros(3)] * 4)
    assert [gates.tolist() for gates in Extractor(CONFIG).all_log_gates(said, "hard")] == [keeps, keeps, carries]
    strict = Extractor(replace(CONFIG, carry_threshold=0.7, straight_through=True))
    assert strict.all_log_gates(said, "hard")[2].tolist() == [CLOSED] * 3
    far = Extraction(*[1000 * (logits + 0.5)] * 7)  # that no noise moves over a threshold
    assert [gates.tolist() for gates in strict.all_log_gates(far, "sample")] == [keeps] * 3
    soft = Extractor(CONFIG).all_log_gates(said, "soft")
    assert torch.equal(soft[0], soft[2])


def test_exploring_turns_lines_down_while_learning_and_not_afterwards() -> None:
    """By up to four nats, each line for itself, the same for a seed; the slope in log w passes unchanged."""
    extractor, log_w = Extractor(CONFIG), torch.zeros(2000, requires_grad=True)
    with extractor.learning(explore=4.0):
        one, other = (extractor.explored(log_w, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one, other)
        assert -4 <= one.min() < -3.9
        assert -0.1 < one.max() <= 0
        assert one.mean().item() == pytest.approx(-2, abs=0.15)
        one.sum().backward()
        assert (log_w.grad == 1).all()
    assert torch.equal(extractor.explored(log_w, None), log_w)
    with extractor.learning():
        assert torch.equal(extractor.explored(log_w, None), log_w)


def test_soft_gates_are_a_sigmoid_stretched_to_one_where_gates_start() -> None:
    """w = σ(logit / T) / σ(open / T), at most 1, exactly 1 at the opening logit; colder is closer to hard."""
    start = CONFIG.open_logit
    logits, extractor = torch.tensor([-1.0, start - 0.5, start, start + 3]), Extractor(CONFIG)
    for temperature in (1.0, 0.5):
        extractor.temperature.fill_(temperature)
        gates = extractor.log_gates(logits, "soft")
        expected = torch.sigmoid(logits / temperature) / torch.sigmoid(torch.tensor(start / temperature))
        torch.testing.assert_close(gates[:2].exp(), expected[:2])
        assert gates[2:].tolist() == [0.0, 0.0]


def test_an_open_gate_keeps_its_slope() -> None:
    """The value stops at one and the slope does not: a line can close again, and more than open counts as open."""
    logits = torch.tensor([0.0, 2.0, 4.0], requires_grad=True)
    gates = Extractor(CONFIG).log_gates(logits, "soft")
    gates.sum().backward()
    assert (gates <= 0).all()
    assert gates[1:].tolist() == [0.0, 0.0]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.sigmoid(-logits.detach()))


def test_while_it_learns_what_lines_have_in_common_moves_only_the_bias() -> None:
    """In training, features have mean 0 over all lines: heads' weights part the lines and leave their mean logit, but
    for lines at a page's edge, which have one neighbour."""
    extractor, seen = trained().train(), inputs(400)
    out = extractor(*seen)
    starts = extractor.gates.bias.detach()
    assert (out.carry.mean() - starts[2]).abs() < 0.05 * out.carry.std()
    assert out.carry.std() > 0.1
    extractor.eval()  # with the figures of the last step
    torch.testing.assert_close(extractor(*seen).carry, out.carry, atol=1e-2, rtol=1e-2)


def test_a_single_line_is_judged_while_learning_too() -> None:
    """It has no spread to be normalised by, and has seen its page all the same."""
    extractor, seen = trained(), inputs(1, pages=1)
    expected = extractor(*seen)  # figures of no step yet: mean 0, spread 1
    with extractor.learning():
        torch.testing.assert_close(torch.stack(extractor(*seen)), torch.stack(expected), atol=2e-2, rtol=2e-2)
    assert not extractor.training


def test_sampled_gates_are_open_as_often_as_their_sigmoid_says() -> None:
    """Binary concrete: P(σ((logit + noise) / T) > ½) = σ(logit) at every temperature."""
    extractor = Extractor(CONFIG)
    extractor.temperature.fill_(0.3)
    gates = extractor.log_gates(torch.full((20_000,), 1.0), "sample", torch.Generator().manual_seed(0))
    half = 0.5 / torch.sigmoid(torch.tensor(CONFIG.open_logit / 0.3))
    share = (gates.exp() > half).float().mean().item()
    assert share == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)


def test_what_is_worth_reading_is_worth_finding() -> None:
    """A slope on the reading gates alone moves the retrieval gates too: the keep gates have a common part."""
    extractor, seen = Extractor(CONFIG), inputs(6)
    before = extractor(*seen)
    before.read.sum().backward()
    with torch.no_grad():
        for p in extractor.gates.parameters():
            p.sub_(p.grad, alpha=0.1)
    after = extractor(*seen)
    assert (after.retrieve < before.retrieve).all()
    assert (after.carry == before.carry).all()


def test_straight_through_is_hard_forward_and_has_a_slope() -> None:
    """Values are 0 or `CLOSED`, and yet the logit gets a gradient."""
    extractor = Extractor(ExtractorConfig(text_dim=8, straight_through=True))
    logits = torch.zeros(50, requires_grad=True)
    gates = extractor.log_gates(logits, "sample", torch.Generator().manual_seed(0))
    gates.sum().backward()
    assert set(gates.detach().round().tolist()) == {0.0, CLOSED}
    assert logits.grad is not None
    assert (logits.grad != 0).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_per_page": 0}, "max_per_page must be at least 1, got 0"),
        ({"layers": -1}, "layers must be at least 0, got -1"),
        ({"threshold": 2.0}, r"threshold is what σ\(logit\) has to exceed: give one in \[0, 1\], got 2.0"),
        ({"cut_threshold": float("nan")}, r"cut_threshold .* got nan"),
        ({"open_logit": -1.0}, "open_logit must be positive, so that gates start open, got -1.0: raise it"),
        ({"cut_logit": float("inf")}, "cut_logit must be finite, got inf"),
        ({"kinds": ("blok",)}, "no kind of candidates 'blok': did you mean 'block'"),
        ({"kinds": ("xyz",)}, "no kind of candidates 'xyz': there are block, section, page, table"),
        ({"kinds": "block"}, r"kinds is a tuple of names, got the one name 'block': give \('block',\)"),
        ({"sizes": ()}, r"window lengths of at least one line, got \(\): give one or more, as in \(4, 8\)"),
        ({"sizes": (4, 0)}, r"window lengths of at least one line, got \(4, 0\)"),
        ({"sizes": 4}, "window lengths of at least one line, got 4"),
    ],
)
def test_what_no_extractor_can_be_made_of_is_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    """Not on the first document, which may come an hour later; what is right at the edge is taken."""
    with pytest.raises(ValueError, match=said):
        ExtractorConfig.__post_init__(SimpleNamespace(**{**asdict(ExtractorConfig()), **wrong}))  # as without beartype
    edge = {"layers": 0, "identity_lines": 0, "threshold": 0.0, "cut_threshold": 1.0, "kinds": (), "max_per_page": 1}
    assert ExtractorConfig(**edge) == ExtractorConfig.from_json({**edge, "kinds": []})


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_straight_through_opens_what_hard_mode_keeps(threshold: float) -> None:
    """The same noise added by hand, and the line drawn where `threshold` says, at every temperature."""
    extractor = Extractor(ExtractorConfig(text_dim=8, straight_through=True, threshold=threshold))
    logits = torch.linspace(-4, 4, 400)
    noise = torch.logit(torch.rand(400, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6))
    for temperature in (1.0, 0.3):
        extractor.temperature.fill_(temperature)
        gates = extractor.log_gates(logits, "sample", torch.Generator().manual_seed(1))
        torch.testing.assert_close(gates, extractor.log_gates(logits + noise, "hard"))


def test_no_line_sees_across_a_page() -> None:
    """What stands on page 2 changes nothing on page 1, nor the cut score at the page's edge."""
    extractor = trained()
    layout, text, page = inputs(8)
    other = text.clone()
    other[4:] = torch.randn(4, 8)
    for here, there in zip(extractor(layout, text, page), extractor(layout, other, page), strict=True):
        torch.testing.assert_close(here[:4], there[:4])
    assert extractor(layout, text, page).cut[[0, 4]].tolist() == [CONFIG.cut_logit] * 2


def test_pages_computed_together_are_pages_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the padding and the order of pages; a page over the limit is seen in pieces."""
    extractor = trained().double()
    sizes = [3, 40, 1, 17]
    layout, text, _ = (x.double() for x in inputs(sum(sizes)))
    page = torch.repeat_interleave(torch.tensor([7, 9, 2, 4]), torch.tensor(sizes))
    monkeypatch.setattr(network, "BUDGET", 30)
    together = torch.stack(extractor(layout, text, page))
    for piece in torch.arange(sum(sizes)).split(sizes):
        torch.testing.assert_close(torch.stack(extractor(layout[piece], text[piece], page[piece])), together[:, piece])
    monkeypatch.setattr(network, "PIECE", 20)
    pieces = torch.stack(extractor(layout, text, page))
    torch.testing.assert_close(pieces[:, :3], together[:, :3])
    alone = torch.stack(extractor(layout[3:23], text[3:23], page[3:23]))
    torch.testing.assert_close(pieces[:, 3:22], alone[:, :-1])  # the last has a neighbour in the next piece


def test_a_line_is_judged_by_its_whole_page() -> None:
    """Attention: the last line of a page changes what is said of the first."""
    extractor = trained()
    layout, text, page = inputs(12, pages=1)
    other = text.clone()
    other[11] = torch.randn(8)
    assert not torch.allclose(extractor(layout, text, page).read[0], extractor(layout, other, page).read[0], atol=1e-6)


def test_the_fixed_chunker_opens_every_gate_and_prefers_nothing() -> None:
    """The baseline has the same interface, nothing to learn, and no opinion."""
    extractor = Extractor.fixed(100, 20, text_dim=8)
    out = extractor(*inputs(6))
    for mode in ("soft", "sample", "hard"):
        assert (extractor.log_gates(out.read, mode) == 0).all()
    assert (extractor.log_prior(out, torch.tensor([[0, 2, 0], [1, 6, 0]])) == 0).all()
    assert not [p for p in extractor.parameters() if p.requires_grad]


@given(n=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_it_has_something_to_say_of_every_line(n: int, seed: int) -> None:
    """One finite row of each output per line, one line or many."""
    torch.manual_seed(seed)
    out = trained()(*inputs(n))
    assert all(x.shape == (n,) and torch.isfinite(x).all() for x in out)


def test_layout_features_tell_a_running_header_from_text() -> None:
    """A line that repeats with another number on each page has the higher `repeats`, and stands at the top."""
    table = layout_features(
        tiny_document([["page 1 of 3", "the pilot"], ["page 2 of 3", "seats"], ["page 3 of 3", "x"]])
    )
    repeats = table[:, LAYOUT_FEATURES.index("repeats")]
    assert repeats[0] > repeats[1] == 0
    assert np.isfinite(table).all()
    assert np.abs(table).max() <= 2


@pytest.mark.parametrize("box", [Box(5e6, 9e6, 6e6, 9.1e6), Box(-5e6, -9e6, -4e6, -8e6), Box(0, 0, 5e6, 12)])
def test_a_line_off_its_page_has_features_like_any(box: Box) -> None:
    """What features are normalised by is common to a corpus."""
    page = Page(1, 600.0, 800.0, (Unit("a", 1, 1, box, 12.0), Unit("b", 1, 2, Box(60, 80, 160, 92), 12.0)))
    table = layout_features(Document("a.pdf", "0", (page,)))
    assert table.min() >= -1
    assert table.max() <= 2


def test_layout_features_say_how_a_line_is_set() -> None:
    """Every column but those of running heads, of two lines that differ in each, by hand."""
    cells = (Cell(0, 7, 60, 160), Cell(8, 16, 200, 260))
    lines = (
        Unit("Heading:", 1, 1, Box(60, 80, 160, 104), 24.0, True, heading=1),
        Unit("body 12 goes on-", 1, 2, Box(60, 120, 260, 132), 12.0, cells=cells, confidence=0.5),
        Unit("here and ends.", 1, 3, Box(90, 150, 290, 162), 12.0),
    )
    page = Page(1, 600.0, 800.0, lines, (Box(50, 106, 300, 107),))
    columns = dict(zip(LAYOUT_FEATURES, layout_features(Document("a.pdf", "0", (page,))).T.tolist(), strict=True))
    expected = {
        "left": [0.1, 0.1, 0.15], "top": [0.1, 0.15, 0.1875], "width": [1 / 6, 1 / 3, 1 / 3],
        "relative size": [1.0, 0.5, 0.5], "bold": [1, 0, 0], "digits": [0, 2 / 16, 0], "capitals": [1 / 8, 0, 0],
        "length": [0.08, 0.16, 0.14], "cells": [0.25, 0.5, 0.25], "full stop": [0, 0, 1], "colon": [1, 0, 0],
        "gap above": [80 / 48, 16 / 24, 18 / 24], "gap below": [16 / 48, 18 / 24, 2.0], "aligned": [0, 1, 0],
        "ruled": [1, 0, 0], "heading": [1, 0, 0], "confidence": [1, 0.5, 1], "first page": [1, 1, 1],
        "page": [1, 1, 1], "line": [0.02, 0.04, 0.06], "hyphen": [0, 1, 0], "lower case": [0, 1, 1],
    }  # fmt: skip
    for name, values in expected.items():
        assert columns[name] == pytest.approx(values, abs=1e-6), name
    assert set(LAYOUT_FEATURES) - set(expected) == {"repeats", "page top", "page bottom"}


def test_called_with_a_document_it_proposes_passages() -> None:
    """The short form of `propose`, beside the module's own call."""
    document = tiny_document([["the pilot", "seats 4", "engine"]])
    assert Extractor(CONFIG)(document) == Extractor(CONFIG).propose(document)


@pytest.mark.parametrize("given", ["x.pdf", Path("x.pdf"), [tiny_document([["the pilot"]])]])
def test_what_is_not_read_yet_is_told_how(given: object) -> None:
    """A path, and several documents at once: the error says to read, and what it takes."""
    with pytest.raises(TypeError, match=r"takes a document that was read, got .*: read the file first"):
        Extractor(CONFIG)(given)


def test_a_document_alone_is_judged_by_its_layout() -> None:
    """As with text features of nothing, by hard gates and the figures of the last step; the extractor stays as it was.
    Untrained heads would keep all."""
    extractor = trained().train()
    torch.nn.init.zeros_(extractor.gates.bias)
    document = tiny_document([["Page 1 of 2", "the pilot", "Seats 4"], ["Page 2 of 2", "engine", "9"]])
    said = extractor.judge(document)
    assert extractor.training
    assert extractor.norm.running_mean.abs().max() == 0  # no step was taken
    pages = torch.tensor([1, 1, 1, 2, 2, 2])
    expected = extractor.eval()(torch.from_numpy(layout_features(document)), torch.zeros(6, 8), pages)
    torch.testing.assert_close(torch.stack(said), torch.stack(expected))
    kept = said.retrieve > 0
    assert 0 < kept.sum() < 6
    passages = extractor(document)
    assert {i for z in passages for i in range(z.start, z.stop)} >= set(kept.nonzero()[:, 0].tolist())
    assert all(kept[z.start : z.stop].any() for z in passages)
    assert extractor(tiny_document([[]])) == []


def test_a_line_sees_the_layout_of_its_two_neighbours_and_of_no_other_page() -> None:
    """By hand for lines of two pages; and through the gates of an extractor without attention among lines."""
    features = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    seen = network.with_neighbours(features, torch.tensor([0, 0, 0, 1]))
    assert seen.tolist() == [[1, 0, 2], [2, 1, 3], [3, 2, 0], [4, 0, 0]]
    extractor = Extractor(ExtractorConfig(text_dim=8, hidden=16, layers=0)).eval()
    torch.nn.init.normal_(extractor.gates.weight)
    layout, text, page = inputs(8)  # two pages of four
    other = layout.clone()
    other[3] += 1.0
    moved = (extractor(layout, text, page).read - extractor(other, text, page).read).abs() > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [2, 3]
