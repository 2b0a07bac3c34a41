"""The audit's own arithmetic: what it calls exact is exact, and what it calls an objective's gradient is that."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from gradient_audit import KS, STOCHASTIC, Cost, Step, audit, reach, run, summary, synthetic, tails, text

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
    figures = {name: summary([errors], [reach(table, 4)], Cost(1.0, 1.0))["in_reach"] for name, errors in found.items()}
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
        assert [s["k"] for s in rows["settings"]] == [4, 8, 16] * 4
        assert all("in_reach" not in s for s in rows["settings"] if s["corpus"] == "synthetic")
    said = text(figures)
    assert all(said.count(f"| `{name}` |") == 4 for name in names)
    assert "real, τ = 0.05, K = 4 (" in said
