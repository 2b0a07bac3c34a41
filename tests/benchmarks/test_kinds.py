"""Cranfield's own format, as `benchmarks/kinds.py` reads it."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from kinds import cranfield

from e2erag.collections import measure
from e2erag.retriever import BM25

PASSAGES = """.I 1
.T
wings in a
slipstream .
.A
someone
.B
j. ae. scs. 25
.W
lift of a wing .
  it grows .
.I 2
.T
heat
.A
.B
.W
"""
QUERIES = ".I 001\n.W\nwhat lifts a\nwing .\n.I 004\n.W\nwhat heats .\n"


def test_titles_and_texts_are_passages_and_queries_go_by_their_place(tmp_path: Path) -> None:
    """Authors and sources are left out, an empty abstract is its title; of the grades 1 is the best, −1 none."""
    (tmp_path / "cran.all.1400").write_text(PASSAGES)
    (tmp_path / "cran.qry").write_text(QUERIES)
    (tmp_path / "cranqrel").write_text("1 1 2\n1 2 -1\n2 2 1\n")
    made = cranfield(tmp_path)
    assert made.passages == {"1": "wings in a slipstream . lift of a wing . it grows .", "2": "heat"}
    assert made.queries == {"1": "what lifts a wing .", "2": "what heats ."}
    assert made.judgements == {"1": {"1": 3, "2": 0}, "2": {"2": 4}}


def test_on_cranfield_measures_are_those_computed_by_hand() -> None:
    """BM25 over its 1,400 abstracts: nDCG@10, RR@10 and recall@100 of every query by their formulas, and successes at 1
    and at 5, which for gold pages `evaluate` calls recall."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "cranfield"
    if not folder.is_dir():
        pytest.skip("Cranfield isn't there")
    made = cranfield(folder)
    names, texts = list(made.passages), list(made.passages.values())
    hits = BM25(texts).search(list(made.queries.values()), 100)
    run = {
        query: {names[i]: score for i, score in zip(ids, scores, strict=True) if i >= 0}
        for query, ids, scores in zip(made.queries, hits.ids.tolist(), hits.scores.tolist(), strict=True)
    }
    found = measure(run, made.judgements, ("nDCG@10", "RR@10", "R@100", "Success@1", "Success@5"))
    for number, (query, grades) in enumerate(made.judgements.items()):
        ranked = sorted(run[query], key=lambda name: (run[query][name], name), reverse=True)
        gains = [max(grades.get(name, 0), 0) for name in ranked]
        best = sorted((max(grade, 0) for grade in grades.values()), reverse=True)
        discount = [1 / math.log2(rank + 2) for rank in range(10)]
        ideal = sum(map(float.__mul__, map(float, best), discount))
        first = next((1 / rank for rank, gain in enumerate(gains[:10], 1) if gain), 0.0)
        relevant = sum(grade > 0 for grade in best)
        assert found["nDCG@10"][number] == pytest.approx(
            sum(g * d for g, d in zip(gains, discount, strict=False)) / ideal
        )
        assert found["RR@10"][number] == pytest.approx(first)
        assert found["R@100"][number] == pytest.approx(sum(gain > 0 for gain in gains) / relevant)
        for k in (1, 5):
            assert found[f"Success@{k}"][number] == any(gains[:k])
    assert 0.3 < found["nDCG@10"].mean() < 0.4
