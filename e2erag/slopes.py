"""What one answer may say of a passage's lines: which of them, not how many, and no more than the next answer."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MaybeSlots = TypeVar("MaybeSlots", bound=Int[np.ndarray, " _"] | None)


def competing(
    gates: Float[Tensor, " slots"], slots: Sequence[MaybeSlots], limit: float
) -> tuple[Float[Tensor, " _"], list[MaybeSlots]]:
    """The same gates, one after the other as the passages' lines need them, and where each passage's stand in them.

    Going back, the slopes of a passage's lines lose their mean and are scaled to a norm of `limit` at most. A slope in
    log w is mostly about what all lines have in common (this answer likes more to read, or less), and a few answers
    that were unlikely have slopes a hundred times those of the rest: neither says which lines to keep (LOG.md,
    2026-11-25). How many lines stay is for the keep rate and the token price to say.

    Args:
        slots: per passage, of its lines; None where no gate applies.
        limit: 0 leaves gates and slopes as they are.
    """
    if limit <= 0 or not gates.requires_grad:
        return gates, list(slots)
    gated = [passage for passage in slots if passage is not None]
    sizes = np.asarray([len(passage) for passage in gated], np.int64)
    at = torch.from_numpy(np.concatenate([*gated, np.zeros(0, np.int64)])).to(gates.device)
    owner = torch.from_numpy(np.repeat(np.arange(len(gated)), sizes)).to(gates.device)
    ends = iter(np.cumsum(sizes).tolist())
    new: list[Any] = [None if passage is None else np.arange(-len(passage), 0) + next(ends) for passage in slots]
    return _Competing.apply(gates[at], owner, limit), new


class _Competing(torch.autograd.Function):
    """Nothing going forward; slopes centred and clipped per owner going back."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, owner: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(owner)
        ctx.limit = limit
        return gates.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (owner,) = ctx.saved_tensors
        owners = int(owner.max()) + 1 if len(owner) else 0

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(owners).index_add(0, owner, values)

        slope = slope - (summed(slope) / summed(torch.ones_like(slope)).clamp_min(1))[owner]
        norm = summed(slope.square()).sqrt()
        return slope * (ctx.limit / norm.clamp_min(ctx.limit))[owner], None, None
