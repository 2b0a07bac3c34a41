"""The audit's own arithmetic: what it calls exact is exact, and what it calls an objective's gradient is that."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
import gradient_audit
import objectives
from gradient_audit import (
    AHEAD,
    KS,
    MINED_TOO,
    REACH,
    STOCHASTIC,
    Cost,
    Errors,
    Reading,
    Step,
    audit,
    compare,
    costs,
    costs_ahead,
    drawn,
    learnt,
    likeliest_answers,
    reach,
    run,
    summary,
    synthetic,
    tails,
    text,
)
from reading_table import Size, Table

from e2erag.questions import Question
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import OBJECTIVES, Options


def test_marginal_is_exact_where_every_passage_is_read() -> None:
    """K = N = 30: cosine 1, error 0; `rag_sequence` is it too, and `rb`."""
    errors = audit(synthetic(30, 6), 0.1, 30)
    for name in ("marginal", "rag_sequence", "rb"):
        assert errors[name].cosine.tolist() == pytest.approx([1.0] * 6)
        assert errors[name].relative.tolist() == pytest.approx([0.0] * 6, abs=1e-6)


def test_a_slope_in_the_question_is_the_one_through_every_score() -> None:
    """Against autograd of the objective with its prior left in the graph, K = 4 of 30."""
    step = Step(synthetic(30, 6), 0.1, 4)
    names = ("marginal", "lsr", "contrastive")
    for name in names:
        e = step.evidence
        prior = (step.q @ step.rows.T).log_softmax(1).gather(1, e.ids)
        loss = OBJECTIVES[name](type(e)(**{**vars(e), "prior_logp": prior}), Options()).sum()
        expected = torch.autograd.grad(loss, step.q)[0]
        torch.testing.assert_close(step.slope(OBJECTIVES[name](e, Options())), expected)


def test_a_mined_passage_is_the_best_by_bm25_of_those_not_read() -> None:
    """Behind the best by score; the retriever has that one last."""
    table, last = synthetic(30, 6), torch.arange(6)
    scores = torch.rand(6, 30, generator=torch.Generator().manual_seed(0)).scatter(1, last[:, None], -1.0)
    sparse = torch.nn.functional.one_hot(last, 30).float()
    table = table._replace(questions=scores, passages=torch.eye(30), gold=last, sparse=sparse)
    plain, mined = Step(table, 1.0, 4), Step(table, 1.0, 3, mined=1)
    assert mined.evidence.ids[:, :3].equal(plain.evidence.ids[:, :3])
    assert mined.evidence.ids[:, 3].equal(last)
    assert not (plain.evidence.ids == last[:, None]).any()
    every = Step(table, 1.0, 29, mined=1)
    torch.testing.assert_close(every.slope(OBJECTIVES["marginal"](every.evidence, Options())), every.exact)


def test_the_unread_passages_own_mean_is_the_best_guess() -> None:
    """Of all guesses with which the tail is one term it leaves the smallest error; draws have a variance."""
    table = synthetic(200, 24)
    found = tails(table, 0.1, 4)
    figures = {
        name: summary([errors], [reach(table, 0.05, 4)], Cost(1.0, 1.0))["in_reach"] for name, errors in found.items()
    }
    best = figures["the unread passages' own mean (not to be had)"]["relative_error_mean"]
    assert all(
        best <= row["relative_error_mean"]
        for name, row in figures.items()
        if not {"sampled", "mined", "+"} & {*name.split()}
    )
    assert figures["1 sampled"]["variance"] > figures["4 sampled"]["variance"] > 0


def test_a_run_has_what_is_named_for_it_and_is_put_into_words() -> None:
    """Every objective but `reader`, by reach, pooled and by setting; where no question is in reach there is a dash."""
    names = [name for name in OBJECTIVES if name != "reader"]
    costs = {k: dict.fromkeys(names, Cost(float(k), 2.0)) for k in KS}
    table = synthetic(400, 24)
    far = table._replace(gold=(table.questions @ table.passages.T).argmin(1))
    figures = run({"real": table, "synthetic": far}, costs)
    assert sorted(figures) == sorted(names)
    for name, rows in figures.items():
        assert {"cosine", "relative_error", "cosine_mean", "relative_error_mean", "time_ratio"} <= rows[
            "in_reach"
        ].keys()
        assert rows["in_reach"]["time_ratio"] == 8
        assert (rows["in_reach"]["variance"] > 0) == (name in STOCHASTIC)
        assert rows["explained"]["questions"] <= rows["in_reach"]["questions"]
        assert [s["k"] for s in rows["settings"]] == [4, 8, 16] * 4
        assert all("in_reach" not in s for s in rows["settings"] if s["corpus"] == "synthetic")
    said = text(figures)
    assert all(said.count(f"| `{name}` |") == 2 * 3 + 3 for name in names)  # pooled and of each τ; and by reach
    assert all(f"τ = {temperature} alone" in said for temperature in ("0.05", "0.1"))
    marginal = figures["marginal"]
    each = [marginal["temperatures"][temperature]["in_reach"] for temperature in ("0.05", "0.1")]
    counts = [part["questions"] for part in each]
    assert sum(counts) == marginal["in_reach"]["questions"]
    mean = sum(part["cosine_mean"] * n for part, n in zip(each, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(marginal["in_reach"]["cosine_mean"])
    assert "real, τ = 0.05, K = 4 (" in said


def test_the_figures_of_a_reach_are_medians_and_means_of_its_questions() -> None:
    """By hand: five questions in reach, two of them explained, one near."""
    values = torch.tensor([1.0, 0.9, 0.8, 0.1, 0.2, -0.5])
    near = torch.arange(6) == 5
    where = {"in_reach": ~near, "near": near, "far": torch.zeros(6).bool(), "explained": torch.arange(6) < 2}
    found = summary([Errors(values, 1 - values, values)], [where], Cost(1.5, 1.25))
    row = found["in_reach"]
    assert found.keys() == {"in_reach", "near", "explained"}
    assert found["explained"]["cosine_mean"] == pytest.approx(0.95)
    assert (row["cosine"], row["cosine_mean"]) == pytest.approx((0.8, 0.6))
    assert (row["relative_error"], row["relative_error_mean"]) == pytest.approx((0.2, 0.4))
    assert (row["variance"], row["questions"], row["time_ratio"], row["memory_ratio"]) == pytest.approx(
        (0.8, 5, 1.5, 1.25)
    )


def test_errors_are_means_over_draws_and_their_variance_a_square() -> None:
    """Two draws (3, 0) and (0, 4) of a gradient (0, 2): cosines 0 and 1, errors √13 / 2 and 1, variance 2.5² / 2²."""
    found = compare(torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]]), torch.tensor([[0.0, 2.0]]))
    assert found.cosine.tolist() == pytest.approx([0.5])
    assert found.relative.tolist() == pytest.approx([(13**0.5 / 2 + 1) / 2])
    assert found.variance.tolist() == pytest.approx([6.25 / 4])


def test_the_temperature_of_the_likeliest_answers_is_that_of_marginal() -> None:
    """Out of those tried, here neither the flattest nor the sharpest."""
    table = synthetic(400, 48)
    best, losses = likeliest_answers(table, 8)
    assert min(losses) < best < max(losses)
    assert losses[best] == min(losses.values())
    for temperature in (best, 0.1):
        loss = OBJECTIVES["marginal"](Step(table, temperature, 8).evidence, Options()).mean().item()
        assert losses[min(losses, key=lambda tried: abs(tried - temperature))] == pytest.approx(loss)


def test_reach_goes_by_the_gold_passages_rank() -> None:
    """K = 2: the first two are in reach, up to the eighth near."""
    table = synthetic(30, 9)
    order = (table.questions @ table.passages.T).argsort(1, descending=True)
    ranks = torch.tensor([0, 1, 2, 5, 7, 8, 9, 20, 29])
    table = table._replace(gold=order.gather(1, ranks[:, None])[:, 0])
    found = reach(table, 0.05, 2)
    places = torch.stack([found[name] for name in REACH]).long()
    assert places.sum(0).eq(1).all()
    assert places.argmax(0).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_explained_is_in_reach_and_the_most_likely_given_the_answer() -> None:
    """Of two questions whose gold is found first the second has another passage that gives its answer e⁹ times more."""
    table = synthetic(30, 2)
    first = (table.questions @ table.passages.T).argmax(1)
    tokens = torch.full_like(table.token_logp, -4.0)
    tokens[1, 1 - first[1].clamp_max(1)] += 3.0
    table = table._replace(gold=first, token_logp=tokens)
    assert reach(table, 1.0, 2)["explained"].tolist() == [True, False]
    assert reach(table, 1e-3, 2)["explained"].tolist() == [True, True]


def test_the_closed_book_is_paid_by_those_who_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred seconds without it and two hundred with it, forty without gradient; `gumbel` draws half of the K."""
    taken = [Reading(100.0, 10.0), Reading(200.0, 12.0), Reading(40.0, 0.0)]
    monkeypatch.setattr(gradient_audit, "readings", lambda *_: taken)
    found = costs(Size(), Path(), "", (4,))[4]
    for name, cost in found.items():
        expected = (2.0, 1.2) if name in ("marginal", "rb", "rloo") else (1.0, 1.0)
        expected = (0.4, 0.0) if name in ("pdist", "lsr", "loop", "contrastive") else expected
        assert cost == pytest.approx(expected, abs=0.01)
    assert [drawn("gumbel", k) for k in KS] == [2, 4, 8]


def test_what_is_read_ahead_is_paid_over_reading_k_with_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many once more with gradient as have 2 % of the likelihood; of other guesses nothing is known."""
    table, given = synthetic(60, 4), []

    def readings(*asked: object) -> list[Reading]:
        given.append(asked)
        return [Reading(10.0, 5.0), *[Reading(11.0, 5.0)] * 2, *(Reading(10.0 * m, 5.0 / m) for m in AHEAD)]

    monkeypatch.setattr(gradient_audit, "readings", readings)
    found = costs_ahead(table, Size(), Path(), "", (4,))[4]
    assert [found[f"{m}K"] for m in AHEAD[1:]] == [pytest.approx((m, 1 / m)) for m in AHEAD[1:]]
    assert found[MINED_TOO] == found["2K"]
    assert all(np.isnan(cost).all() for name, cost in found.items() if "K" not in name)
    [(*_, kept)] = given
    assert kept == [round(learnt(table, 4 * m)) for m in AHEAD]


def test_those_learn_that_have_two_percent_of_the_likelihood() -> None:
    """Of three passages as likely before they are read, one explains the answer, one does so e⁻³ as well, one doesn't;
    the closed book has no mass here."""
    passages = torch.eye(3)
    tokens = torch.tensor([[[-1.0], [-4.0], [-9.0]]])
    table = Table(
        torch.ones(1, 3), passages, tokens, torch.tensor([[-9.0]]), torch.tensor([1]), torch.tensor([0]), passages
    )
    assert learnt(table, 3) == 2.0


def test_whole_steps_are_timed_with_k_and_twice_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny system: what is read with gradient by `rag_sequence` is the unit, and 2K is 2K."""
    rag, asked = tiny_rag(), []
    rag.index([tiny_document([[f"pilot {i} was {20 + i}"] for i in range(12)])])
    monkeypatch.setattr(objectives, "system", lambda *_: rag)
    questions = [Question(f"how old was pilot {i} ?", (str(20 + i),)) for i in range(8)]
    monkeypatch.setattr(objectives, "squad", lambda *_: [([tiny_document([["pilot 1"]] * 12)], questions), ([], [])])
    terms = rag.terms
    monkeypatch.setattr(
        rag, "terms", lambda *given, **named: (asked.append((given[1], named)), terms(*given, **named))[1]
    )
    found = gradient_audit.steps(Path(), (3,), 2)
    assert found[3]["rag_sequence"] == 1
    assert [k for k, _ in asked] == [3, 3, 3, 6] * 2
    assert [named["negligible"] > 0 for _, named in asked[:4]] == [False, True, True, True]
    assert [named["tail"] for _, named in asked[:4]] == [False, False, True, True]
