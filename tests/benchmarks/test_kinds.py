"""Cranfield's own format, as `benchmarks/kinds.py` reads it."""

import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import INDEXES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from kinds import cranfield

from e2erag.collections import measure
from e2erag.retriever import BM25, Hits, Source, Store

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


def words_of(texts: list[str], names: dict[str, int]) -> torch.Tensor:
    """How often each word comes, on unit length: enough of an encoder to rank by."""
    found = [row * len(names) + names[word] for row, text in enumerate(texts) for word in text.split() if word in names]
    counts = torch.bincount(torch.tensor(found), minlength=len(texts) * len(names))
    return torch.nn.functional.normalize(counts.view(len(texts), -1).float())


def searched(kind: str, texts: list[str], queries: list[str], folder: Path) -> Hits:
    if kind == "BM25":
        return BM25(texts).search(queries, 100)
    common = Counter(word for text in texts for word in set(text.split()))
    names = {word: i for i, word in enumerate(word for word, count in common.items() if 5 <= count <= 200)}
    store = Store(folder)
    place = -1e-6 * torch.arange(len(texts))[:, None]  # no two score alike: measures differ in whom they then put first
    store.add([Source("cranfield", "1", len(texts))], torch.cat([words_of(texts, names), place], 1))
    return INDEXES[kind](store).search(torch.cat([words_of(queries, names), torch.ones(len(queries), 1)], 1), 100)


@pytest.mark.parametrize("kind", ["BM25", "exact", "HNSW"])
def test_on_cranfield_measures_are_those_computed_by_hand(kind: str, tmp_path: Path) -> None:
    """BM25, and indexes of word counts, over its 1,400 abstracts: nDCG@10, RR@10 and recall@100 of each query by their
    formulas, and successes at 1 and at 5, which for gold pages `evaluate` calls recall."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "cranfield"
    if not folder.is_dir():
        pytest.skip("Cranfield isn't there")
    made = cranfield(folder)
    names, texts = list(made.passages), list(made.passages.values())
    hits = searched(kind, texts, list(made.queries.values()), tmp_path)
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
    assert (0.3 if kind == "BM25" else 0.2) < found["nDCG@10"].mean() < 0.4
