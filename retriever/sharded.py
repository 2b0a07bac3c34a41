"""Exact search over torch.distributed: every rank scores a part of the rows, and all ranks get the whole answer.

The convention of `ShardedIndex`: every rank holds the same questions in the same order and makes the same calls in the
same order. Where ranks have questions of their own, gather them first; then losses are the same everywhere too, and so
is every gradient that arrives here. What goes out again is the whole gradient, on every rank: what one process would
have got. Its rows lie once, in a folder that all ranks reach, and a rank reads its own part of them only. Rank 0 writes
there.

`ParallelIndex` is for ranks with questions of their own, and may have the rows in their memory.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from e2erag.retriever.exact import ExactIndex, as_scored
from e2erag.retriever.index import Encode, Hits, Prior, Queries, Source, Without, check_queries
from e2erag.retriever.ranks import ELSEWHERE, device, gathered, of_all, of_this, rank, ranks
from e2erag.retriever.scan import TILE, LogZ, scan
from e2erag.retriever.store import Store


class ShardedIndex(ExactIndex):
    """`ExactIndex` whose rows are split over the ranks, in runs of whole tiles: rank 0 has the first.

    Per search W ranks exchange W·questions·K ids and scores, per log Z one number a question, and in backward the
    gradients themselves. `Hits.sums` are those of the rank's own rows. Without a process group it is one rank.
    """

    def __init__(self, store: Store) -> None:
        if store.folder is None:
            raise ValueError("ranks share rows that lie in a folder all of them reach: give the Store one")
        super().__init__(store)
        self._key: object = None

    def search(self, queries: Queries, k: int, prior: Prior | None = None) -> Hits:
        check_queries(self, queries, k, prior)
        queries, prior = as_scored(queries.detach(), None if prior is None else prior.detach())
        self._check(queries, k)
        found = self._scan(*self._of_ranks(queries, prior), k)
        return Hits(self._own(found.ids), self._own(found.scores), found.sums)

    def _scan(self, queries: Queries, prior: Prior | None, k: int) -> Hits:
        """The best of all ranks' rows, for questions that all ranks ask; sums of the rank's own rows."""
        mine, (rows, dead) = self._mine(), self._rows(queries.device)
        hits = scan(queries, rows, min(k, len(self)), None if prior is None else prior[..., mine], dead)
        ids = torch.cat(gathered(hits.ids.where(hits.ids < 0, hits.ids + mine.start)), 1)
        # A rank's equal scores stand in the order of their rows, and ranks in the order of theirs: sorted stably.
        scores, best = torch.cat(gathered(hits.scores), 1).sort(dim=1, descending=True, stable=True)
        k = hits.ids.shape[1]
        return Hits(ids.gather(1, best[:, :k]).cpu(), scores[:, :k].cpu(), hits.sums)

    def log_z(
        self,
        queries: Queries,
        hits: Hits,
        without: Without | None = None,
        prior: Prior | None = None,
    ) -> Float[Tensor, " questions"]:
        """As `Index.log_z`; the gradient that comes back must be the same on every rank."""
        queries, prior = self._of_ranks(*as_scored(queries, prior))
        mine, (rows, dead) = self._mine(), self._rows(queries.device)
        if without is not None:
            without = self._left_out(without)
            here = _within(without.rows, mine)
            without = Without((without.rows[here] - mine.start).to(rows.device), without.mask[:, here].to(rows.device))
        own = LogZ.apply(queries, None if prior is None else prior[..., mine], rows, dead, hits.sums, without)
        return self._own(_LogSumExp.apply(own))

    # What all ranks ask, from what one is asked; and what one is answered. Here it is the same.

    def _check(self, queries: Queries, k: int) -> None:
        _check_same(queries, k)

    def _of_ranks(self, queries: Queries, prior: Prior | None) -> tuple[Queries, Prior | None]:
        queries, prior = _Replicated.apply(queries, prior)
        return queries, prior

    def _left_out(self, without: Without) -> Without:
        return without

    def _own(self, every: Tensor) -> Tensor:
        return every

    def _mine(self) -> slice:
        """This rank's rows."""
        n = len(self.vectors)
        size = -(-n // (TILE * ranks())) * TILE
        return slice(min(n, size * rank()), min(n, size * (rank() + 1)))

    def _rows(self, processor: torch.device) -> tuple[Tensor, Tensor]:
        mine = self._mine()
        rows, dead = self.vectors[mine], self.store.dead[_within(self.store.dead, mine)] - mine.start
        if processor.type != "cpu":
            key = (self.store.version, processor)
            if self._elsewhere is None or self._key != key:
                self._elsewhere, self._key = rows.to(processor), key
            rows = self._elsewhere
        return rows, dead.to(processor)

    # ------------------------------------------------------------------------------------------------ rank 0 writes

    def add(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        return self._written(lambda: self.store.add(sources, rows))

    def update(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        return self._written(lambda: self.store.update(sources, rows))

    def delete(self, names: Sequence[str]) -> int:
        return self._written(lambda: self.store.delete(names))

    def save(self, folder: str | Path) -> None:
        def write() -> int:
            self.store.save(folder)
            return 0

        _on_rank_0(write)

    @classmethod
    def load(
        cls, folder: str | Path, expect: Mapping[str, object] | None = None, verify: bool = True
    ) -> "ShardedIndex":
        """As `Index.load`: rank 0 compares the hashes, the others map the file."""
        _on_rank_0(lambda: len(Store.open(folder, expect, verify)))
        return cls(Store.open(folder, expect, verify=False))

    def _written(self, change: Callable[[], int]) -> int:
        count = _on_rank_0(change)
        if rank():
            self.store.reload()
        return count


class ParallelIndex(ShardedIndex):
    """For training on many ranks: each asks as many questions of its own, and each scans its run of rows for all.

    The rows are in a folder that all ranks reach, of which each maps and reads its own part, or in every rank's memory;
    a GPU gets its own part alone. Every rank makes the same changes to them.
    Slopes of questions are whole. Those of a prior that all questions share are what this rank's rows say of all ranks'
    questions: summed over the ranks, as parameters' gradients are (`average_gradients`), they are those of one process.
    """

    def __init__(self, store: Store) -> None:
        ExactIndex.__init__(self, store)
        self._key = None

    def _check(self, queries: Queries, k: int) -> None:
        _check_as_many(len(queries), k)

    def _of_ranks(self, queries: Queries, prior: Prior | None) -> tuple[Queries, Prior | None]:
        return of_all(queries), of_all(prior) if prior is not None and prior.ndim == 2 else prior

    def _left_out(self, without: Without) -> Without:
        return _union(without, len(self.vectors))

    def _own(self, every: Tensor) -> Tensor:
        return of_this(every)

    def _written(self, change: Callable[[], int]) -> int:
        return change()


class _Replicated(torch.autograd.Function):
    """The same on every rank; backward sums what each rank's rows have to say."""

    @staticmethod
    def forward(ctx, queries, prior):  # type: ignore[no-untyped-def]  # autograd's own form
        return queries.view_as(queries), None if prior is None else prior.view_as(prior)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]  # autograd's own form
        return tuple(_summed(grad) if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=True))


class _LogSumExp(torch.autograd.Function):
    """log Σ exp over the ranks; backward is each rank's share of Z."""

    @staticmethod
    def forward(ctx, own):  # type: ignore[no-untyped-def]  # autograd's own form
        total = torch.stack(gathered(own)).logsumexp(0)
        ctx.save_for_backward((own - total.masked_fill(total == -torch.inf, 0)).exp_())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # autograd's own form
        (share,) = ctx.saved_tensors
        return grad * share


def _union(without: Without, rows: int) -> Without:
    """What every rank's questions leave out, as one."""
    count = gathered(torch.tensor([len(without.rows)], device=device()))
    more = max(map(int, count)) - len(without.rows)
    every = gathered(F.pad(without.rows, (0, more), value=rows).to(device()))
    masks = gathered(F.pad(without.mask, (0, more)).byte().to(device()))
    out = torch.cat(every).unique()
    out = out[out < rows]
    mask = torch.zeros(sum(map(len, masks)), len(out) + 1, dtype=torch.uint8, device=out.device)
    for own, there, here in zip(every, masks, mask.split([len(m) for m in masks]), strict=True):
        here[:, torch.searchsorted(out, own)] = there  # what was padded stands behind the others
    return Without(out, mask[:, :-1].bool())


def _check_as_many(questions: int, k: int) -> None:
    for number, other in enumerate(gathered(torch.tensor([questions, k], device=device()))):
        if other.tolist() != [questions, k]:
            raise ValueError(
                f"every rank must ask as many questions with the same k, and rank {number} asks {int(other[0])} with "
                f"k = {int(other[1])}, rank {rank()} {questions} with k = {k}: give every rank batches of one size"
            )


def _summed(own: Tensor) -> Tensor:
    if ranks() == 1:
        return own
    total = own.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _check_same(queries: Tensor, k: int) -> None:
    """One small exchange instead of a deadlock, or of an answer that mixes questions."""
    own = torch.stack([queries.new_tensor(len(queries)), queries.new_tensor(k), queries.sum(), queries.abs().sum()])
    for number, other in enumerate(gathered(own.double())):
        near = torch.allclose(other[2:], own[2:].double(), rtol=0, atol=1e-4 * float(own[3]))  # processors round apart
        if not near or other[:2].tolist() != own[:2].tolist():
            raise ValueError(
                f"every rank must ask the same questions with the same k, and rank {number} asks {int(other[0])} with "
                f"k = {int(other[1])}, rank {rank()} {len(queries)} with k = {k}: gather the questions first"
            )


def _on_rank_0(change: Callable[[], int]) -> int:
    """What rank 0 did, once it is done; where it failed, every rank raises."""
    if ranks() == 1:
        return change()
    count = torch.tensor([-1], device=device())
    try:
        if rank() == 0:
            count[0] = change()
    finally:
        distributed.broadcast(count, 0)
    if count < 0:
        raise RuntimeError(ELSEWHERE)
    return int(count)


def _within(rows: Tensor, part: slice) -> slice:
    """Where in these ascending rows those of a part stand."""
    return slice(*torch.searchsorted(rows, torch.tensor([part.start, part.stop], device=rows.device)).tolist())
