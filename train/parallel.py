"""One run over several processes that torchrun has started: who takes which questions, and how gradients meet."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.utils.data import DistributedSampler

from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import ExactIndex, ParallelIndex
from e2erag.retriever.ranks import join, rank, ranks, share_weights
from e2erag.train.checkpoint import Batches


class Ranks(DDPStrategy):
    """Processes that torchrun has started, without DistributedDataParallel: gradient caching runs backward within
    backward, and stages are called several times a step, which its hooks don't allow. The module averages instead."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


def check_started(rag: RAG) -> None:
    """Meet the processes that torchrun started, each on its own device, with rank 0's weights.

    Raises:
        ValueError: several processes that something else has started."""
    join()
    if ranks() == 1:
        return
    if not distributed.is_torchelastic_launched():
        raise ValueError(
            f"{ranks()} processes train where torchrun has started them: torchrun --nproc-per-node {ranks()} script.py"
        )
    if rag.model.device.type == "cuda":
        rag.to(f"cuda:{os.environ['LOCAL_RANK']}")
    share_weights(rag.model)


def trainer_settings(home: torch.device) -> dict[str, Any]:
    """What Lightning's Trainer has to know of processes and devices."""
    kind = "cpu" if home.type == "cpu" else "auto"
    if ranks() == 1:
        return {"accelerator": kind, "devices": 1 if home.type == "cpu" else [home.index or 0]}
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"accelerator": kind, "devices": here, "num_nodes": ranks() // here, "strategy": Ranks()}


def loader(rows: Sequence[Question], batch_size: int, seed: int) -> Batches:
    """Batches in an order that the seed gives. Ranks get as many questions each: where they can't be shared evenly,
    some come twice."""
    order = torch.Generator().manual_seed(seed)
    shares: DistributedSampler[Question] | None = None
    if ranks() > 1:
        shares = DistributedSampler(rows, ranks(), rank(), seed=seed)  # type: ignore[arg-type]
    return Batches(
        rows,
        batch_size,
        shuffle=shares is None,
        sampler=shares,
        collate_fn=list,
        generator=order,
    )


@contextmanager
def over_ranks(rag: RAG) -> Iterator[None]:
    """What is indexed in here is encoded by all ranks, each a share, and scanned by all, each a part for every rank's
    questions. Rows are in every rank's memory, or in a folder that all of them reach, where rank 0 writes and each maps
    its part. Afterwards each rank has the whole index, and asks alone; rank 0 saves.

    Raises:
        ValueError: Milvus Lite, whose file one process has open."""
    if ranks() == 1:
        yield
        return
    if rag.config.index.kind == "milvus" and rag.config.index.uri is None:
        raise ValueError(
            "Milvus Lite serves one process, and this is one of several: give IndexConfig a cluster's uri, or train "
            "with kind 'exact' and load what is saved with 'milvus'"
        )
    rag.indexer.kind, rag.indexer.together = ParallelIndex, True
    try:
        yield
    finally:
        rag.indexer.kind, rag.indexer.together = ExactIndex, False
        if isinstance(rag.index_, ParallelIndex):
            rag.index_ = ExactIndex(rag.index_.store)
