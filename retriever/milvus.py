"""Search through Milvus: embedded in this process (Milvus Lite) or a cluster, by its URI alone (extra `milvus`)."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.retriever.index import Hits, Prior, Queries, check_queries
from e2erag.retriever.ledger import REFUSED, StoreError, Version
from e2erag.retriever.sampled import RESCORED, SampledIndex
from e2erag.retriever.store import Store

MOST = 16_384
"""Rows that Milvus gives a question at most."""
_UNREACHABLE = 2  # pymilvus' Status.CONNECT_FAILED, after the ten seconds that it tries for
_AT_ONCE = 4096  # rows a request: 6 MB at 385 components, and a request may have 64


class MilvusIndex(SampledIndex):
    """Search through Milvus over a store in a folder.

    Documents, hashes and versions stay the store's, and so do the rows that scores are computed from and log Z is
    estimated from (`SampledIndex.log_z`; exact log Z is what Milvus can't give). Milvus holds a float32 copy by row
    number, which follows the store at every search: rows added go there, rows that died leave. What a killed process
    has not sent, the next one does. A new version of the store gets a collection of its own; the one before stays for
    its readers.

    Milvus chooses its own structure (AUTOINDEX), so recall is its affair. Equal scores are ordered by row; which of
    them are among the K at its very edge is Milvus' choice.
    """

    def __init__(self, store: Store, uri: str | None = None, token: str = "", name: str = "") -> None:
        """
        Args:
            uri: of a cluster, "http://host:19530"; or a local file that ends in .db, for Milvus Lite, which one process
                at a time can open. By default such a file beside the rows.
            token: "user:password" or an API key, for a cluster; `IndexConfig(token_env=…)` reads it from the
                environment.
            name: what the collections' names begin with: the store's own in a cluster, where replaced ones are dropped.
        """
        if store.folder is None:
            raise ValueError("Milvus' copy follows rows on a disk: give the Store a folder, or use ExactIndex")
        if uri is not None and not name:
            raise ValueError("a Milvus that several stores may use needs a name for each: give this one its own")
        super().__init__(store)
        self.uri, self.token, self.name = uri or str(store.folder / "milvus.db"), token, name or "rows"
        self._client: Any = None  # of pymilvus, which is imported when first needed
        self._collection, self._version = "", -1
        self._sent = 0
        self._gone = torch.arange(0)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        expect: Mapping[str, object] | None = None,
        verify: bool = True,
        *,
        uri: str | None = None,
        token: str = "",
        name: str = "",
    ) -> "MilvusIndex":
        """As `Index.load`; the rows are sent to that Milvus with the first search, under a name that no other index has
        there."""
        return cls(Store.open(folder, expect, verify), uri, token, name)

    def search(self, queries: Queries, k: int, prior: Prior | None = None) -> Hits:
        """See `Index.search`. What is found, with a prior four times as much and what that lifts, is scored anew from
        the stored rows.

        Raises:
            OSError: the disk has no room for Milvus Lite's copy, or it can't be written to; the rows stay as they were,
                and the next search goes on from there.
        """
        check_queries(self, queries, k, prior)
        k = min(k, len(self))
        if k > MOST:
            raise ValueError(f"k must be at most Milvus' {MOST:,}, got {k:,}: ask for fewer, or use ExactIndex")
        with self._explained():
            self._follow()
            ids = self._found(queries, k if prior is None else min(k * RESCORED, len(self), MOST))
        if ids.shape[1] < k:
            ids = F.pad(ids, (0, k - ids.shape[1]), value=-1)
        return self._anew(queries, ids, k, prior)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the disk, which Milvus gives as a text in its own, and of the way to it, with what they mean."""
        with self.store.ledger.explained():
            self._check_writable()
            try:
                yield
            except ConnectionError:
                raise
            except Exception as error:
                number = re.search(r"message=\[Errno (\d+)\]", str(error))
                if number and (self._embedded or int(number[1]) in REFUSED):
                    raise self._unwritten(int(number[1]), str(error).strip()) from error
                if getattr(error, "code", None) == _UNREACHABLE:
                    self._client, self._version = None, -1  # one that is back has to load its collections
                    raise _silent(self.uri, error) from error
                if self._embedded and self.uri in str(error):  # a file of its copy
                    raise StoreError(
                        f"Milvus Lite's copy can't be read: delete {self.uri}, and the rows are sent again ({error})"
                    ) from error
                raise

    @property
    def _embedded(self) -> bool:
        """Whether it is Milvus Lite in this process, over a file."""
        return self.uri.endswith(".db")

    def _check_writable(self) -> None:
        """Refuse a folder that Milvus Lite, which locks its file and writes where it reads, can't open."""
        if not self._embedded or self._client is not None:
            return
        file = Path(self.uri)
        place = file if file.exists() else file.parent
        if place.exists() and not os.access(place, os.W_OK):
            raise OSError(
                errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES,
                f"Milvus Lite's file must be writable, even to be searched, and {place} isn't; the rows are whole and "
                "what was there before stays as it was: load them with ExactIndex or FaissIndex, copy the folder to "
                "where it can be written, or give the uri of a Milvus elsewhere",
                self.uri,
            )

    def _unwritten(self, number: int, message: str) -> OSError:
        """What an error of the disk means, here or of a Milvus Lite that serves elsewhere."""
        if self._embedded:
            return OSError(number, os.strerror(number), self.uri)
        text = (
            f"Milvus must have room and leave to write, and this one hasn't ({message}); the rows here are whole, and "
            "what was there before stays as it was: mend it there, and search again"
        )
        return OSError(number, text, self.uri)

    def _found(self, queries: Queries, limit: int) -> Int[Tensor, "questions found"]:
        """Rows, each alive and known to this process, the rest −1; asked anew where another process has put others."""
        if not len(queries):  # which Milvus refuses
            return torch.full((0, limit), -1)
        vectors, known = list(queries.detach().cpu().float().numpy()), ""
        while True:
            found = self._client.search(
                self._collection, data=vectors, limit=limit, filter=known, search_params={"metric_type": "IP"}
            )
            ids = torch.full((len(queries), max(map(len, found))), -1)
            for question, hits in enumerate(found):
                ids[question, : len(hits)] = torch.tensor([hit["row"] for hit in hits], dtype=torch.long)
            if (ids >= len(self.vectors)).any():  # added meanwhile
                known = f"row < {len(self.vectors)}"
            elif torch.isin(ids, self.store.dead).any():  # sent again by one that didn't know
                self._delete(self.store.dead)
            else:
                return ids

    def _follow(self) -> None:
        """Bring Milvus to what the store holds."""
        self._client = self._client or _connected(self.uri, self.token)
        version = self.store.version
        assert version is not None  # a search has checked that there are rows
        if self._version != version.id:
            self._open(self._name(version), version.id)
        alive = torch.ones(len(self.vectors), dtype=torch.bool)
        alive[self.store.dead] = False
        for rows in (alive[self._sent :].nonzero()[:, 0] + self._sent).split(_AT_ONCE):
            vectors = self.vectors[rows].float().numpy()
            pairs = zip(rows.tolist(), vectors, strict=True)
            self._client.upsert(self._collection, [{"row": row, "vector": vector} for row, vector in pairs])
        self._delete(self.store.dead[~torch.isin(self.store.dead, self._gone)])
        self._sent, self._gone = len(alive), self.store.dead

    def _delete(self, dead: Int[Tensor, " dead"]) -> None:
        for rows in dead.split(_AT_ONCE) if len(dead) else ():
            self._client.delete(self._collection, ids=rows.tolist())

    def _name(self, version: Version) -> str:
        """The collection of this version, by what it begins with."""
        parts = self.store.ledger.parts(version)
        if not parts:
            raise StoreError(
                f"a newer version has taken this one's place in {self.store.folder}: call reload() to search it"
            )
        *_, sha256 = parts[0]
        mark = hashlib.sha256(f"{sha256} {version.manifest} {version.dtype}".encode()).hexdigest()[:16]
        return f"{self.name}_{version.id}_{mark}"

    def _open(self, name: str, present: int) -> None:
        """Its collection, and how far it has come: rows are sent in order, so that the highest there says it."""
        mine = re.compile(rf"{re.escape(self.name)}_(\d+)_[0-9a-f]{{16}}")
        versions = {found[0]: int(found[1]) for found in map(mine.fullmatch, self._client.list_collections()) if found}
        new = name not in versions
        if new:
            self._create(name)
        self._client.load_collection(name)
        low, high = 0, len(self.vectors)  # rows from `low` on may be there, from `high` on none is
        while low < high:
            middle = (low + high) // 2
            if self._client.query(name, filter=f"row >= {middle}", limit=1, output_fields=["row"]):
                low = middle + 1
            else:
                high = middle
        self._collection, self._version, self._gone = name, present, self.store.dead
        if not new:  # of a new collection's rows none can have died in it
            self._delete(self.store.dead)
        # The last request may have come in part; what else is missing, its files have lost: then all are sent again.
        self._sent = next((sent for sent in (low, max(0, low - _AT_ONCE)) if self._complete(sent)), 0)
        older = sorted((other for other in versions if versions[other] < present), key=versions.__getitem__)
        for other in older[:-1]:
            self._client.drop_collection(other)

    def _complete(self, sent: int) -> bool:
        """Whether all rows before this one that are alive are there."""
        found = self._client.query(self._collection, filter=f"row < {sent}", output_fields=["count(*)"])
        return int(found[0]["count(*)"]) == sent - int((self.store.dead < sent).sum())

    def _create(self, name: str) -> None:
        from pymilvus import DataType, MilvusClient

        if self._embedded:  # what was half made is not listed, and Milvus Lite refuses to make it again
            shutil.rmtree(Path(self.uri, "collections", name), ignore_errors=True)
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.vectors.shape[1])
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        # Strong: a search sees every row that was sent and none that was deleted.
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _connected(uri: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise ImportError("MilvusIndex needs pymilvus: pip install 'e2erag[milvus]'") from error
    try:
        return MilvusClient(uri, token=token)
    except MilvusException as error:
        raise _silent(uri, error) from error


def _silent(uri: str, error: Exception) -> ConnectionError:
    way_out = (
        "check that its folder can be written to and has room, and that no other process has the file open"
        if uri.endswith(".db")
        else "start it, or give another uri and token"
    )
    return ConnectionError(f"Milvus must answer at {uri}: {way_out} ({error})")
