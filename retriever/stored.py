"""What every index over a store has in common."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from e2erag.retriever.index import Encode, Source
from e2erag.retriever.store import Store

_Kind = TypeVar("_Kind", bound="StoredIndex")


class StoredIndex:
    """What an index over a store takes from it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def vectors(self) -> Tensor:
        return self.store.rows

    @property
    def manifest(self) -> dict[str, Any]:
        return self.store.manifest

    def __len__(self) -> int:
        return len(self.store)

    def sources(self) -> Iterator[tuple[Source, slice]]:
        return self.store.sources()

    def add(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        return self.store.add(sources, rows)

    def update(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        return self.store.update(sources, rows)

    def delete(self, names: Sequence[str]) -> int:
        return self.store.delete(names)

    def save(self, folder: str | Path) -> None:
        self.store.save(folder)

    @classmethod
    def load(
        cls: type[_Kind], folder: str | Path, expect: Mapping[str, object] | None = None, verify: bool = True
    ) -> _Kind:
        return cls(Store.open(folder, expect, verify))
