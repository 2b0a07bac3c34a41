"""Which index serves a system: where its rows lie, and how they are searched."""

import os
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock

from e2erag.retriever.approximate import KINDS, FaissIndex, choose
from e2erag.retriever.exact import ExactIndex
from e2erag.retriever.index import Index
from e2erag.retriever.milvus import MilvusIndex
from e2erag.retriever.store import DTYPES, Store

ASIDE = ".aside"
"""Where an index lies that is for a while, in the folder of the one that stays."""
SEARCHES = ("exact", "auto", *KINDS, "milvus")


@dataclass(frozen=True)
class IndexConfig:
    """Where an index lies, and how it is searched.

    Attributes:
        kind: "exact" sees every row; a structure of faiss ("Flat", "HNSW", "IVF", "SQ", "PQ"), or one chosen by size
            ("auto"); "milvus".
        folder: where rows are written while they are made, so that a build that was killed goes on where it was, and
            memory holds a batch at a time; training makes its own in it. None: in memory, which only exact search does.
        dtype: rows are stored in.
        uri: of a Milvus cluster; None: Milvus Lite beside the rows.
        name: what collections in a cluster are called by.
        token_env: the environment variable that holds the cluster's token ("user:password", or an API key). What is
            saved is this name, and never the token.
    """

    kind: str = "exact"
    folder: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    uri: str | None = None
    name: str = ""
    token_env: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in SEARCHES:
            raise ValueError(f"an index' kind is one of {', '.join(SEARCHES)}, got {self.kind!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"an index' dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.uri is not None and urlsplit(self.uri).username is not None:
            raise ValueError(
                "uri is saved and shown and must hold no user, and this one does: name an environment variable in "
                "token_env, and export the token there"
            )
        if self.token_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.token_env):
            raise ValueError(
                "token_env is the name of an environment variable in capitals, such as MILVUS_TOKEN; what came is "
                "none, and isn't shown, for it may be the token: export that, and give the variable's name"
            )
        if self.token_env is not None and self.uri is None:
            raise ValueError("token_env is for a Milvus cluster, and no uri came: give the cluster's, or leave it out")
        if self.uri is not None and self.kind != "milvus":
            raise ValueError(f"uri={self.uri!r} is of a Milvus, and the index' kind is {self.kind!r}: set it to milvus")
        if self.uri is not None and not self.name:
            raise ValueError("a Milvus that several indexes may use needs a name for each: give IndexConfig its name")

    @property
    def structure(self) -> str | None:
        """What a structure of faiss is asked for by: its kind; None for any."""
        return None if self.kind == "auto" else self.kind

    def structure_bytes(self, rows: int, dim: int) -> int:
        """Of the structure of faiss, or of Milvus Lite's copy, that is made beside so many rows."""
        if self.kind == "milvus":
            return 0 if self.uri is not None else rows * dim * 4  # at least
        kind = choose(rows, dim)[0] if self.kind == "auto" else self.kind
        return int(rows * KINDS[kind].bytes(dim)) if kind in KINDS else 0

    def check_place(self) -> None:
        """Refuse to search memory where this kind searches what stands beside rows on a disk."""
        if self.kind != "exact" and self.folder is None:
            raise ValueError(
                f"an index of kind {self.kind!r} follows rows on a disk: give IndexConfig a folder, or take 'exact'"
            )

    def aside(self, kind: str) -> "IndexConfig":
        """Of another kind, for a while: in a folder in this one's, or in memory where this is."""
        return IndexConfig(kind, None if self.folder is None else str(Path(self.folder) / ASIDE), self.dtype)

    def waiting(self) -> AbstractContextManager[Any]:
        """Of processes that load into the same folder one does, and the others wait, and find it there."""
        if self.folder is None:
            return nullcontext()
        Store(self.folder)  # makes the folder, or says why it can't be one
        return FileLock(Path(self.folder) / ".loading")

    def placed(self, index: ExactIndex) -> Index:
        """What is stored in a folder, searched as this says: there, or from a copy in a folder of its own."""
        if self.folder is not None:
            return self.over(self._copied(index, Path(self.folder)))
        if self.kind == "milvus" and self.uri is None:
            raise ValueError(
                "Milvus Lite keeps its file beside rows that it may change, and a saved system's may not: give "
                "IndexConfig a folder (or the uri of a cluster)"
            )
        if self.kind not in ("exact", "milvus") and not index.store.has_structure(self.structure):
            raise ValueError(
                f"this system was saved without a structure of kind {self.kind!r}, and stays as it was saved: give "
                "IndexConfig a folder, where it is built"
            )
        return self.over(index.store)

    def _copied(self, index: ExactIndex, folder: Path) -> Store:
        """These rows in this folder, and a structure that stands beside them; nothing where they are there already."""
        there = Store(folder)
        if there.manifest == {**index.manifest, "dtype": self.dtype}:
            return there
        if there.version is not None:
            warnings.warn(f"{folder} held another index, which is replaced", stacklevel=4)
        source = self.over(index.store)
        if (
            isinstance(source, FaissIndex)
            and index.manifest["dtype"] == self.dtype
            and index.store.has_structure(self.structure)
        ):
            source.save(folder)
        else:
            index.store.save(folder, DTYPES[self.dtype])
        return Store.open(folder, verify=False)

    def owned(self, index: Index) -> Index:
        """The same index where it may change: in the folder that this names, else in memory."""
        store = getattr(index, "store", None)
        if store is None or store.folder is None or self.folder is not None:
            return index
        if self.kind != "exact":
            raise RuntimeError(
                f"this index of kind {self.kind!r} lies in a saved system, which stays as it was saved: load it with "
                'RAG.from_pretrained(…, index=IndexConfig(kind, folder="…")), which copies it there, and change that'
            )
        sources = [source for source, _ in store.sources()]  # of all rows: what is saved has no dead ones
        rows = store.read(0, len(store.rows))  # not through the mapping, whose pages would stand beside them
        return ExactIndex.of(rows, sources, store.manifest, store.rows.dtype)

    def over(self, store: Store) -> Index:
        """Search of this kind over these rows."""
        if self.kind == "exact":
            return ExactIndex(store)
        if self.kind == "milvus":
            return MilvusIndex(store, self.uri, self._token(), self.name)
        return FaissIndex(store, self.structure)

    def _token(self) -> str:
        """The cluster's token, out of the environment as it is now."""
        token = "" if self.token_env is None else os.environ.get(self.token_env, "")
        if self.token_env is not None and not token:
            raise ValueError(
                f"{self.token_env} must hold the Milvus cluster's token, and is empty or not set: export it"
            )
        return token
