"""Rows by document, in memory or in a folder that a kill at any moment leaves whole.

A folder holds

    ledger.sqlite   which rows belong to which document, with hashes; every change is one transaction
    rows-N.bin      the rows of version N, one after the other, as they lie in memory

1. Rows are appended behind the count that the ledger states and flushed to the disk; then the ledger states them. What
   a killed process wrote behind that count is written over by the next one.
2. A new version is built beside the one that readers use. What is done of it stays: a build that was killed goes on
   behind the last batch it finished.
3. A whole version takes the place of the old one in one transaction. A reader keeps the file that it has mapped.
4. A deleted document's rows stay, dead, until the next save or build.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from e2erag.extract.readers.source import sha256 as sha256_of
from e2erag.retriever.index import Encode, Source, check_rows, check_sources, fingerprint_of
from e2erag.retriever.ledger import Known, Ledger, ReplacedError, StoreError, Version, as_manifest
from e2erag.retriever.table import Table, as_stored

LEDGER = "ledger.sqlite"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_AT_ONCE = 1 << 16  # rows copied at a time


class Store:
    """Rows by document.

    Attributes:
        version: what of the ledger is seen; None where nothing whole is there yet.
        rows: every row, dead ones too; mapped from the file where there is a folder.
        dead: numbers of the rows that no document holds any more, ascending.
    """

    def __init__(self, folder: str | Path | None = None, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            folder: where the rows lie; made if it isn't there. None: in memory.
            dtype: of a new version's rows: float32, float16 or bfloat16.
        """
        self.folder, self.dtype = None if folder is None else Path(folder), _name(dtype)
        self._held: dict[int, Table] = {}
        self._corpus: str | None = None  # of the version that is seen, once it is asked for
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise StoreError(
                    f"an index lies in a folder, and {self.folder} is or lies in a file: name another"
                ) from None
        self.ledger = Ledger(self.folder and self.folder / LEDGER)
        self.reload()

    @classmethod
    def open(cls, folder: str | Path, expect: Mapping[str, object] | None = None, verify: bool = True) -> "Store":
        """A store that is there.

        Args:
            expect: manifest entries that must be as given; others aren't looked at.
            verify: read everything and compare hashes; else sizes only.

        Raises:
            StoreError: nothing whole is there, it has changed, or it was made with something else.
        """
        folder = Path(folder)
        if not (folder / LEDGER).is_file():
            raise StoreError(f"{folder} must hold {LEDGER}, and doesn't: check the path, or build the index there")
        store = cls(folder)
        if store.version is None:
            raise StoreError(f"{folder} holds no whole index, only one begun: call build() again, which goes on there")
        try:
            made_with = store._described() if expect else {}
            for key, value in (expect or {}).items():
                if (there := made_with.get(key)) != value:
                    raise StoreError(
                        f"the index in {folder} was made with another {key} ({there!r} there, {value!r} here), so new "
                        "queries don't fit its rows: call build() with this one, or load what it was made with"
                    )
            if verify:
                store.verify()
        except ReplacedError:  # between the two looks
            return cls.open(folder, expect, verify)
        return store

    # ------------------------------------------------------------------------------------------------ reading

    def reload(self) -> None:
        """See what other processes have written since."""
        for _ in range(100):
            with self.ledger.transaction("BEGIN"):
                version = self.ledger.present()
                dead = self.ledger.dead(version) if version else torch.arange(0)
            try:
                rows = self._map(version)
                break
            except FileNotFoundError:  # a newer version has taken its place between the two looks
                time.sleep(0.01)
        else:
            raise StoreError(f"{self.folder} lacks a file that its ledger names: fetch it afresh or build it anew")
        self.version, self.rows, self.dead, self._corpus = version, rows, dead, None

    @property
    def manifest(self) -> dict[str, Any]:
        """What the rows were made with: hashes of weights, tokenizer, prompts, …; and a hash of the documents
        (`corpus`; left out where a newer version has taken its place before it was asked for), dtype and count."""
        try:
            return self._described()
        except ReplacedError:
            return self._described(corpus=False)

    def _described(self, corpus: bool = True) -> dict[str, Any]:
        if self.version is None:
            return {}
        made_with = json.loads(self.version.manifest)
        if corpus and self._corpus is None:
            self._corpus = fingerprint_of(source for source, _ in self.sources())
        made_with |= {"corpus": self._corpus} if self._corpus else {}
        return {**made_with, "dtype": self.version.dtype, "count": len(self)}

    def __len__(self) -> int:
        return len(self.rows) - len(self.dead)

    def sources(self) -> Iterator[tuple[Source, slice]]:
        """Documents in the order of their rows, and where these stand."""
        each = None
        for each in self.ledger.sources(self.version) if self.version else ():
            yield each
        if len(self) and each is None:
            raise ReplacedError(self.folder)

    def verify(self) -> None:
        """Read every row and compare it with the hash taken when it was written."""
        parts = self.ledger.parts(self.version) if self.version else []
        if self.folder is not None and len(self) and not parts:
            raise ReplacedError(self.folder)
        for start, stop, sha256 in parts:
            if _sha256(self.rows[start:stop]) != sha256:
                raise StoreError(
                    f"rows {start} to {stop} in {self.folder} have changed since they were written: fetch the folder "
                    "afresh or build it anew"
                )

    def read(self, start: int, stop: int) -> Tensor:
        """A copy of some rows, read past the mapping: what is read once isn't kept in memory."""
        if self.folder is None:
            return self.rows[start:stop]
        assert self.version is not None  # else there are no rows to read
        width = self.rows.shape[1] * self.rows.element_size()
        try:
            data = np.fromfile(self._file(self.version), np.uint8, (stop - start) * width, offset=start * width)
        except FileNotFoundError:  # replaced, and still mapped
            return self.rows[start:stop].clone()
        return torch.from_numpy(data).view(self.rows.dtype).view(stop - start, self.rows.shape[1])

    def has_structure(self, kind: str | None) -> bool:
        """Whether `structure` would find one, without reading it."""
        return self.version is not None and bool(self.ledger.structures(self.version, kind))

    def structure(self, kind: str | None) -> tuple[str, Path] | None:
        """A search structure stored beside the rows (any, or of this kind), once its hash has been compared; None where
        there is none, or its file was deleted."""
        assert self.folder is not None  # a structure stands beside rows on a disk
        assert self.version is not None
        found = self.ledger.structures(self.version, kind)
        if not found:
            return None
        name, file, sha256 = found[0]
        try:
            there = sha256_of(self.folder / file)
        except FileNotFoundError:
            now = self.ledger.present()
            if now is None or now.id != self.version.id:
                raise ReplacedError(self.folder) from None
            return None
        if there != sha256:
            raise StoreError(f"{self.folder / file} has changed since it was written: delete it, and it is built again")
        return name, self.folder / file

    def put_structure(self, kind: str, rows: int, write: Callable[[Path], None]) -> None:
        """Store a search structure over the first `rows` rows: written aside, flushed, renamed, and then stated."""
        assert self.folder is not None  # a structure stands beside rows on a disk
        assert self.version is not None
        path = self.folder / f"{kind}-{self.version.id}.faiss"
        partial = path.with_suffix(f".faiss-{os.getpid()}")
        with self.ledger.explained():
            try:
                write(partial)
                sha256 = sha256_of(partial)
                _flush(partial)
                with self.ledger.transaction():  # in which no other process states another's hash
                    now = self.ledger.still(self.version)
                    os.replace(partial, path)
                    _flush(self.folder)  # the file's name, before it is stated
                    self.ledger.put_structure(now, kind, path.name, rows, sha256)
            finally:
                partial.unlink(missing_ok=True)

    def _map(self, version: Version | None) -> Tensor:
        if version is None or version.dtype is None or version.dim is None:
            return torch.empty(0, 0)
        if self.folder is None:
            return self._held[version.id].first(version.rows)
        if not version.rows:  # nothing can't be mapped
            return torch.empty(0, version.dim, dtype=DTYPES[version.dtype])
        path, dtype = self._file(version), DTYPES[version.dtype]
        if path.stat().st_size < version.rows * version.dim * dtype.itemsize:
            raise StoreError(f"{path} is shorter than its ledger states: fetch the folder afresh or build it anew")
        # mode "c": private to this process, and a missing file is a FileNotFoundError (torch.from_file's has no type)
        data = np.memmap(path, np.uint8, "c", shape=(version.rows * version.dim * dtype.itemsize,))
        return torch.from_numpy(data).view(dtype).view(version.rows, version.dim)

    def _file(self, version: Version) -> Path:
        assert self.folder is not None  # in memory there are no files
        return self.folder / f"rows-{version.id}.bin"

    # ------------------------------------------------------------------------------------------------ writing

    def add(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        """See `Index.add`."""
        return self._put(self._open_version(), sources, rows, replace=False)

    def update(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        """See `Index.update`."""
        return self._put(self._open_version(), sources, rows, replace=True)

    def delete(self, names: Sequence[str]) -> int:
        """See `Index.delete`."""
        version = self._open_version()
        with self.ledger.transaction():
            known = self.ledger.known(version, names)
            for name in names:
                if name not in known:
                    raise KeyError(f"{name!r} is not indexed, so it can't be deleted: sources() lists what is")
            gone = self.ledger.forget(version, known)
        self.reload()
        return gone

    def build(
        self,
        batches: Iterable[Sequence[Source]],
        encode: Encode,
        manifest: Mapping[str, object] | None = None,
    ) -> int:
        """Write a new version batch by batch, rows in the order given, and put it in the old one's place when it is
        whole.

        Killed, the same call goes on behind the last batch that was done; a call with other documents goes on as far as
        both agree. Documents that the present version holds with the same content, made with the same manifest, are
        copied and not encoded. What another process changes in it meanwhile is refused at the end, and nothing is lost.

        Args:
            batches: documents, a few thousand passages at a time: what memory holds, and what a kill can lose.

        Returns:
            The passages that were encoded.
        """
        looked = self.ledger.looked()
        version = self.ledger.begin(as_manifest(manifest), self.dtype, resume=True)
        if self.folder is not None and version.rows and not self._file(version).exists():  # deleted, to make room
            self.ledger.cut(version, 0)
        self._sweep()
        old, encoded = self._made_with(version.manifest), 0

        def rows_of(sources: Sequence[Source]) -> Tensor:
            nonlocal encoded
            known = self.ledger.known(old, [source.name for source in sources])
            wanted = _other(sources, known)
            encoded += sum(source.passages for source in wanted)
            there = {s: slice(*known[s.name][1:]) for s in set(sources).difference(wanted)}
            return beside(sources, there, self.rows, encode)

        # What a killed call has begun, and how far into it this one names the same documents in the same order.
        begun, agreed = [source for source, _ in self.ledger.sources(version)], 0
        seen: set[str] = set()
        for sources in batches:
            seen.update(check_sources(sources, seen))
            ahead = begun[agreed : agreed + len(sources)]
            same = _alike(sources, ahead)
            agreed += same
            if same < len(ahead):  # from here on all is new, and so are those that were written in a part with others
                kept = self.ledger.cut(version, agreed)
                sources, begun = [*begun[kept : agreed - same], *sources], []
            self._put(version, sources, rows_of, replace=True)
        if agreed < len(begun):
            kept = self.ledger.cut(version, agreed)
            self._put(version, begun[kept:agreed], rows_of, replace=True)
        self._publish(version, looked)
        return encoded

    def remove(self) -> None:
        """The folder and all in it; not to be used again."""
        assert self.folder is not None
        self.ledger.db.close()
        (self.folder / LEDGER).unlink()  # first: a ledger never names what isn't there
        shutil.rmtree(self.folder)

    def left(
        self, sources: Sequence[Source], manifest: Mapping[str, object] | None = None
    ) -> tuple[list[Source], list[Source]]:
        """What a build of these documents still has to write, and what of that it has to encode."""
        begun = self.ledger.begun(as_manifest(manifest), self.dtype)
        done = [source for source, _ in self.ledger.sources(begun)] if begun else []
        rest = list(sources[_alike(sources, done) :])
        known = self.ledger.known(self._made_with(as_manifest(manifest)), [source.name for source in rest])
        return rest, _other(rest, known)

    def _made_with(self, manifest: str) -> Version | None:
        """The version that is seen, if its rows are what would be made now."""
        return self.version if self.version and self.version[1:3] == (manifest, self.dtype) else None

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """See `Index.save`; in another dtype if one is given."""
        if self.version is None or not len(self):
            raise ValueError("an index needs at least one passage, got none: add documents before it is saved")
        target = Store(folder, dtype or self.rows.dtype)
        looked = target.ledger.looked()
        version = target.ledger.begin(self.version.manifest, target.dtype, resume=False)
        target._sweep()
        for batch in _batches(self.sources()):
            rows = torch.cat([self.rows[where] for _, where in batch]) if len(batch) > 1 else self.rows[batch[0][1]]
            target._put(version, [source for source, _ in batch], rows, replace=False)
        target._publish(version, looked)

    def _open_version(self) -> Version:
        """The version that readers see, as it is now; an empty one where there is none."""
        self.reload()
        return self.version or self.ledger.begin("{}", self.dtype, resume=False, whole=True)

    def _put(self, version: Version, sources: Sequence[Source], rows: Tensor | Encode, replace: bool) -> int:
        """Append what isn't there with the same content: the whole batch or nothing."""
        names = check_sources(sources)
        known = self.ledger.known(version, names)
        same = {s.name for s in sources if s.content and s.name in known and known[s.name].content == s.content}
        stale = {name: there for name, there in known.items() if name not in same}
        if stale and not replace:
            raise ValueError(
                f"{next(iter(stale))!r} is indexed already with other content: call update() to replace it"
            )
        new = [source for source in sources if source.name not in same]
        if not new:
            return 0
        given = rows if isinstance(rows, Tensor) else rows(new)
        check_rows(given, sources if isinstance(rows, Tensor) else new)
        parts = [given]
        if isinstance(rows, Tensor) and same:
            each = given.split([source.passages for source in sources])
            parts = [part for source, part in zip(sources, each, strict=True) if source.name not in same]
        with self.ledger.transaction():
            now = self.ledger.still(version, names, known)
            self.ledger.forget(version, stale)
            sha256 = self._append(now, parts)
            self.ledger.append(now, new, now.dtype or self.dtype, given.shape[1], sha256)
        if self.version is None or self.version.id == version.id:
            self.reload()
        return sum(map(len, parts))

    def _append(self, version: Version, parts: Sequence[Tensor]) -> str:
        """Behind the rows that count, flushed, before the ledger states them. Returns the hash of what is in a file."""
        dim, dtype = parts[0].shape[1], DTYPES[version.dtype or self.dtype]
        if version.dim not in (None, dim):
            raise ValueError(f"rows must have the stored {version.dim} components, got {dim}: another encoder?")
        blocks = as_stored(parts, dtype)
        if self.folder is None:
            self._hold(version, parts, blocks)
            return ""
        sha256, descriptor = hashlib.sha256(), os.open(self._file(version), os.O_RDWR | os.O_CREAT, 0o644)
        counted = version.rows * dim * dtype.itemsize
        try:
            with open(descriptor, "r+b", closefd=False) as file:
                file.seek(counted)
                for block in map(_bytes, blocks):
                    file.write(block)
                    sha256.update(block)
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, counted)  # what doesn't count shall not fill the disk
            raise
        finally:
            os.close(descriptor)
        return sha256.hexdigest()

    def _hold(self, version: Version, parts: Sequence[Tensor], blocks: Iterable[Tensor]) -> None:
        """In memory: the first rows of a build where they lie, if that is how they are stored, others copied."""
        first, dtype = parts[0].detach(), DTYPES[version.dtype or self.dtype]
        as_they_lie = first.dtype == dtype and first.device.type == "cpu" and first.is_contiguous()
        if not version.rows and not version.whole and len(parts) == 1 and as_they_lie:
            for _ in blocks:  # which are checked
                pass
            self._held[version.id] = Table(first)
            return
        if not version.rows:
            self._held[version.id] = Table(torch.empty(0, first.shape[1], dtype=dtype))
        start = version.rows
        for block in blocks:
            self._held[version.id].put(start, block)
            start += len(block)

    def _publish(self, version: Version, looked: tuple[int, ...]) -> None:
        now = self.ledger.still(version)
        if not now.rows:
            raise ValueError("an index needs at least one passage, got none: were any documents read?")
        if self.folder is not None:
            _flush(self.folder)  # the new file's name, before it is the one that counts
        self.ledger.publish(version, looked)
        self.reload()
        self._sweep()

    def _sweep(self) -> None:
        """Remove files that no version needs: of those replaced, and what killed processes left."""
        needed = self.ledger.files()
        if self.folder is None:
            self._held = {n: rows for n, rows in self._held.items() if f"rows-{n}.bin" in needed}
            return
        for path in [*self.folder.glob("rows-*.bin"), *self.folder.glob("*.faiss*")]:
            if path.name not in needed:
                path.unlink(missing_ok=True)


def _batches(sources: Iterable[tuple[Source, slice]]) -> Iterator[list[tuple[Source, slice]]]:
    """Documents in portions of about `_AT_ONCE` rows."""
    batch: list[tuple[Source, slice]] = []
    held = 0
    for each in sources:
        batch.append(each)
        held += each[0].passages
        if held >= _AT_ONCE:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def beside(
    sources: Sequence[Source], known: Mapping[Source, slice], rows: Float[Tensor, "known _"], encode: Encode
) -> Float[Tensor, "rows _"]:
    """The rows of these documents: those that are known copied, the others encoded."""
    new = [source for source in sources if source not in known]
    fresh = encode(new) if new else rows[:0]
    check_rows(fresh, new)
    if len(new) == len(sources):
        return fresh
    encoded = iter(fresh.to(rows).split([source.passages for source in new])) if new else iter(())
    return torch.cat([rows[known[source]] if source in known else next(encoded) for source in sources])


def _alike(now: Sequence[Source], then: Sequence[Source]) -> int:
    """How many of these stand first in both, with a content to know them by."""
    pairs = enumerate(zip(now, then, strict=False))
    return next((i for i, (a, b) in pairs if a != b or not a.content), min(len(now), len(then)))


def _other(sources: Sequence[Source], known: Mapping[str, Known]) -> list[Source]:
    """Those that aren't known with the same content."""
    return [s for s in sources if not s.content or s.name not in known or known[s.name].content != s.content]


def _name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"rows are stored as one of {', '.join(DTYPES)}, got {name}")
    return name


def _bytes(rows: Tensor) -> memoryview:
    return rows.contiguous().flatten().view(torch.uint8).numpy().data


def _sha256(rows: Tensor) -> str:
    return hashlib.sha256(_bytes(rows)).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
