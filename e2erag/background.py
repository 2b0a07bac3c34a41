"""An index is encoded anew by another process while this one goes on: both ends of it.

All that passes between them are files, those of a saved system: weights and candidates in a temporary folder, rows in
the same one or in the index' own, an error beside the weights. Through the pipe go names of jobs, and its end says that
nobody waits any more. The process starts with the first job, reads the corpus once and stays for the next. The caller's
main script isn't run a second time, as multiprocessing would.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from transformers.utils import logging

from e2erag.artefact import write_file
from e2erag.corpus import Corpus
from e2erag.finder import Finder
from e2erag.indexing import Indexer
from e2erag.rag import RAG
from e2erag.retriever import ExactIndex, FaissIndex, IndexConfig, Store
from e2erag.retriever.store import DTYPES
from e2erag.saved import load_documents, load_finder, save_corpus, save_finder, take_candidates

# Everything is imported from where the caller imports it; the working directory isn't in front, as it would be with -m.
_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from e2erag.background import serve; serve(sys.argv[1])"
_JOB, _ANSWER, _INDEX, _SAID = "job.json", "answer.json", "index", "said.txt"


class RefreshError(RuntimeError):
    """An index that was being encoded in the background didn't become whole; the one there was is as it was."""


class Background:
    """The caller's end: one refresh of a system's whole index at a time."""

    def __init__(self, device: str | None = None) -> None:
        """`device`: where to encode; None: where the model is."""
        self.device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()  # of the process, while there is one
        self._jobs = 0
        self._sent: tuple[str, Corpus] | None = None  # what the process knows, under which name
        self._job: Path | None = None
        self._corpus: Corpus | None = None  # of the index that is coming
        self._place = IndexConfig()

    @property
    def busy(self) -> bool:
        """Whether a refresh was begun that hasn't been taken."""
        return self._job is not None

    @property
    def done(self) -> bool:
        """Whether there is one to take, or an error in its place."""
        if self._job is None:
            return False
        return self._process is None or self._process.poll() is not None or (self._job / _ANSWER).exists()

    def start(self, rag: RAG) -> None:
        """Begin to encode with the weights of now, which are on disk when this returns: the system may learn on.

        Raises:
            OSError: there is no room for them.
            RuntimeError: one is under way already.
            ValueError: other candidates would be proposed now than are indexed, as in hard mode they may."""
        if self._job is not None:
            raise RuntimeError("one refresh at a time: take(rag) what is done, or stop()")
        corpus, index = rag._ready()
        if not rag.indexer.proposes_alike(index.manifest, rag.config.mode):
            raise ValueError(
                "in the background the candidates stay, and in hard mode, or where settings of the extractor or this "
                "library's proposals have changed, others would be proposed now: call rag.refresh()"
            )
        place = rag.config.index
        if place.folder is None:
            place.check_place()
        else:
            place = replace(place, folder=os.path.abspath(place.folder))
        process, model = self._running(), rag.model
        self._jobs += 1
        job = self._folder / f"job-{self._jobs}"
        try:
            job.mkdir()
            coming = copy(corpus)
            coming.look_up(model.retriever)
            settings = {
                "corpus": self._send(corpus, job.name),
                "overlap": rag.config.overlap,
                "finder": _save(model, job),
                "precision": model.precision,
                "mode": rag.config.mode,
                "place": asdict(place),
                "learning": model.extractor.training,
                "token_budget": model.retriever.passage.token_budget,
                "device": self.device or str(model.device),
                "threads": torch.get_num_threads(),
                "matmul": torch.get_float32_matmul_precision(),
            }
            write_file(job / _JOB, json.dumps(settings))
        except BaseException:
            self.stop()
            raise
        self._job, self._corpus, self._place = job, coming, place
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile, which is found when it is asked for
            process.stdin.write(f"{job.name}\n".encode())
            process.stdin.flush()

    def wait(self, seconds: float) -> bool:
        """Until it is done, at most so long; whether it is."""
        until = time.monotonic() + seconds
        while not self.done and time.monotonic() < until:
            time.sleep(0.01)
        return self.done

    def check(self) -> None:
        """Of what is done, tell what went wrong.

        Raises:
            RefreshError: something did, or the process ended without a word.
            RuntimeError: nothing is done."""
        if self._job is None or not self.done:
            raise RuntimeError("no refresh is done: start(rag) one, and look at done or wait(seconds)")
        where = ""
        if (self._job / _ANSWER).exists():
            answer = json.loads((self._job / _ANSWER).read_text(encoding="utf-8"))
            if not answer:
                return
            said = f"encoding the index in the background failed, and it is as it was: {answer['error']}"
            where = answer["where"]
        else:
            how = self._ended()
            said = f"the process that encoded the index in the background ended ({how}), and the index is as it was"
        self._forget()
        if "SIGKILL" in said or "memory" in said.lower():
            said += "; if memory was short, leave out refresh_background, or name a refresh_device that has some"
        raise RefreshError(said) from (RuntimeError(f"in the process in the background:\n{where}") if where else None)

    def take(self, rag: RAG) -> None:
        """Answer from what was encoded.

        Raises:
            RefreshError, RuntimeError: as `check`; the system's index is then as it was."""
        self.check()
        assert self._job is not None
        place = self._place
        try:
            if place.folder is None:
                index = place.owned(ExactIndex.load(self._job / _INDEX, verify=False))  # written a moment ago
            else:
                index = rag.indexer.over(Store(place.folder, DTYPES[place.dtype]), place)
            rag.corpus, rag.index_ = self._corpus, index
        finally:
            self._forget()

    def stop(self) -> None:
        """End what is under way; nobody needs it any more."""
        self._ended(kill=True)
        self._forget()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process; another one where it has ended since."""
        if self._process is not None and self._process.poll() is not None:
            self._ended()
        if self._process is None:
            self._folder = Path(tempfile.mkdtemp(prefix="e2erag-refresh-"))
            paths = [path for path in sys.path if isinstance(path, str)]
            try:
                with open(self._folder / _SAID, "wb") as said:
                    self._process = subprocess.Popen(
                        [sys.executable, "-c", _BOOT, str(self._folder), *paths],
                        stdin=subprocess.PIPE,
                        stdout=said,
                        stderr=said,
                        start_new_session=True,  # Ctrl-C is the caller's
                    )
            except BaseException:
                shutil.rmtree(self._folder, ignore_errors=True)
                raise
        return self._process

    def _send(self, corpus: Corpus, name: str) -> str:
        """The folder's name in which the process finds these documents and candidates: they are written once."""
        if self._sent is not None:
            known, sent = self._sent
            if sent.documents is corpus.documents and sent.spans is corpus.spans:
                return known
            shutil.rmtree(self._folder / known, ignore_errors=True)  # it has been read
        folder = self._folder / f"corpus-of-{name}"
        folder.mkdir()
        save_corpus(corpus, folder)
        self._sent = folder.name, corpus
        return folder.name

    def _forget(self) -> None:
        if self._job is not None:
            shutil.rmtree(self._job, ignore_errors=True)
        self._job, self._corpus = None, None

    def _ended(self, kill: bool = False) -> str:
        """How the process ended, of itself or by this, and what it said last; its folder goes."""
        process, self._process, self._sent = self._process, None, None
        if process is None:
            return ""
        if kill:
            process.kill()
        code: int | str = process.wait()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # a name that it never took is still in it
            process.stdin.close()
        with contextlib.suppress(ValueError):  # no signal of a known name
            code = signal.Signals(-int(code)).name
        said: list[str] = []
        with contextlib.suppress(OSError):  # who tidies up temporary folders may have taken it
            said = (self._folder / _SAID).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        shutil.rmtree(self._folder, ignore_errors=True)
        return ", ".join([str(code), *said[-1:]])


def _save(model: Finder, folder: Path) -> dict[str, Any]:
    """`save_finder`, without bars of its own in the middle of a run's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return save_finder(model, folder)
    finally:
        if shown:
            logging.enable_progress_bar()


# --- in the process ---------------------------------------------------------------------------------------------------


def serve(folder: str) -> None:
    """Do the jobs whose names come through standard input, until that ends."""
    logging.disable_progress_bar()  # what it says last is to be an error
    names: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(folder, names), daemon=True).start()
    known: tuple[str, Corpus] | None = None
    while True:
        job = Path(folder, names.get())
        answer = {}
        try:
            known = encode(job, known)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()}
        write_file(job / _ANSWER, json.dumps(answer))
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def encode(job: Path, known: tuple[str, Corpus] | None) -> tuple[str, Corpus]:
    """Make the index that a job asks for; returns the corpus it is of, to be `known` to the next, with its name."""
    settings: dict[str, Any] = json.loads((job / _JOB).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision(settings["matmul"])
    extractor, retriever = load_finder(job, settings["finder"])
    retriever.passage.token_budget = settings["token_budget"]
    model = Finder(extractor, retriever, settings["precision"]).to(settings["device"]).eval()
    extractor.train(settings["learning"])
    if known is None or known[0] != settings["corpus"]:
        folder = job.parent / settings["corpus"]
        known = settings["corpus"], Corpus(load_documents(folder), retriever)
        take_candidates(known[1], folder, extractor, settings["overlap"])
    name, corpus = known
    corpus.look_up(retriever)
    place = IndexConfig(**settings["place"])
    index = Indexer(model).encode(corpus, settings["mode"], place)
    if place.folder is None:
        index.save(job / _INDEX)
    elif isinstance(index, FaissIndex):
        index.search(torch.zeros(1, index.vectors.shape[1]), 1)  # the first builds its structure
    return name, corpus


def _listen(folder: str, names: "SimpleQueue[str]") -> None:
    """Hand names on; when nobody is left who could send one, take away what only a caller knew of, and end."""
    for line in sys.stdin:
        names.put(line.strip())
    until = time.monotonic() + 5
    while os.path.exists(folder) and time.monotonic() < until:  # something may still be written there
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
