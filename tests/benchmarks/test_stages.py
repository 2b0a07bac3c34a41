"""`benchmarks/stages.py`: what is drawn, and how arms are compared."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from stages import drawn, table

from e2erag.demo import EXAMPLES
from e2erag.questions import read_questions


def test_a_seed_draws_reports_and_every_question_once() -> None:
    """To learn from those about six reports, to test on all others; another seed draws others."""
    asked = [q for name in ("train", "test") for q in read_questions(EXAMPLES / f"{name}.jsonl")]
    for seed in (0, 1, 2, "demo"):
        (seen, learn), (others, test) = drawn(seed)
        names = {path.name for path in seen}
        assert len(names) == 6
        assert {q.file for q in learn} == names
        assert not names & {q.file for q in test}
        assert {q.file for q in test} == {path.name for path in others}
        assert sorted(q.question for q in (*learn, *test)) == sorted(q.question for q in asked)
        assert [(seen, learn), (others, test)] == drawn(seed)
    assert drawn(0)[0][0] != drawn(1)[0][0]
    assert [asked for _, asked in drawn("demo")] == [read_questions(EXAMPLES / f"{n}.jsonl") for n in ("train", "test")]


def test_arms_are_compared_question_by_question_over_all_seeds() -> None:
    """A difference that every question has is that sure, however far the questions lie apart."""
    draw = np.random.default_rng(0)
    scores = [draw.random((20, 5)) for _ in range(2)]
    scores[0][0, 0] = np.nan  # the gold page of a question isn't known
    cells = {
        "all": [{"soft": each.tolist()} for each in scores],
        "fixed-128": [{"soft": (each - 0.25).tolist()} for each in scores],
    }
    lines, figures = table(cells, "soft")
    assert len(lines) == 3
    every = np.concatenate(scores)
    for i, name in enumerate(("recall@1", "recall@5", "exact match", "F1", "tokens read")):
        assert figures["all"][name][0] == pytest.approx(np.nanmean(every[:, i]))
        assert figures["fixed-128"][f"{name} less all's"] == pytest.approx([-0.25] * 3)
    assert "-0.25, -0.25" in lines[2]
    assert "[" not in lines[1]


def test_the_gap_is_soft_less_hard_question_by_question() -> None:
    """Of the same questions, so it is as sure as it is."""
    scores = np.random.default_rng(0).random((20, 5))
    lines, figures = table({"all": [{"soft": scores.tolist(), "hard": (scores - 0.125).tolist()}]}, "gap")
    assert lines[0].startswith("soft less hard")
    assert figures["all"]["exact match"] == pytest.approx([0.125] * 3)
