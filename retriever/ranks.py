"""The processes of torch.distributed, of which there is one where no group was made."""

import torch
from torch import Tensor, distributed


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if ranks() > 1 else 0


def gathered(own: Tensor) -> list[Tensor]:
    """Every rank's, in the order of ranks, without gradient."""
    if ranks() == 1:
        return [own]
    every = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks())]
    distributed.all_gather(every, own.contiguous())
    return every
