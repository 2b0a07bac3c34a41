"""One pass over all rows: the top K and log Σ exp(s_z) of every tile of 64 rows.

1. A strip's scores are one product, on a CPU few enough to be in its cache still when they give each tile's best and
   log-sum.
2. A block's top K are merged into those found before it, equal scores by row.

So nothing of the corpus' size is held but bests and sums: two numbers a question and tile. Where a few terms must be
left out of Z later, the tiles that hold them are summed anew, which subtracting large from large could not do stably.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from e2erag.retriever.index import Hits, Without

TILE = 64
BLOCK = 256 * TILE
"""Rows whose scores are held at once: 16,384 scores a question."""
STRIP = 32 * TILE
"""Rows that a CPU scores at once: with 8 to 1024 questions over 10,000 rows the fastest of 256 to 16,384, or within 3 %
of it (LOG.md, 2026-11-25)."""

LOG2_E = 1 / math.log(2)

Scores = Float[Tensor, "questions rows"]


def strips(
    queries: Tensor,
    rows: Tensor,
    prior: Tensor | None,
    dead: Int[Tensor, " dead"],
    room: Float[Tensor, "questions block"],
    without: Without | None = None,
) -> Iterator[tuple[int, Tensor, Scores]]:
    """First row, rows and scores of one strip after the other, whole tiles; terms left out and what is beyond the last
    row score −∞. The scores stand one after the other in `room`, whole tiles too, until it is full and filled anew."""
    start, wide = 0, _wide(queries)
    for block in rows.split(room.shape[1]):
        for part, every in zip(block.split(wide), room.split(wide, 1), strict=False):
            strip, scores = part.to(queries.dtype), every
            if (count := len(strip)) < every.shape[1]:
                every = every[:, : -(-count // TILE) * TILE]
                every[:, count:] = -torch.inf
                scores = every[:, :count]
            torch.mm(queries, strip.T, out=scores)
            if prior is not None:
                scores += prior[..., start : start + count].to(scores)
            if len(dead):
                scores[:, dead[_within(dead, start, count)] - start] = -torch.inf
            if without is not None:
                here = _within(without.rows, start, count)
                column = without.rows[here] - start
                scores[:, column] = scores[:, column].masked_fill(without.mask[:, here], -torch.inf)
            yield start, strip, every
            start += count


def _room(queries: Tensor, rows: Tensor, most: int) -> Float[Tensor, "questions block"]:
    """For the scores of so many rows, or of all where they are fewer."""
    return queries.new_empty(len(queries), min(most, max(-(-len(rows) // TILE), 1) * TILE))


def _wide(queries: Tensor) -> int:
    return STRIP if queries.device.type == "cpu" else BLOCK


def _within(rows: Int[Tensor, " n"], start: int, count: int) -> slice:
    """Where in these ascending rows those of a strip stand."""
    ends = torch.tensor([start, start + count], device=rows.device)
    return slice(*torch.searchsorted(rows, ends).tolist())


def scan(queries: Tensor, rows: Tensor, k: int, prior: Tensor | None, dead: Int[Tensor, " dead"]) -> Hits:
    """Top K and tile sums; a dead row is never found and counts nothing. Where there are fewer, the rest is −1."""
    room = _room(queries, rows, BLOCK)
    best = queries.new_empty(len(queries), -(-len(rows) // TILE))
    sums, scratch = torch.empty_like(best), queries.new_empty(len(queries), _wide(queries) // TILE, TILE)
    ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    found = queries.new_empty(len(queries), 0)
    of_strips = (each.split(scratch.shape[1], 1) for each in (best, sums))
    for (start, strip, scores), bests, sums_here in zip(
        strips(queries, rows, prior, dead, room), *of_strips, strict=True
    ):
        _sum_tiles(scores.unflatten(1, (-1, TILE)), bests, sums_here, scratch)
        end = start + len(strip)
        if end % BLOCK == 0 or end == len(rows):
            block = max(end - 1, 0) // BLOCK * BLOCK
            more_ids, more = _top(room[:, : end - block], k)
            if block:
                more_ids, more = torch.cat([ids, more_ids + block], 1), torch.cat([found, more], 1)
                more, order = more.sort(dim=1, descending=True, stable=True)  # what was found before has lower rows
                more_ids, more = more_ids.gather(1, order)[:, :k], more[:, :k]
            ids, found = more_ids, more
    ids = ids.masked_fill_(found == -torch.inf, -1)
    if missing := k - ids.shape[1]:
        ids, found = F.pad(ids, (0, missing), value=-1), F.pad(found, (0, missing), value=-torch.inf)
    return Hits(ids, found, sums.log_().add_(best).masked_fill_(best == -torch.inf, -torch.inf))  # −∞ − −∞ is NaN


def _top(scores: Scores, k: int) -> tuple[Int[Tensor, "questions k"], Float[Tensor, "questions k"]]:
    """Columns and values of the K largest, or of all where there are fewer, equal ones by column."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    if (values[:, 1:] < values[:, :-1]).all():
        return columns[:, :k], values[:, :k]
    # topk gives equal ones in any order, and at the edge of K any of them.
    least = values[:, :k][:, -1:].clamp_min(torch.finfo(values.dtype).min)
    question, column = (scores >= least).nonzero(as_tuple=True)
    first = torch.searchsorted(question, torch.arange(len(scores), device=question.device))
    place = torch.arange(len(question), device=question.device) - first[question]
    widest = int(question.bincount(minlength=1).max())
    columns = columns.new_zeros(len(scores), max(widest, k))
    values = values.new_full(columns.shape, -torch.inf)
    columns[question, place], values[question, place] = column, scores[question, column]
    values, order = values.sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order[:, :k]), values[:, :k]


def _sum_tiles(
    tiles: Float[Tensor, "questions tiles 64"],
    best: Float[Tensor, "questions tiles"],
    sums: Float[Tensor, "questions tiles"],
    scratch: Float[Tensor, "questions strip 64"],
) -> None:
    """Fills in each tile's best and Σ exp(s − best); NaN where all are −∞."""
    scratch = scratch[:, : tiles.shape[1]]
    torch.amax(tiles, 2, out=best)
    torch.sum(_exp(tiles, best[:, :, None], scratch), 2, out=sums)


def _exp(scores: Tensor, less: Tensor, out: Tensor) -> Tensor:
    """exp(s − less) in two passes, by powers of two: torch's own exp, where it is MKL's, takes up to four times as long
    on CPUs that aren't Intel's. −∞ − −∞ is NaN."""
    return torch.add(less * -LOG2_E, scores, alpha=LOG2_E, out=out).exp2_()


class LogZ(torch.autograd.Function):
    """log Σ exp(s_z) from a scan's sums. Backward computes p(z|x) again strip by strip: d log Z = Σ_z p(z|x)·d s_z,
    at the cost of two products and with the memory of one strip."""

    @staticmethod
    def forward(ctx, queries, prior, rows, dead, sums, without):  # type: ignore[no-untyped-def]  # autograd's own form
        if without is not None:
            sums = _without(queries, prior, rows, dead, sums, without)
        log_z = sums.logsumexp(1)
        ctx.save_for_backward(queries, prior, log_z)
        ctx.rows, ctx.dead, ctx.without = rows, dead, without
        return log_z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # autograd's own form
        queries, prior, log_z = ctx.saved_tensors
        to_queries = torch.zeros_like(queries)
        to_prior = None if prior is None else torch.zeros_like(prior)
        base = log_z.masked_fill(log_z == -torch.inf, 0)[:, None]  # nothing left: every p is exp(−∞)
        room = _room(queries, ctx.rows, _wide(queries))
        for start, strip, scores in strips(queries, ctx.rows, prior, ctx.dead, room, ctx.without):
            scores = scores[:, : len(strip)]
            p = _exp(scores, base, scores).mul_(grad[:, None])
            to_queries += p @ strip
            if to_prior is not None:
                to_prior[..., start : start + len(strip)] = p.sum(0) if to_prior.ndim == 1 else p
        return to_queries, to_prior, None, None, None, None


def _without(queries: Tensor, prior: Tensor | None, rows: Tensor, dead: Tensor, sums: Tensor, out: Without) -> Tensor:
    """The sums, with those tiles that hold a term to be left out summed anew. Several at a time: memory stays that of
    a block."""
    sums = sums.clone()
    for tiles in (out.rows // TILE).unique().split(BLOCK // TILE):
        row = (tiles[:, None] * TILE + torch.arange(TILE, device=tiles.device)).flatten()
        known = row.clamp_max(len(rows) - 1)
        scores = queries @ rows[known].to(queries.dtype).T
        if prior is not None:
            scores += prior[..., known].to(scores)
        scores[:, (row != known) | torch.isin(row, dead)] = -torch.inf
        here = torch.isin(out.rows // TILE, tiles)
        column = torch.searchsorted(tiles, out.rows[here] // TILE) * TILE + out.rows[here] % TILE
        scores[:, column] = scores[:, column].masked_fill(out.mask[:, here], -torch.inf)
        anew = scores.unflatten(1, (-1, TILE))
        sums[:, tiles] = anew.logsumexp(2)
    return sums
