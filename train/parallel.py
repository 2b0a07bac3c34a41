"""One run over several processes that torchrun has started: who takes which questions, and how gradients meet."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import ExactIndex, ParallelIndex
from e2erag.retriever.ranks import rank, ranks


class Ranks(DDPStrategy):
    """Processes that torchrun has started, without DistributedDataParallel: gradient caching runs backward within
    backward, and stages are called several times a step, which its hooks don't allow. The module averages instead."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def trainer_settings(home: torch.device) -> dict[str, Any]:
    """What Lightning's Trainer has to know of processes and devices."""
    kind = "cpu" if home.type == "cpu" else "auto"
    if ranks() == 1:
        return {"accelerator": kind, "devices": 1 if home.type == "cpu" else [home.index or 0]}
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"accelerator": kind, "devices": here, "num_nodes": ranks() // here, "strategy": Ranks()}


def loader(rows: Sequence[Question], batch_size: int, seed: int) -> DataLoader[Question]:
    """Batches in an order that the seed gives. Ranks get as many questions each: where they can't be shared evenly,
    some come twice."""
    order = torch.Generator().manual_seed(seed)
    shares: DistributedSampler[Question] | None = None
    if ranks() > 1:
        shares = DistributedSampler(rows, ranks(), rank(), seed=seed)  # type: ignore[arg-type]
    return DataLoader[Question](
        rows,  # type: ignore[arg-type]
        batch_size,
        shuffle=shares is None,
        sampler=shares,
        collate_fn=list,
        generator=order,
    )


@contextmanager
def over_ranks(rag: RAG) -> Iterator[None]:
    """While ranks train, each scans a part of the index for all; afterwards each can ask what it likes, alone."""
    if ranks() == 1:
        yield
        return
    rag.indexer.kind, index = ParallelIndex, rag._ready()[1]
    assert isinstance(index, ExactIndex)
    rag.index_ = ParallelIndex(index.store)
    try:
        yield
    finally:
        rag.indexer.kind = ExactIndex
