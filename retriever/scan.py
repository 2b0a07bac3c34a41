"""One pass over all rows, block by block: the top K and log Σ exp(s_z) of every tile of 64 rows.

1. A block's scores are one product; tiles whose best score can't be among the top K are passed by.
2. Of the others those scores that still can be are merged into what was found, equal scores by row.
3. The block's scores are turned in place into each tile's log-sum.

So nothing of the corpus' size is held but the sums: questions × rows / 64 numbers. Where a few terms must be left out
of Z later, the tiles that hold them are summed anew, which subtracting large from large could not do stably.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2erag.retriever.index import Hits, Without

TILE = 64
BLOCK = 256 * TILE
"""Rows scored at once: 16,384 scores a question."""

Scores = Float[Tensor, "questions rows"]


def blocks(
    queries: Tensor, rows: Tensor, prior: Tensor | None, dead: Int[Tensor, " dead"], without: Without | None = None
) -> Iterator[tuple[int, Tensor, Scores]]:
    """First row, rows and scores of one block after the other, whole tiles; terms left out and what is beyond the last
    row score −∞. The scores may be written to, and last until the next block."""
    room = queries.new_empty(len(queries), min(BLOCK, -(-len(rows) // TILE) * TILE))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].to(queries.dtype)
        every = room[:, : -(-len(block) // TILE) * TILE]
        every[:, len(block) :] = -torch.inf
        scores = torch.mm(queries, block.T, out=every[:, : len(block)])
        if prior is not None:
            scores += prior[..., start : start + BLOCK].to(scores)
        scores[:, dead[_within(dead, start)] - start] = -torch.inf
        if without is not None:
            here = _within(without.rows, start)
            column = without.rows[here] - start
            scores[:, column] = scores[:, column].masked_fill(without.mask[:, here], -torch.inf)
        yield start, block, every


def _within(rows: Int[Tensor, " n"], start: int) -> slice:
    """Where in these ascending rows those of a block stand."""
    ends = torch.tensor([start, start + BLOCK], device=rows.device)
    return slice(*torch.searchsorted(rows, ends).tolist())


def scan(queries: Tensor, rows: Tensor, k: int, prior: Tensor | None, dead: Int[Tensor, " dead"]) -> Hits:
    """Top K and tile sums; a dead row is never found and counts nothing. Where there are fewer, the rest is −1."""
    found = Hits(
        torch.full((len(queries), k), -1, device=queries.device),
        torch.full((len(queries), k), -torch.inf, device=queries.device, dtype=queries.dtype),
    )
    sums = queries.new_empty(len(queries), -(-len(rows) // TILE))
    for start, _, scores in blocks(queries, rows, prior, dead):
        tiles = scores.unflatten(1, (-1, TILE))
        best = tiles.amax(2)
        found = _merged(found, start, tiles, best)
        sums[:, start // TILE :][:, : best.shape[1]] = _log_sums(tiles, best)
    return found._replace(sums=sums)


def _merged(found: Hits, start: int, tiles: Tensor, best: Tensor) -> Hits:
    """What was found, and what is better in these tiles.

    At least K of a block's scores reach its K-th best tile, so less can't be among the top K."""
    k = found.ids.shape[1]
    kth = found.scores[:, -1:]
    reach = best.topk(k).values[:, -1:] if best.shape[1] >= k else torch.full_like(kth, -torch.inf)
    question, tile = ((best > kth) & (best >= reach)).nonzero(as_tuple=True)
    if not len(question):
        return found
    scores = tiles[question, tile]
    pair, column = ((scores > kth[question]) & (scores >= reach[question])).nonzero(as_tuple=True)
    old_question, old_rank = (found.ids >= 0).nonzero(as_tuple=True)
    question = torch.cat([old_question, question[pair]])
    row = torch.cat([found.ids[old_question, old_rank], start + tile[pair] * TILE + column])
    score = torch.cat([found.scores[old_question, old_rank], scores[pair, column]])
    # Stable sorts, and equal scores stand in the order of their rows already.
    order = score.argsort(descending=True, stable=True)
    order = order[question[order].argsort(stable=True)]
    question = question[order]
    counts = question.bincount(minlength=len(found.ids))
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[question]
    top = rank < k
    ids, values = torch.full_like(found.ids, -1), torch.full_like(found.scores, -torch.inf)
    ids[question[top], rank[top]] = row[order[top]]
    values[question[top], rank[top]] = score[order[top]]
    return Hits(ids, values)


def _log_sums(tiles: Float[Tensor, "questions tiles 64"], best: Float[Tensor, "questions tiles"]) -> Tensor:
    """log Σ exp of every tile; the scores are overwritten."""
    floor = best.clamp_min(torch.finfo(best.dtype).min)[:, :, None]  # a tile of −∞ sums to −∞, not to NaN
    return tiles.sub_(floor).exp_().sum(2).log_().add_(floor[:, :, 0])


class LogZ(torch.autograd.Function):
    """log Σ exp(s_z) from a scan's sums. Backward computes p(z|x) again block by block: d log Z = Σ_z p(z|x)·d s_z,
    at the cost of two products and with the memory of one block."""

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
        for start, block, scores in blocks(queries, ctx.rows, prior, ctx.dead, ctx.without):
            p = scores[:, : len(block)].sub_(base).exp_().mul_(grad[:, None])
            to_queries += p @ block
            if to_prior is not None:
                to_prior[..., start : start + len(block)] = p.sum(0) if to_prior.ndim == 1 else p
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
        sums[:, tiles] = _log_sums(anew, anew.amax(2))
    return sums
