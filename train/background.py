"""A process that encodes the index anew while another one trains: both ends of it.

What an index depends on (a copy of extractor and retriever, the corpus) goes into its standard input; the rows lie in
a folder when they are whole, and an error comes out of its standard output. Both are pickled: bytes that one program
sends itself through pipes, and nothing that is kept. No second run of the caller's main script, as multiprocessing has.
"""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import nn

from e2erag.corpus import Corpus
from e2erag.extract import GateMode
from e2erag.generator import Generator
from e2erag.indexing import Indexer
from e2erag.joint import Joint
from e2erag.rag import RAG
from e2erag.retriever import BM25, IndexConfig, Store
from e2erag.retriever.store import DTYPES

# Everything is imported from where the caller imports it; the working directory isn't in front, as it would be with -m.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from e2erag.train.background import serve; serve()"


class Job(NamedTuple):
    """What the process is sent.

    Attributes:
        where: the index is made; in a folder.
        device: to encode on.
        threads: that torch may use.
    """

    model: Joint
    corpus: Corpus
    mode: GateMode
    where: IndexConfig
    device: str
    threads: int


class Background:
    """The caller's end: one refresh of the whole index at a time, in a process that starts with the first.

    Where the system's index is in memory, the new one's rows lie in a temporary folder until they are taken.
    """

    def __init__(self, device: str | None = None) -> None:
        """`device`: where to encode; None: where the model is."""
        self.device = device
        self._talker = ThreadPoolExecutor(1, "refresh")  # waits for the process; it doesn't compute
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # by the process, and by libraries in it
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: Future[None] | None = None
        self._folder: str | None = None  # of rows that are in memory when they are taken

    @property
    def busy(self) -> bool:
        """Whether a refresh was begun that hasn't been taken."""
        return self._answer is not None

    @property
    def done(self) -> bool:
        """Whether there is one to take, or an error in its place."""
        return self._answer is not None and self._answer.done()

    def start(self, rag: RAG) -> None:
        """Begin to encode with the weights of now; the system may learn on at once."""
        self._shadow, here = rag.shadow("cpu"), rag.model.extractor.gates.weight.device
        corpus = self._shadow.corpus = copy(rag._ready()[0])
        corpus.look_up(self._shadow.model.retriever)
        self._place = rag.config.index
        self._folder = tempfile.mkdtemp(prefix="e2erag-refresh-") if self._place.folder is None else None
        where = replace(self._place, folder=self._folder) if self._folder else self._place
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *map(os.fspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is the caller's
            )
        job = Job(self._shadow.model, corpus, rag.config.mode, where, self.device or str(here), torch.get_num_threads())
        self._answer = self._talker.submit(_ask, self._process, job)

    def take(self, rag: RAG) -> None:
        """Answer from what was encoded.

        Raises:
            Exception: what the process raised.
            RuntimeError: it ended without a word. The system's index is as it was."""
        assert self._answer is not None
        answer, self._answer = self._answer, None
        try:
            answer.result()
            where = self._place if self._folder is None else replace(self._place, folder=self._folder)
            index = rag.indexer.over(Store(str(where.folder), DTYPES[where.dtype]), where)
            self._shadow.index_ = self._place.owned(index)
        except _Ended:
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own status says more than being killed
                self._process.wait(5)
            raise RuntimeError(
                f"the process that encoded the index in the background ended ({self._end()}): the index is as it was; "
                "if memory was short, leave out refresh_background, which encodes with what is there already"
            ) from None
        finally:
            self._clear()
        rag.take_index(self._shadow)

    def stop(self) -> None:
        """End what is under way; nobody needs it any more."""
        self._end()
        self._talker.shutdown()
        self._answer = None
        self._clear()
        self._said.close()

    def _clear(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _end(self) -> str:
        """How the process ended, of itself or by this, and what it said last."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        code: int | str = process.wait()
        self._talker.submit(_let_go, process).result()  # behind what is being sent and received
        with contextlib.suppress(ValueError):  # no signal of a known name
            code = signal.Signals(-int(code)).name
        self._said.seek(0)
        return ", ".join([str(code), *self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]])


class _Ended(Exception):
    """The process, before it answered."""


def _ask(process: "subprocess.Popen[bytes]", job: Job) -> None:
    """Have a job done.

    Raises:
        Exception: what the process raised.
        _Ended: it is no more."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _Sent(process.stdin, pickle.HIGHEST_PROTOCOL).dump(job)
        process.stdin.flush()
        error, told = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise _Ended from None
    if error is not None:
        raise error from RuntimeError(f"in the process that encodes in the background:\n{told}")


def _let_go(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a job that it never took is still in it
                pipe.close()


class _Sent(pickle.Pickler):
    """Without the reader, which no index depends on, and BM25, which is as large as the corpus."""

    def persistent_id(self, each: Any) -> str | None:
        return next((kind.__name__ for kind in (Generator, BM25) if isinstance(each, kind)), None)


class _Received(pickle.Unpickler):
    def persistent_load(self, name: str) -> nn.Module | None:
        return nn.Module() if name == Generator.__name__ else None


# In the process


def serve() -> None:
    """Do what is asked for on standard input, until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    jobs = os.fdopen(os.dup(0), "rb")
    while jobs.peek(1):
        answers.write(_answer(jobs))
        answers.flush()


def _answer(jobs: BinaryIO) -> bytes:
    """The error with which the next job ended and where that was, pickled; None: it is done."""
    error, told = None, ""
    try:
        _encode(_Received(jobs).load())
    except Exception as raised:
        error, told = raised, traceback.format_exc()
    try:
        answer = pickle.dumps((error, told))
        pickle.loads(answer)
    except Exception:  # an error of which no copy can be made
        answer = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), told))
    return answer


def _encode(job: Job) -> None:
    torch.set_num_threads(job.threads)
    job.model.extractor.to(job.device)
    job.model.retriever.to(job.device)
    index = Indexer(job.model).encode(job.corpus, job.mode, job.where)
    index.search(torch.zeros(1, index.vectors.shape[1]), 1)  # a structure of faiss is built by the first search


def _watch(parent: int) -> None:
    """End when nobody waits any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
