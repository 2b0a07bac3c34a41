"""An index of small documents that has versions, for tests of what another sees of one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from e2erag.retriever import Source, Store


def sources(version: int) -> list[list[Source]]:
    """Six batches of two documents; half of them change with the version."""
    return [[Source(f"{i}.{j}", f"{(version if i % 2 else 0)}", 5 + i) for j in range(2)] for i in range(6)]


def rows_of(new: Sequence[Source]) -> torch.Tensor:
    """Rows that say which document they are of, and of which content."""
    return torch.cat([torch.full((s.passages, 4), float(s.name) + 100 * int(s.content)) for s in new])


def build(folder: Path, version: int) -> int:
    return Store(folder).build(sources(version), rows_of, {"encoder": version})


def save(folder: Path, version: int = 2) -> None:
    """Built in memory and written there."""
    store = Store()
    store.build(sources(version), rows_of, {"encoder": version})
    store.save(folder)


def content(folder: Path) -> list[list[float]]:
    """What a reader sees, all of it checked."""
    store = Store.open(folder)
    return [store.rows[where].tolist() for _, where in store.sources()]
