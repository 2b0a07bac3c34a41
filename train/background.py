"""A process that encodes the index anew while another one trains: both ends of it.

What an index depends on (a copy of extractor and retriever, the corpus) goes into its standard input; the rows lie in
a folder when they are whole, and an error comes out of its standard output. Both are pickled: bytes that one program
sends itself through pipes, and nothing that is kept. The caller's main script isn't run a second time, as
multiprocessing would, so what it defines itself can't be sent: models' own classes belong in a module.
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
from e2erag.retriever import BM25, FaissIndex, IndexConfig, Store
from e2erag.retriever.store import DTYPES

# Everything is imported from where the caller imports it; the working directory isn't in front, as it would be with -m.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from e2erag.train.background import serve; serve()"
_CANT = "a model or corpus can't be sent to another process ({}): define its classes in a module, or leave out {}"


class Job(NamedTuple):
    """What the process is sent.

    Attributes:
        corpus: None: the one that was sent before.
        where: the index is made; in a folder.
        passing: whether that folder is for this job alone.
        device: to encode on.
        threads: that torch may use.
    """

    model: Joint
    corpus: Corpus | None
    mode: GateMode
    where: IndexConfig
    passing: bool
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
        self._there: Corpus | None = None  # what the process holds
        self._answer: Future[None] | None = None
        self._shadow: RAG | None = None
        self._where, self._passing = IndexConfig(), False

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
        process, here = self._running(), rag.model.extractor.gates.weight.device
        self._shadow = rag.shadow("cpu")
        corpus = self._shadow.corpus = copy(rag._ready()[0])
        corpus.look_up(self._shadow.model.retriever)
        there = self._there
        known = there is not None and there.documents is corpus.documents and there.spans is corpus.spans
        folder = rag.config.index.folder
        self._passing = folder is None
        folder = tempfile.mkdtemp(prefix="e2erag-refresh-") if folder is None else os.path.abspath(folder)
        self._where = replace(rag.config.index, folder=folder)
        device, threads = self.device or str(here), torch.get_num_threads()
        sent = None if known else corpus
        job = Job(self._shadow.model, sent, rag.config.mode, self._where, self._passing, device, threads)
        self._there, self._answer = corpus, self._talker.submit(_ask, process, job)

    def take(self, rag: RAG) -> None:
        """Answer from what was encoded.

        Raises:
            Exception: what the process raised.
            RuntimeError: it ended without a word, or couldn't be sent what it needs.
        The system's index is then as it was."""
        assert self._answer is not None
        assert self._shadow is not None
        answer, self._answer, shadow, self._shadow = self._answer, None, self._shadow, None
        try:
            answer.result()
            index = rag.indexer.over(Store(str(self._where.folder), DTYPES[self._where.dtype]), self._where)
            shadow.index_ = rag.config.index.owned(index)
        except _Ended:
            raise RuntimeError(
                f"the process that encoded the index in the background ended ({self._end(5.0)}): the index is as it "
                "was; if memory was short, leave out refresh_background, which encodes with what is there already"
            ) from None
        except _Unsent as error:
            self._end()
            raise RuntimeError(_CANT.format(error, "refresh_background")) from error.__cause__
        finally:
            self._clear()
        rag.take_index(shadow)

    def stop(self) -> None:
        """End what is under way; nobody needs it any more."""
        self._end()
        self._talker.shutdown()
        self._answer = self._shadow = None
        self._clear()
        self._said.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        """The process; another one where it has ended since."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._said.seek(0)
            self._said.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *(path for path in sys.path if isinstance(path, str))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is the caller's
            )
        return self._process

    def _clear(self) -> None:
        if self._passing:
            shutil.rmtree(str(self._where.folder), ignore_errors=True)
        self._passing = False

    def _end(self, seconds: float = 0.0) -> str:
        """How the process ended, of itself within some seconds or by this, and what it said last."""
        process, self._process, self._there = self._process, None, None
        if process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        code: int | str = process.wait()
        self._talker.submit(_let_go, process).result()  # behind what is being sent and received
        with contextlib.suppress(ValueError):  # no signal of a known name
            code = signal.Signals(-int(code)).name
        self._said.seek(0)
        return ", ".join([str(code), *self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]])


def check_device(name: str) -> None:
    """Refuse a device that isn't here.

    Raises:
        ValueError: it isn't."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        last = str(error).strip().splitlines()[0]
        raise ValueError(
            f"refresh_device is a device of this machine, such as cpu or cuda:1, got {name!r} ({last})"
        ) from None


class _Ended(Exception):
    """The process, before it answered."""


class _Unsent(Exception):
    """What it was to be sent is no more than half there."""


def _ask(process: "subprocess.Popen[bytes]", job: Job) -> None:
    """Have a job done.

    Raises:
        Exception: what the process raised.
        _Ended: it is no more.
        _Unsent: it has half a job, and is no good for another."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _Sent(process.stdin, pickle.HIGHEST_PROTOCOL).dump(job)
        process.stdin.flush()
    except OSError:  # it no longer listens; it may have said why
        pass
    except Exception as error:
        raise _Unsent(f"{type(error).__name__}: {error}") from error
    try:
        raised, told = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise _Ended from None
    if raised is not None:
        raise raised from RuntimeError(f"in the process that encodes in the background:\n{told}")


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
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    passing: list[str] = []
    threading.Thread(target=_watch, args=(os.getppid(), passing), daemon=True).start()
    corpus: Corpus | None = None
    while jobs.peek(1):
        try:
            job: Job = _Received(jobs).load()
        except Exception as error:  # the rest of it is still to come, and makes no sense
            said = _CANT.format(f"{type(error).__name__}: {error}", "refresh_background")
            _tell(answers, RuntimeError(said), traceback.format_exc())
            return
        passing[:] = [str(job.where.folder)] * job.passing
        corpus = corpus if job.corpus is None else job.corpus
        try:
            assert corpus is not None
            _encode(job, corpus)
            _tell(answers, None, "")
        except Exception as error:
            _tell(answers, error, traceback.format_exc())
    _leave(passing)


def _encode(job: Job, corpus: Corpus) -> None:
    torch.set_num_threads(job.threads)
    job.model.extractor.to(job.device)
    job.model.retriever.to(job.device)
    corpus.look_up(job.model.retriever)
    index = Indexer(job.model).encode(corpus, job.mode, job.where)
    if isinstance(index, FaissIndex):
        index.search(torch.zeros(1, index.vectors.shape[1]), 1)  # the first builds its structure


def _tell(answers: BinaryIO, error: Exception | None, where: str) -> None:
    """The error with which a job ended, and where that was; None: it is done."""
    try:
        answer = pickle.dumps((error, where))
        pickle.loads(answer)
    except Exception:  # an error of which no copy can be made
        answer = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), where))
    answers.write(answer)
    answers.flush()


def _watch(parent: int, passing: list[str]) -> None:
    """End when nobody waits any more."""
    while os.name != "posix" or os.getppid() == parent:
        time.sleep(1)
    _leave(passing)
    os._exit(0)


def _leave(passing: list[str]) -> None:
    """Take away what only a caller knew of that is no more."""
    for folder in passing:
        shutil.rmtree(folder, ignore_errors=True)
