"""The extractor in a run: which gates learn, how cold, and what is left of them afterwards."""

import warnings

import numpy as np
import pytest
import torch
from helpers import quick, weights

from e2erag import RAG
from e2erag.corpus import Corpus
from e2erag.extract import CLOSED, ExtractorConfig, GateMode
from e2erag.joint import Terms
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig


def test_keep_gates_stay_open_where_they_are_frozen(rag: RAG) -> None:
    """Spans and cuts learn beside them, and no line is turned down."""
    gates, scores = weights(rag, "extractor.gates"), weights(rag, "extractor.scores")
    quick(rag, freeze=("extractor.gates",))
    assert all(torch.equal(a, b) for a, b in zip(gates, weights(rag, "extractor.gates"), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(scores, weights(rag, "extractor.scores"), strict=True))
    found = rag.model.gates(rag.corpus, "hard")
    assert (found.read == 0).all()  # log w
    assert (found.retrieve == 0).all()


def test_gates_grow_colder_over_a_run(rag: RAG) -> None:
    """The gates' temperature stays for half of the run and falls towards the second value from there."""
    quick(rag, epochs=4, gate_temperature=(1.0, 0.2))  # eight steps, of which the last is at 7/8
    assert rag.model.extractor.temperature.item() == pytest.approx(1.0 - 0.8 * 0.75)


@pytest.mark.parametrize("straight_through", [False, True])
def test_gates_learn_from_answers_through_either_estimator(
    straight_through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise on gates, soft or hard going forward: slopes of answers alone move them in every step, colder from the
    second half on. Straight through, lines are read whole or not at all while learning, as they are afterwards."""
    rag = tiny_rag(
        extractor=ExtractorConfig(
            text_dim=32, hidden=16, sizes=(2, 4), identity_lines=1, straight_through=straight_through
        )
    )
    rag.index([tiny_document([["the pilot was 85", "seats 4", "page 1"], ["engine continental", "page 2"]])])
    terms, read, warmth = rag.terms, [], []

    def noted(*given: object, **named: object) -> Terms:
        out = terms(*given, **named)
        read.append(out.gates.read.detach())
        warmth.append(float(rag.model.extractor.temperature))
        return out

    monkeypatch.setattr(rag, "terms", noted)
    before = [p.detach().clone() for p in rag.model.extractor.gates.parameters()]
    run = quick(
        rag, epochs=4, gates="sample", gate_weight=0.0, token_price=0.0, lr_extractor=0.3, gate_clip=0.0,
        freeze=("retriever", "generator"),
    )  # fmt: skip
    assert all(row["gradient_extractor"] > 0 for row in run.history)
    for parameter, old in zip(rag.model.extractor.gates.parameters(), before, strict=True):
        assert (parameter[:2] != old[:2]).any()
    assert warmth[:4] == [1.0] * 4
    assert warmth[4:] == sorted(warmth[4:], reverse=True)
    assert warmth[-1] < 0.6
    whole = torch.cat(read)
    between = (whole < 0) & (whole > CLOSED)
    assert bool(between.any()) == (not straight_through)
    assert (whole.round() == CLOSED).any() or not straight_through
    # As it answers: what the threshold says of the logits, without noise.
    gates = rag.model.gates(rag.corpus, "hard")
    assert rag.config.mode == "hard"
    assert torch.equal(gates.read[: len(rag.corpus)] == 0, gates.extraction.read > 0)
    kept = gates.retrieve[: len(rag.corpus)] == 0
    assert all(kept[z.start : z.stop].any() for z in rag.corpus.passages)


def test_a_run_leaves_the_extractor_as_it_is_used(rag: RAG) -> None:
    """In training its features are normalised over all lines; afterwards one document doesn't depend on another."""
    quick(rag, epochs=2)
    assert not rag.model.extractor.training
    assert rag.model.extractor.norm.running_mean.any()
    fresh = tiny_rag()
    fresh.index(rag.corpus.documents)
    quick(fresh, freeze=("extractor",))
    assert not fresh.model.extractor.norm.running_mean.any()


def test_a_token_price_closes_reading_gates(rag: RAG) -> None:
    """At a price no line is worth, what is read falls; without one it doesn't fall as far."""
    kept = []
    for price in (0.0, 50.0):
        system = tiny_rag()
        system.index(rag.corpus.documents)
        run = quick(system, epochs=6, token_price=price, gate_weight=0.0, freeze=("retriever", "generator"))
        kept.append(run.history[-1]["tokens_kept"])
    assert kept[1] < kept[0] - 0.01


@pytest.mark.parametrize(("gates", "told"), [("soft", 1), ("sample", 0)])
def test_straight_through_gates_that_are_not_drawn_are_warned_of(gates: GateMode, told: int) -> None:
    """Soft ones have no hard value to go forward with."""
    config = ExtractorConfig(text_dim=32, hidden=16, sizes=(2, 4), straight_through=True)
    rag = tiny_rag(extractor=config)
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(rag, gates=gates)
    assert sum("straight_through is of gates that are drawn" in str(each.message) for each in caught) == told


def test_with_hard_gates_the_others_learn_on_what_an_index_holds(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that are shut are in no row that is encoded or read, passages are those of hard mode, and the extractor
    stays as it was."""
    judge, documents = rag.model.extractor.forward, rag.corpus.documents
    shut = torch.tensor(["seats" in text for document in documents for text in document.texts])

    def forward(*given: torch.Tensor) -> object:
        out = judge(*given)
        return out._replace(**{name: torch.where(shut, -9.0, 9.0) for name in ("retrieve", "read", "carry")})

    monkeypatch.setattr(rag.model.extractor, "forward", forward)
    rag.refresh()
    spans, encode, rows, seen = rag.corpus.spans.spans, rag.model.retriever.encode_passages, rag.model.rows, []
    monkeypatch.setattr(
        rag.model.retriever,
        "encode_passages",
        lambda lines, texts, *gates: (seen.extend(texts), encode(lines, texts, *gates))[1],
    )

    def noted(corpus: Corpus, *given: object, **named: object) -> object:
        assert torch.equal(corpus.spans.spans, spans)
        made, slots = rows(corpus, *given, **named)
        assert slots == [None] * len(made)
        words = [rag.model.generator.text(row.ids[: row.prompt]) for row in made]
        read.extend(word.split("Question")[0] for word in words)
        return made, slots

    read: list[str] = []
    monkeypatch.setattr(rag.model, "rows", noted)
    before = weights(rag, "extractor"), weights(rag, "retriever")
    run = quick(rag, gates="hard", freeze=("extractor",), refresh_every=1)
    assert run.steps > 1
    assert seen
    assert not shut[torch.from_numpy(np.concatenate(seen))].any()
    assert any("pilot" in words for words in read)
    assert not any("seats" in words for words in read)
    assert all(row["gradient_retriever"] > 0 and "gradient_extractor" not in row for row in run.history)
    for stage, old in zip(("extractor", "retriever"), before, strict=True):
        same = [torch.equal(a, b) for a, b in zip(old, weights(rag, stage), strict=True)]
        assert all(same) == (stage == "extractor")


def test_hard_gates_that_should_learn_are_refused() -> None:
    """Or whose passages should stay while others are encoded."""
    with pytest.raises(ValueError, match=r'hard gates have no slope: set freeze=\("extractor",\)'):
        FitConfig(gates="hard", freeze=("extractor.gates",))
    for changes in ({"refresh_share": 0.5}, {"refresh_background": True}):
        with pytest.raises(ValueError, match="with hard gates a refresh proposes passages anew"):
            FitConfig(gates="hard", freeze=("extractor",), **changes)


def test_a_negative_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="gate_clip is a norm, at least 0"):
        FitConfig(gate_clip=-1.0)
    with pytest.raises(ValueError, match="gate_explore is in nats, at least 0"):
        FitConfig(gate_explore=-1.0)
