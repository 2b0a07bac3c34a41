"""Reads files, folders and patterns of them: one after the other out of `stream`, all of them with `read_many`.

Files are read in processes of their own (`worker`), each with a limit of time and of memory, so that neither a broken
nor a hostile file stops the others, or who asked for them.
"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from e2erag.extract.cache import Cache
from e2erag.extract.document import Document, ReadError
from e2erag.extract.pack import pack, unpack
from e2erag.extract.read import attempt, find
from e2erag.extract.readers.ocr import available as ocr_available
from e2erag.extract.readers.pdf import engine_or_default, warn_of_fallback
from e2erag.extract.readers.source import sha256
from e2erag.extract.report import Report
from e2erag.extract.worker import Answer, Worker

SECONDS = 60.0  # for a file, and as much again for every `SCALE` bytes of it
SECONDS_OCR = 300.0  # where scans are recognised, which takes some seconds per page, and more on a busy machine
SCALE = 1_000_000  # 20 scanned pages, or several hundred printed ones
MEMORY = 2 << 30

AHEAD = 4  # files per worker that are begun before the first of them is taken
WAKE = 0.2  # seconds; how soon Ctrl-C is seen at the latest

_PASSES = "OCR failed on it"  # for want of memory, say, which is none of the file's

_Found = Document | ReadError
Paths = str | Path | Iterable[str | Path]


class Stream(Iterator[_Found]):
    """Documents in the order of their files, and in the place of a file that can't be read its error.

    `report` counts what has come so far. Processes run until the last file has come, or until `close`, which the end of
    a `with` block calls, and the end of a `for` loop that was left early.
    """

    def __init__(self, items: Callable[[Report], Iterator[_Found]]) -> None:
        self.report = Report()
        self._items = items(self.report)

    def __next__(self) -> _Found:
        return next(self._items)

    def close(self) -> None:
        """End what is under way."""
        self._items.close()  # type: ignore[attr-defined]  # a generator

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def stream(
    paths: Paths,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    engine: str | None = None,
    seconds: float | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Stream:
    """Read the files that `paths` names (see `find`), a few ahead of what is taken, never all of them at once.

    Args:
        paths: a file, a folder, a glob pattern, or an iterable of these.
        workers: processes to read in. None is one per core, and no more than files; 0 is none, and no limits.
        cache: a folder that keeps what was read, by the file's bytes and its reader; None keeps nothing.
        engine: what reads PDFs, as in `read`.
        seconds: that reading a file may take, and again for every MB of it; None is 60 where
            there are workers, and 300 where these recognise scans.
        memory: bytes that a worker may have (Windows bounds only its time); None is 2 GB where there are workers.
        progress: whether a terminal shows how far it is.

    Raises:
        ValueError, ImportError: a limit that bounds nothing, or there is no such engine.
        OSError: the cache's folder can't be made.
        RuntimeError: no process could be started.
    """
    engine_or_default(engine)  # raises before the first file does
    if (workers or 0) < 0 or any(most is not None and most <= 0 for most in (seconds, memory)):
        got = f"{workers=}, {seconds=}, {memory=}"
        raise ValueError(f"workers is 0 or more, seconds and memory are positive, got {got}: leave out any")
    if workers == 0 and (seconds or memory):
        raise ValueError("seconds and memory are limits of workers, and with workers=0 there are none: leave them out")
    kept = Cache(cache) if cache is not None else None
    limits = seconds or (SECONDS_OCR if ocr_available() else SECONDS), memory or MEMORY
    return Stream(lambda report: _read(report, paths, workers, kept, engine, *limits, progress))


def read_many(paths: Paths, **options: Any) -> tuple[list[Document], list[ReadError]]:
    """Every readable file among `paths`, and the errors of those that are not: one bad file doesn't stop a corpus.

    `paths` is a file, a folder (the files in it that can be read, those in folders below it and hidden ones too), a
    glob pattern (`**` goes through folders, hidden files are left out), or an iterable of these. Files come sorted
    within each, and a file that is named twice is read once. The options are those of `stream`.
    """
    documents: list[Document] = []
    with stream(paths, **options) as found:
        for item in found:
            if isinstance(item, Document):
                documents.append(item)
    return documents, found.report.failed


def read_report(paths: Paths, each: Callable[[Document], object] | None = None, **options: Any) -> Report:
    """Read everything, hand each document to `each`, keep none; the options are those of `stream`.

    The report's `exit_code` is 0 where every file was read, 3 where some were, 1 where none was.
    """
    with stream(paths, **options) as found:
        for item in found:
            if each is not None and isinstance(item, Document):
                each(item)
    if options.get("cache") is not None:
        found.report.cache_files, found.report.cache_bytes = Cache(options["cache"]).size()
    return found.report


def _read(
    report: Report,
    paths: Paths,
    workers: int | None,
    cache: Cache | None,
    engine: str | None,
    seconds: float,
    memory: int,
    progress: bool,
) -> Iterator[_Found]:
    begin = time.monotonic()
    found = list(find(paths, report.skipped))
    if workers is None:
        workers = min(_cores(), len(found))
    if getattr(sys, "frozen", False) or not sys.executable:  # there is no Python to start
        workers = 0
    waiting: deque[Callable[[], _Found]] = deque()
    with contextlib.closing(Pool(workers, memory)) as pool, _bar(len(found), progress) as bar:
        job = _Job(report, pool, cache, engine, seconds)
        for path in found:
            waiting.append(partial(_same, path) if isinstance(path, ReadError) else job.begin(path))
            while len(waiting) > AHEAD * workers:
                yield _counted(waiting.popleft()(), report, begin, bar)
        while waiting:
            yield _counted(waiting.popleft()(), report, begin, bar)


class _Job:
    """How one file is read: out of the cache, by a worker, or here."""

    def __init__(self, report: Report, pool: "Pool", cache: Cache | None, engine: str | None, seconds: float) -> None:
        self.report, self.pool, self.cache, self.engine, self.seconds = report, pool, cache, engine, seconds

    def begin(self, path: Path) -> Callable[[], _Found]:
        """Begins to read; what it returns waits for the end."""
        digest = ""
        if self.cache is not None and path.is_file():
            with contextlib.suppress(OSError):  # the reader will say so
                digest = sha256(path)
                known = self.cache.get(self.cache.key(digest, path, self.engine), path)
                if known is not None:
                    self.report.cached += 1
                    return partial(_same, known)
        if not self.pool.workers:
            return partial(self.here, path, digest)
        seconds = self.seconds * (1 + _size(path) / SCALE)
        return partial(self.end, path, digest, self.pool.read(path, self.engine, seconds))

    def here(self, path: Path, digest: str) -> _Found:
        try:
            found = attempt(path, self.engine)
        except MemoryError:
            return ReadError(path, "needs more memory than there is to be read: leave it out")
        packed = pack(found) if digest and isinstance(found, Document) else b""
        self.keep(path, digest, found, packed)
        return found

    def end(self, path: Path, digest: str, answer: "Future[Answer]") -> _Found:
        while not wait([answer], WAKE).done:  # a Ctrl-C just before an endless wait would be seen at its end only
            pass
        packed, reason, lasting = answer.result()
        found = ReadError(path, reason) if reason else unpack(packed, str(path))
        if lasting:
            self.keep(path, digest, found, packed)
        return found

    def keep(self, path: Path, digest: str, found: _Found, packed: bytes) -> None:
        """In the cache, if the bytes that were read are still those that the entry will be looked up by."""
        if self.cache is None or not digest:
            return
        if any(_PASSES in why for why in (found.unread.values() if isinstance(found, Document) else [found.reason])):
            return
        key = self.cache.key(digest, path, self.engine)
        if isinstance(found, Document) and found.sha256 == digest:
            self.cache.put(key, packed)
        elif isinstance(found, ReadError):
            with contextlib.suppress(OSError):
                if sha256(path) == digest:
                    self.cache.put(key, found.reason)


class Pool:
    """Workers, and a thread for each that waits for it."""

    def __init__(self, workers: int, memory: int) -> None:
        self.workers = [Worker(memory, max(_cores() // workers, 1)) for _ in range(workers)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers or 1, "e2erag-read")  # starts none before it has something to do

    def read(self, path: Path, engine: str | None, seconds: float) -> "Future[Answer]":
        return self._threads.submit(self._one, path, engine, seconds)

    def _one(self, path: Path, engine: str | None, seconds: float) -> Answer:
        worker = self._idle.get()
        try:
            return worker.read(path, engine, seconds)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self._threads.shutdown(cancel_futures=True)


def _same(found: _Found) -> _Found:
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _size(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_size
    return 0


def _bar(files: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=files, desc="read", unit="file", disable=None if progress else True)


def _counted(found: _Found, report: Report, begin: float, bar: Any) -> _Found:
    report.add(found)
    if isinstance(found, Document):
        warn_of_fallback(found.reader)  # a worker's warning is not heard
    report.seconds = time.monotonic() - begin
    rate = f"{report.pages / max(report.seconds, 1e-9):.0f}"
    bar.set_postfix({"pages/s": rate, "failed": len(report.failed)}, refresh=False)
    bar.update()
    return found
