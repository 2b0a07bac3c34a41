"""BM25 over the passages' words, through `bm25s`: a baseline, a second score beside the dense one, and a miner.

The sparse score of a passage is Σ idf(t)·tf/(tf + k₁(1 − b + b·length/mean length)) over the words t of the question
(Robertson et al. 1994; Lucene's form, k₁ = 1.5, b = .75). Words are runs of letters and digits, single ones too, since
"4" may be an answer; English stop words are left out.
"""

from collections.abc import Sequence
from typing import Any

import bm25s
import torch
from jaxtyping import Float
from torch import Tensor

from e2erag.retriever.index import Hits


class BM25:
    """Sparse scores of every passage. Memory: the postings, 8 bytes for each different word of each passage."""

    def __init__(self, texts: Sequence[str]) -> None:
        if not len(texts):
            raise ValueError("BM25 needs at least one passage, got none: were any documents read?")
        self.count = len(texts)
        words = _words(texts, ids=True)
        self.index = bm25s.BM25(auto_compile=False) if any(words.ids) else None  # bm25s can't index no word at all
        if self.index is not None:
            self.index.index(words, show_progress=False)

    def __len__(self) -> int:
        return self.count

    def scores(self, questions: Sequence[str]) -> Float[Tensor, "questions passages"]:
        """Every passage's score: 4 bytes for each question and passage, time linear in the words' postings."""
        table = torch.zeros(len(questions), self.count)
        if self.index is None:
            return table
        for row, words in zip(table, _words(questions, ids=False), strict=True):
            known = self.index.get_tokens_ids(words)
            if known:
                row.copy_(torch.from_numpy(self.index.get_scores_from_ids(known)))
        return table

    def search(self, questions: Sequence[str], k: int) -> Hits:
        """The k best passages per question, equal scores by row; a passage without a word in common is no hit."""
        scores, ids = self.scores(questions).sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :k], ids[:, :k]
        return Hits(ids.masked_fill(scores <= 0, -1), scores.masked_fill(scores <= 0, -torch.inf))


def _words(texts: Sequence[str], ids: bool) -> Any:
    return bm25s.tokenize(list(texts), token_pattern=r"(?u)\b\w+\b", return_ids=ids, show_progress=False)
