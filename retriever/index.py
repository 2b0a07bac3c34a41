"""The passages' vectors, searched exactly: top K and log Z over the whole corpus.

Each stored row is [d(z) ; α·log π(z)] and each query is [q(x)/τ ; 1], so that an inner product is the whole
score s_z and the prior takes part in the search.
"""

from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OVERFETCH = 6
"""Passages fetched per passage wanted, since nested ones are skipped."""


class Hits(NamedTuple):
    """Per question, the K passages found: their rows in the index and their stored scores, best first.

    Where fewer than K different ones are among those fetched, the rest is −1 with a score of −∞."""

    ids: Int[Tensor, "questions k"]
    scores: Float[Tensor, "questions k"]


class _Rows(np.ndarray):
    """An array over memory that `owner` holds."""

    owner: Any = None


def _ordered(ids: Int[Tensor, "questions k"], scores: Float[Tensor, "questions k"]) -> Hits:
    """Best first, equal scores by row."""
    by_row = ids.argsort(1)
    ids, scores = ids.gather(1, by_row), scores.gather(1, by_row)
    best = scores.argsort(dim=1, descending=True, stable=True)
    return Hits(ids.gather(1, best), scores.gather(1, best))


class Index:
    """Exact inner-product search over float32 vectors (faiss `IndexFlatIP`).

    Equal scores are ordered by row, the lower first; which of them are among the K at its very edge is faiss' choice.
    """

    def __init__(self, vectors: Float[Tensor, "passages dim"]) -> None:
        if len(vectors) == 0:
            raise ValueError("an index needs at least one passage, got none: were any documents read?")
        if not torch.isfinite(vectors).all():
            bad = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
            raise ValueError(f"vectors must be finite; passage {bad} has NaN or infinity: did training diverge?")
        self.faiss = faiss.IndexFlatIP(vectors.shape[1])
        self._elsewhere: Tensor | None = None
        self.faiss.add(np.ascontiguousarray(vectors.detach().cpu().float().numpy()))

    @property
    def vectors(self) -> Float[Tensor, "passages dim"]:
        """The stored rows: a view of faiss' own memory, not a copy."""
        n, dim = self.faiss.ntotal, self.faiss.d
        rows = faiss.rev_swig_ptr(self.faiss.get_xb(), n * dim).reshape(n, dim).view(_Rows)
        rows.owner = self.faiss  # else a graph that saved this view would outlive the memory
        return torch.from_numpy(rows)

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    def search(self, queries: Float[Tensor, "questions dim"], k: int) -> Hits:
        """The k best rows per query; k may exceed the corpus."""
        found = min(k, len(self))
        scores, ids = self.faiss.search(np.ascontiguousarray(queries.detach().cpu().float().numpy()), found)
        return _ordered(torch.from_numpy(ids), torch.from_numpy(scores))

    def scores(self, queries: Float[Tensor, "questions dim"]) -> Float[Tensor, "questions passages"]:
        """Every stored score, with gradient into the queries."""
        if self._elsewhere is None or self._elsewhere.device != queries.device:
            self._elsewhere = self.vectors.to(queries.device)  # the view itself on a CPU, one copy on a GPU
        return queries @ self._elsewhere.to(queries.dtype).T

    def found(self, scores: Float[Tensor, "questions passages"], spans: "Spans", k: int) -> Int[Tensor, "questions k"]:
        """Rows (on the CPU) of the k best passages of which none repeats a better one, −1 where there are fewer."""
        best = scores.topk(min(OVERFETCH * k, len(self)), dim=1)
        return spans.distinct(_ordered(best.indices.cpu(), best.values.cpu()), k).ids


class Spans:
    """Which passages of an index share lines. Candidates are nested on purpose: without this, one region in three
    sizes would fill K and count three times in Z."""

    def __init__(self, spans: Int[Tensor, "passages 4"], overlap: float) -> None:
        """
        Args:
            spans: (document, start, stop, reading) of each row of the index, sorted. Reading 0 is the text as printed;
                two others of one region (rows and sentences of a table) stand beside each other.
            overlap: two passages repeat each other when more than this share of their joint lines is common
                (intersection over union); 1 lets everything stand.
        """
        self.spans, self.overlap = spans, overlap
        self.reach = _reach(spans)

    def repeats(self, a: Int[Tensor, "*shape 4"], b: Int[Tensor, "*shape 4"]) -> Bool[Tensor, "*shape"]:
        """Whether two spans share too many lines."""
        shared = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 1], b[..., 1])).clamp_min(0)
        joined = (a[..., 2] - a[..., 1]) + (b[..., 2] - b[..., 1]) - shared
        alternatives = (a[..., 3] != b[..., 3]) & (a[..., 3] > 0) & (b[..., 3] > 0)
        return (a[..., 0] == b[..., 0]) & (shared > self.overlap * joined) & ~alternatives

    def distinct(self, hits: Hits, k: int) -> Hits:
        """The k best of `hits` (best first, usually several times k) of which none repeats a better one."""
        n, found = hits.ids.shape
        span = self.spans[hits.ids]
        pair = (n, found, found, 4)
        clash = self.repeats(span[:, :, None].expand(pair), span[:, None].expand(pair))
        alive = hits.ids >= 0
        row = torch.arange(n)
        chosen = torch.full((n, k), -1)
        for step in range(min(k, found)):
            best = alive.int().argmax(1)  # hits are sorted: the first one still alive
            chosen[:, step] = torch.where(alive.any(1), best, -1)
            alive &= ~clash[row, best]
            alive[row, best] = False
        missing, chosen = chosen < 0, chosen.clamp_min(0)
        return Hits(
            hits.ids.gather(1, chosen).masked_fill(missing, -1),
            hits.scores.gather(1, chosen).masked_fill(missing, -torch.inf),
        )

    def nested(self, ids: Int[Tensor, "questions k"]) -> Bool[Tensor, "questions passages"]:
        """All passages that repeat one of the K found (themselves included), at a cost that doesn't grow with N."""
        n, k = ids.shape
        near = ids[:, :, None] + torch.arange(-self.reach, self.reach + 1)
        valid = (ids[:, :, None] >= 0) & (near >= 0) & (near < len(self.spans))
        near = near.clamp(0, len(self.spans) - 1)
        found = self.spans[ids.clamp_min(0)][:, :, None].expand(n, k, near.shape[2], 4)
        repeats = valid & self.repeats(found, self.spans[near])
        question = torch.arange(n)[:, None, None].expand_as(near)
        out = torch.zeros(n, len(self.spans), dtype=torch.bool)
        out[question[repeats], near[repeats]] = True
        return out


def _reach(spans: Int[Tensor, "passages 4"]) -> int:
    """How many rows away a passage that shares a line can stand, given that rows are sorted by document and start."""
    if not len(spans):
        return 0
    longest = int((spans[:, 2] - spans[:, 1]).max())
    # One increasing key per row; documents are further apart than any span is long.
    key = spans[:, 1] + spans[:, 0] * (int(spans[:, 2].max()) + longest + 1)
    return int((torch.searchsorted(key, key + longest, right=True) - torch.arange(len(key))).max())
