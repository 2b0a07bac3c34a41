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
from typing import BinaryIO, NamedTuple

import torch
from torch import nn

from e2erag.corpus import Corpus
from e2erag.extract import GateMode
from e2erag.indexing import Indexer
from e2erag.joint import Joint
from e2erag.rag import RAG
from e2erag.retriever import FaissIndex, IndexConfig, Store
from e2erag.retriever.store import DTYPES

# Everything is imported from where the caller imports it; the working directory isn't in front, as it would be with -m.
_BOOT = (
    "import sys; parent = int(sys.argv[1]); sys.path[:] = sys.argv[2:]; "
    "from e2erag.train.background import serve; serve(parent)"
)


class Job(NamedTuple):
    """What the process is sent.

    Attributes:
        model: without a reader, which no index depends on.
        corpus: None: the one that was sent before.
        place: of the index that is made; with a folder.
        temporary: whether that folder is for this job alone.
        device: to encode on.
        threads: that torch may use.
    """

    model: Joint
    corpus: Corpus | None
    mode: GateMode
    place: IndexConfig
    temporary: bool
    device: str
    threads: int


class Background:
    """The caller's end: one refresh of the whole index at a time, in a process that starts with the first.

    Where the system's index is in memory, the new one's rows lie in a temporary folder until they are taken.
    """

    def __init__(self, device: str | None = None) -> None:
        """`device`: where to encode; None: where the model is."""
        self.device = device
        self._thread = ThreadPoolExecutor(1, "refresh")  # sends, and waits for the answer
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: Corpus | None = None  # what the process holds
        self._answer: Future[None] | None = None
        self._shadow: RAG | None = None
        self._place, self._temporary = IndexConfig(), False

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
        assert not self.busy
        corpus, index = rag._ready()
        assert rag.indexer.proposes_alike(
            index.manifest, rag.config.mode
        )  # the candidates stay, as in training they do
        process, here = self._running(), rag.model.extractor.gates.weight.device
        shadow = self._shadow = rag.shadow("cpu")
        shadow.corpus = copy(corpus)
        shadow.corpus.look_up(shadow.model.retriever)
        shadow.model.generator = nn.Module()  # type: ignore[assignment]
        folder = rag.config.index.folder
        self._temporary = folder is None
        folder = tempfile.mkdtemp(prefix="e2erag-refresh-") if folder is None else os.path.abspath(folder)
        self._place = replace(rag.config.index, folder=folder)
        device, threads = self.device or str(here), torch.get_num_threads()
        known = self._sent is not None and self._sent.documents is corpus.documents and self._sent.spans is corpus.spans
        sent = None if known else corpus.for_index()
        job = Job(shadow.model, sent, rag.config.mode, self._place, self._temporary, device, threads)
        self._answer = self._thread.submit(_ask, process, job)

    def check(self) -> None:
        """Wait for the refresh.

        Raises:
            Exception: what the process raised.
            RuntimeError: it ended without a word, or couldn't be sent what it needs."""
        assert self._answer is not None
        try:
            self._answer.result()
        except _EndedError:
            how = self._end(5.0)
            why = "; if memory was short, leave out refresh_background" if how.startswith("SIGKILL") else ""
            raise RuntimeError(
                f"the process that encoded the index in the background ended ({how}): the index is as it was{why}"
            ) from None
        except _UnsentError as error:
            self._end()
            raise RuntimeError(
                f"a model or corpus can't be sent to another process ({error}): define its classes and functions in a "
                "module, or leave out refresh_background"
            ) from error.__cause__

    def take(self, rag: RAG) -> None:
        """Answer from what was encoded.

        Raises:
            Exception: as `check`; the system's index is then as it was."""
        assert self._shadow is not None
        try:
            self.check()
            self._sent = self._shadow.corpus
            index = rag.indexer.over(Store(str(self._place.folder), DTYPES[self._place.dtype]), self._place)
            self._shadow.index_ = rag.config.index.owned(index)
            rag.take_index(self._shadow)
        finally:
            self._clear()

    def stop(self) -> None:
        """End what is under way; nobody needs it any more."""
        self._end()
        self._thread.shutdown()
        self._clear()
        self._stderr.close()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process; another one where it has ended since."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._stderr.seek(0)
            self._stderr.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(os.getpid()), *(path for path in sys.path if isinstance(path, str))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C is the caller's
            )
        return self._process

    def _clear(self) -> None:
        if self._temporary:
            shutil.rmtree(str(self._place.folder), ignore_errors=True)
        self._temporary, self._answer, self._shadow = False, None, None

    def _end(self, seconds: float = 0.0) -> str:
        """How the process ended, of itself within some seconds or by this, and what it said last."""
        process, self._process, self._sent = self._process, None, None
        if process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        code: int | str = process.wait()
        self._thread.submit(_let_go, process).result()  # behind what is being sent and received
        with contextlib.suppress(ValueError):  # no signal of a known name
            code = signal.Signals(-int(code)).name
        self._stderr.seek(0)
        return ", ".join([str(code), *self._stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]])


def check_device(name: str) -> None:
    """Refuse a device that isn't here.

    Raises:
        ValueError: it isn't."""
    try:
        device = torch.device(name)
        here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (device.index or 0) < here.get(device.type, 0):
            return
        there = ", ".join(f"{count} of {kind}" for kind, count in here.items() if count)
    except RuntimeError as error:  # no name of one
        there = str(error).strip().splitlines()[0]
    raise ValueError(
        f"refresh_device is a device of this machine, such as cpu or cuda:1, got {name!r} (there: {there})"
    )


class _EndedError(Exception):
    """The process is no more, and hasn't answered."""


class _UnsentError(Exception):
    """The process has no more than half a job, and is no good for another."""


def _ask(process: subprocess.Popen[bytes], job: Job) -> None:
    """Have a job done.

    Raises:
        Exception: what the process raised."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(job, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except BrokenPipeError:  # it no longer listens; it may have said why
        pass
    except Exception as error:
        raise _UnsentError(f"{type(error).__name__}: {error}") from error
    try:
        raised, told = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise _EndedError from None
    if raised is not None:
        raise raised from RuntimeError(f"in the process that encodes in the background:\n{told}")


def _let_go(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a job that it never took is still in it
                pipe.close()


# In the process


def serve(parent: int) -> None:
    """Do what is asked for on standard input, until that ends or `parent` does."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    temporary: list[str] = []
    threading.Thread(target=_watch, args=(parent, temporary), daemon=True).start()
    corpus: Corpus | None = None
    try:
        while jobs.peek(1):
            try:
                job: Job = pickle.load(jobs)
            except Exception as wrong:  # the rest of it is still to come, and makes no sense
                _tell(answers, _UnsentError(f"{type(wrong).__name__}: {wrong}"), traceback.format_exc())
                return
            temporary[:] = [str(job.place.folder)] * job.temporary
            corpus = corpus if job.corpus is None else job.corpus
            assert corpus is not None
            error: Exception | None = None
            where = ""
            try:
                _encode(job, corpus)
            except Exception as raised:
                error, where = raised, traceback.format_exc()
            del job  # the next one's model comes while nothing of this one's is held
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            _tell(answers, error, where)
    except BrokenPipeError:  # nobody waits any more
        pass
    finally:
        _leave(temporary)


def _encode(job: Job, corpus: Corpus) -> None:
    torch.set_num_threads(job.threads)
    job.model.extractor.to(job.device)
    job.model.retriever.to(job.device)
    corpus.look_up(job.model.retriever)
    index = Indexer(job.model).encode(corpus, job.mode, job.place)
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


def _watch(parent: int, temporary: list[str]) -> None:
    """End when nobody waits any more."""
    while os.name != "posix" or os.getppid() == parent:
        time.sleep(1)
    _leave(temporary)
    os._exit(0)


def _leave(temporary: list[str]) -> None:
    """Take away what only a caller knew of that is no more."""
    for folder in temporary:
        until = time.monotonic() + 5
        while os.path.exists(folder) and time.monotonic() < until:  # something may still be written there
            shutil.rmtree(folder, ignore_errors=True)
