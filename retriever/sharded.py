"""Exact search over torch.distributed: every rank scores a part of the rows, and all ranks get the whole answer.

The convention: every rank holds the same questions in the same order and makes the same calls in the same order. Where
ranks have questions of their own, gather them first; then losses are the same everywhere too, and so is every gradient
that arrives here. What goes out again is the whole gradient, on every rank: what one process would have got.

The rows lie once, in a folder that all ranks reach, and a rank reads its own part of them only. Rank 0 writes there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from e2erag.retriever.exact import ExactIndex, as_scored
from e2erag.retriever.index import Encode, Hits, Prior, Queries, Source, Without, check_queries
from e2erag.retriever.ranks import gathered, rank, ranks
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
        check_queries(self, queries, k)
        queries, prior = as_scored(queries.detach(), prior)
        _check_same(queries, k)
        mine, (rows, dead) = self._mine(), self._rows(queries.device)
        hits = scan(queries, rows, min(k, len(self)), None if prior is None else prior.detach()[..., mine], dead)
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
        queries, prior = _Replicated.apply(*as_scored(queries, prior))
        mine, (rows, dead) = self._mine(), self._rows(queries.device)
        if without is not None:
            here = _within(without.rows, mine)
            without = Without((without.rows[here] - mine.start).to(rows.device), without.mask[:, here].to(rows.device))
        own = LogZ.apply(queries, None if prior is None else prior[..., mine], rows, dead, hits.sums, without)
        return _LogSumExp.apply(own)

    def _mine(self) -> slice:
        """This rank's rows."""
        n = len(self.vectors)
        size = -(-n // (TILE * ranks())) * TILE
        return slice(min(n, size * rank()), min(n, size * (rank() + 1)))

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mine = self._mine()
        rows, dead = self.vectors[mine], self.store.dead[_within(self.store.dead, mine)] - mine.start
        if device.type != "cpu":
            key = (self.store.version, device)
            if self._elsewhere is None or self._key != key:
                self._elsewhere, self._key = rows.to(device), key
            rows = self._elsewhere
        return rows, dead.to(device)

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

        self._written(write)

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
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor([-1], device=device)
    try:
        if rank() == 0:
            count[0] = change()
    finally:
        distributed.broadcast(count, 0)
    if count < 0:
        raise RuntimeError("rank 0, which writes for all ranks, could not change the index: its own error says why")
    return int(count)


def _within(rows: Tensor, part: slice) -> slice:
    """Where in these ascending rows those of a part stand."""
    return slice(*torch.searchsorted(rows, torch.tensor([part.start, part.stop], device=rows.device)).tolist())
