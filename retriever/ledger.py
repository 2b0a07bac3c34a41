"""Which rows belong to which document, in SQLite: a change is one transaction, a reader sees all of it or nothing."""

import contextlib
import errno
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from e2erag.retriever.index import Source

_SCHEMA = """
CREATE TABLE version (id INTEGER PRIMARY KEY, manifest TEXT, dtype TEXT, dim INTEGER, rows INTEGER, whole INTEGER);
CREATE TABLE document (version INTEGER, name TEXT, content TEXT, start INTEGER, stop INTEGER,
    PRIMARY KEY (version, name)) WITHOUT ROWID;
CREATE TABLE dead (version INTEGER, start INTEGER, stop INTEGER);
CREATE TABLE part (version INTEGER, start INTEGER, stop INTEGER, sha256 TEXT);
CREATE TABLE structure (version INTEGER, kind TEXT, file TEXT, rows INTEGER, sha256 TEXT, PRIMARY KEY (version, kind));
"""

_FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


class StoreError(ValueError):
    """A folder isn't the index that was expected there. The text names the rule, what came and the way out."""


class ReplacedError(StoreError):
    """A newer version has taken a version's place, in one transaction, while that was looked at."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(f"a newer version has taken this one's place in {folder}: call reload() to see it")


class Version(NamedTuple):
    """Rows made in one way. Readers see the newest whole one; at most one is being built beside it.

    Attributes:
        manifest: what the rows were made with, as JSON.
        dtype, dim: of the rows; None as long as there are none.
        rows: how many count. A file may be longer, by what a killed process wrote.
    """

    id: int
    manifest: str
    dtype: str | None
    dim: int | None
    rows: int
    whole: bool


class Known(NamedTuple):
    """A stored document: its content's hash and its rows."""

    content: str
    start: int
    stop: int


class Ledger:
    """The documents of an index, in a file or in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        with self.explained():
            self.db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
            with self.transaction("BEGIN"):
                made = self.ask("SELECT 1 FROM sqlite_master WHERE name = 'structure'")
            if not made:
                with self.transaction("BEGIN EXCLUSIVE"):
                    if not self.ask("SELECT 1 FROM sqlite_master WHERE name = 'structure'"):
                        for statement in _SCHEMA.split(";"):
                            self.ask(statement)

    def ask(self, query: str, *values: Any) -> list[Any]:
        return self.db.execute(query, values).fetchall()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """All of the block or nothing. One writer at a time: another waits for up to a minute."""
        with self.explained():
            self.ask(begin)
            try:
                yield
                self.ask("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.ask("ROLLBACK")
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the disk with what they mean here."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._refused(error, errno.ENOSPC if "full" in str(error) else errno.EACCES) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} can't be read as an index' ledger ({error}): fetch the folder afresh or build it anew"
            ) from error
        except OSError as error:
            if error.errno in REFUSED and "stays as it was" not in str(error):
                raise self._refused(error, error.errno) from error
            raise

    def _refused(self, error: Exception, number: int) -> OSError:
        way_out = "check the folder's permissions, or save to another one"
        if number in _FULL:
            way_out = "make room" + self._spare()
        text = (
            f"an index must be writable, and this one isn't ({error}); what was there before stays as it was: {way_out}"
        )
        return OSError(number, text, str(self.path.parent if self.path else "memory"))

    def _spare(self) -> str:
        """What is begun and could be deleted to make room, and what that costs."""
        begun = []
        with contextlib.suppress(sqlite3.Error):
            begun = self.ask("SELECT id, rows FROM version WHERE NOT whole AND rows")
        if not self.path or not begun:
            return ""
        ((number, rows),) = begun
        return (
            f". {self.path.parent / f'rows-{number}.bin'} holds {rows:,} passages of a build that was begun, and "
            "build() goes on behind them; deleted, they are encoded again"
        )

    # ------------------------------------------------------------------------------------------------ versions

    def present(self) -> Version | None:
        """The version that readers see."""
        found = self.ask("SELECT * FROM version WHERE whole ORDER BY id DESC LIMIT 1")
        return Version(*found[0]) if found else None

    def begin(self, manifest: str, dtype: str, resume: bool, whole: bool = False) -> Version:
        """A version beside the present one: the one that was begun with this manifest (`resume`), or a new one."""
        with self.transaction():
            if resume and (begun := self.begun(manifest, dtype)):
                return begun
            for (other,) in self.ask("SELECT id FROM version WHERE NOT whole"):
                self._drop(other)
            number = 1 + (self.ask("SELECT max(id) FROM version")[0][0] or 0)
            version = Version(number, manifest, None, None, 0, whole)
            self.ask("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?)", *version)
        return version

    def begun(self, manifest: str, dtype: str) -> Version | None:
        """The version that was begun with this manifest and isn't whole."""
        query = "SELECT * FROM version WHERE NOT whole AND manifest = ? AND (dtype IS NULL OR dtype = ?)"
        found = self.ask(query, manifest, dtype)
        return Version(*found[0]) if found else None

    def looked(self) -> tuple[int, ...]:
        """The present version and how far it has come: documents that come are a part more, those that leave dead rows
        more."""
        count = "(SELECT count(*) FROM {0} WHERE {0}.version = version.id)"
        query = f"SELECT id, {count.format('part')}, {count.format('dead')} FROM version WHERE whole ORDER BY id DESC"
        return next(iter(self.ask(query + " LIMIT 1")), ())

    def publish(self, version: Version, looked: tuple[int, ...]) -> None:
        """From now on readers see this one, if the one that it replaces is still as it looked when this was begun."""
        with self.transaction():
            if not self.still(version).whole and self.looked() != looked:  # else another process published it
                raise self._changed()
            self.ask("UPDATE version SET whole = 1 WHERE id = ?", version.id)
            for (old,) in self.ask("SELECT id FROM version WHERE whole AND id != ?", version.id):
                self._drop(old)

    def _drop(self, version: int) -> None:
        self.ask("DELETE FROM version WHERE id = ?", version)
        for table in ("document", "dead", "part", "structure"):
            self.ask(f"DELETE FROM {table} WHERE version = ?", version)

    def files(self) -> set[str]:
        """Names of the files that some version needs."""
        rows = {f"rows-{number}.bin" for (number,) in self.ask("SELECT id FROM version")}
        return rows | {file for (file,) in self.ask("SELECT file FROM structure")}

    def structures(self, version: Version, kind: str | None) -> list[tuple[str, str, str]]:
        """Kind, file and SHA-256 of the search structures beside a version's rows; all, or those of one kind."""
        query = "SELECT kind, file, sha256 FROM structure WHERE version = ? AND (? IS NULL OR kind = ?)"
        return self.ask(query, version.id, kind, kind)

    def put_structure(self, version: Version, kind: str, file: str, rows: int, sha256: str) -> None:
        self.ask("INSERT OR REPLACE INTO structure VALUES (?, ?, ?, ?, ?)", version.id, kind, file, rows, sha256)

    # ------------------------------------------------------------------------------------------------ documents

    def known(self, version: Version | None, names: Sequence[str]) -> dict[str, Known]:
        """Those of these documents that a version holds."""
        query = "SELECT content, start, stop FROM document WHERE version = ? AND name = ?"
        found = {name: self.ask(query, version.id, name) for name in names} if version else {}
        return {name: Known(*rows[0]) for name, rows in found.items() if rows}

    def sources(self, version: Version) -> Iterator[tuple[Source, slice]]:
        """Documents in the order of their rows, and where these stand."""
        query = "SELECT name, content, start, stop FROM document WHERE version = ? ORDER BY start, stop"
        for name, content, start, stop in self.db.execute(query, (version.id,)):
            yield Source(name, content, stop - start), slice(start, stop)

    def dead(self, version: Version) -> Int[Tensor, " dead"]:
        """Rows that no document holds any more, ascending."""
        ranges = self.ask("SELECT start, stop FROM dead WHERE version = ? ORDER BY start", version.id)
        return torch.cat([torch.arange(*each) for each in ranges] or [torch.arange(0)])

    def still(self, version: Version, names: Sequence[str] = (), seen: dict[str, Known] | None = None) -> Version:
        """A version as it is now, if what was seen of these documents before still holds."""
        now = self.ask("SELECT * FROM version WHERE id = ?", version.id)
        if not now or self.known(version, names) != (seen or {}):
            raise self._changed()
        return Version(*now[0])

    def _changed(self) -> StoreError:
        return StoreError(f"another process has changed {self.path} meanwhile: let one write at a time, and call again")

    def forget(self, version: Version, known: dict[str, Known]) -> int:
        """Documents leave, their rows are dead."""
        for name, (_, start, stop) in known.items():
            self.ask("DELETE FROM document WHERE version = ? AND name = ?", version.id, name)
            self.ask("INSERT INTO dead VALUES (?, ?, ?)", version.id, start, stop)
        return sum(stop - start for _, start, stop in known.values())

    def append(self, now: Version, sources: Sequence[Source], dtype: str, dim: int, sha256: str) -> None:
        """These documents' rows stand behind the others."""
        stops = (now.rows + np.cumsum([source.passages for source in sources])).tolist()
        self.db.executemany(
            "INSERT INTO document VALUES (?, ?, ?, ?, ?)",
            [(now.id, s.name, s.content, stop - s.passages, stop) for s, stop in zip(sources, stops, strict=True)],
        )
        self.ask("INSERT INTO part VALUES (?, ?, ?, ?)", now.id, now.rows, stops[-1], sha256)
        self.ask("UPDATE version SET rows = ?, dtype = ?, dim = ? WHERE id = ?", stops[-1], dtype, dim, now.id)

    def cut(self, version: Version, documents: int) -> int:
        """Forget what stands behind the first documents, in whole parts: of the last one, so many go too as were
        written with others that go. Returns how many are left."""
        with self.transaction():
            now = self.still(version)
            there = list(self.sources(now))
            wanted = there[documents - 1][1].stop if documents else 0
            end = max((stop for _, stop, _ in self.parts(now) if stop <= wanted), default=0)
            left = sum(where.stop <= end for _, where in there[:documents])
            for source, _ in there[left:]:
                self.ask("DELETE FROM document WHERE version = ? AND name = ?", now.id, source.name)
            for table in ("part", "dead"):
                self.ask(f"DELETE FROM {table} WHERE version = ? AND stop > ?", now.id, end)
            self.ask("UPDATE version SET rows = ? WHERE id = ?", end, now.id)
        return left

    def parts(self, version: Version) -> list[tuple[int, int, str]]:
        """What was written together: first row, the row behind the last, SHA-256 of the bytes."""
        return self.ask("SELECT start, stop, sha256 FROM part WHERE version = ? ORDER BY start", version.id)


def as_manifest(entries: Any) -> str:
    """One text for equal entries."""
    return json.dumps(dict(entries or {}), sort_keys=True)
