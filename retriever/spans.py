"""Which passages share lines: K different ones are chosen, and no text counts twice in Z."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from e2erag.retriever.index import Hits, Without

OVERFETCH = 6
"""Passages fetched per passage wanted, since nested ones are skipped."""


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

    def repeats(self, a: Int[Tensor, "*#shape 4"], b: Int[Tensor, "*#shape 4"]) -> Bool[Tensor, "..."]:
        """Whether two spans share too many lines."""
        return repeats(a, b, self.overlap)

    def distinct(self, hits: Hits, k: int) -> Hits:
        """The k best of `hits` (best first, usually several times k) of which none repeats a better one."""
        n, found = hits.ids.shape
        span = self.spans[hits.ids]
        clash = self.repeats(span[:, :, None], span[:, None])
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

    def repeated(self, ids: Int[Tensor, "questions k"]) -> Without:
        """All passages that repeat one of the K found, at a cost that doesn't grow with the corpus."""
        n = len(ids)
        near = ids[:, :, None] + torch.arange(-self.reach, self.reach + 1)
        valid = (ids[:, :, None] >= 0) & (near >= 0) & (near < len(self.spans))
        near = near.clamp(0, len(self.spans) - 1)
        found = self.spans[ids.clamp_min(0)][:, :, None]
        again = valid & self.repeats(found, self.spans[near])
        question = torch.arange(n)[:, None, None].expand_as(near)
        rows, column = near[again].unique(return_inverse=True)
        mask = torch.zeros(n, len(rows), dtype=torch.bool)
        mask[question[again], column] = True
        return Without(rows, mask)


def repeats(a: Int[Tensor, "*#shape 4"], b: Int[Tensor, "*#shape 4"], overlap: float) -> Bool[Tensor, "..."]:
    """Whether two spans (document, start, stop, reading) share more than `overlap` of their joint lines."""
    shared = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 1], b[..., 1])).clamp_min(0)
    joined = (a[..., 2] - a[..., 1]) + (b[..., 2] - b[..., 1]) - shared
    alternatives = (a[..., 3] != b[..., 3]) & (a[..., 3] > 0) & (b[..., 3] > 0)
    return (a[..., 0] == b[..., 0]) & (shared > overlap * joined) & ~alternatives


def _reach(spans: Int[Tensor, "passages 4"]) -> int:
    """How many rows away a passage that shares a line can stand, given that rows are sorted by document and start."""
    if not len(spans):
        return 0
    longest = int((spans[:, 2] - spans[:, 1]).max())
    # One increasing key per row; documents are further apart than any span is long.
    key = spans[:, 1] + spans[:, 0] * (int(spans[:, 2].max()) + longest + 1)
    return int((torch.searchsorted(key, key + longest, right=True) - torch.arange(len(key))).max())
