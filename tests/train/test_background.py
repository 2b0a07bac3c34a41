"""A process encodes the index while another one trains: what it gives, and what is left when it fails or is killed."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from e2erag import RAG, RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.retriever import FaissIndex, IndexConfig, RetrieverConfig, StoreError
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import Run, background
from e2erag.train.background import Background, Job

ROWS = [
    {"question": "how old was pilot 3 ?", "answers": ["23"]},
    {"question": "engine of pilot 7 ?", "answers": ["lycoming"]},
]


def system(index: IndexConfig | None = None, **retriever: Any) -> RAG:
    """Eighty passages of one line each."""
    rag = tiny_rag(
        retriever=RetrieverConfig(**retriever),
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=0, kinds=()),
        config=RAGConfig(k=2, mode="soft", precision="float32", index=index or IndexConfig()),
    )
    rag.index([tiny_document([[f"pilot {i} was {20 + i}", f"engine {i} seats 4"]], f"{i}.pdf") for i in range(40)])
    return rag


def run(rag: RAG, epochs: int, **changes: object) -> Run:
    settings = {"batch_size": 2, "k": 4, "progress": False, "lr_retriever": 1e-3, "refresh_background": True}
    return rag.fit(ROWS, epochs=epochs, **{**settings, **changes})


def move(rag: RAG) -> None:
    """Other weights, so that every vector moves."""
    with torch.no_grad():
        for p in rag.model.retriever.passage.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * p.std())


@pytest.fixture(scope="module")
def beside() -> Iterator[Background]:
    """One whose process starts once, which takes some seconds."""
    beside = Background()
    yield beside
    beside.stop()


@pytest.fixture
def shared(beside: Background, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """The same for a run."""
    monkeypatch.setattr("e2erag.train.refresh.Background", lambda device: beside)
    monkeypatch.setattr(beside, "stop", lambda: None)
    yield beside
    if beside.busy:
        beside._answer.exception(120)
        beside._clear()


def taken(rag: RAG, beside: Background) -> None:
    """What was begun, once it is whole."""
    assert beside.busy
    beside._answer.exception(120)
    assert beside.done
    beside.take(rag)
    assert not beside.busy


def test_training_goes_on_and_the_index_is_exchanged_whole(shared: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for before the second step and whole after the third: the fourth finds it, with the second's weights."""
    rag = system()
    futures: list[Future[Any]] = []
    searched, vectors = [], []
    submit, terms, every = ThreadPoolExecutor.submit, rag.terms, torch.arange(len(rag.corpus.passages))

    def submitted(*args: Any) -> Any:
        futures.append(submit(*args))
        return futures[-1]

    def step(*args: Any, **named: Any) -> Any:
        searched.append(rag.index_)
        if len(searched) == 2:
            vectors.append(rag.indexer.rows(rag.corpus, every, "soft"))
        if len(searched) == 3:
            futures[0].result(120)
        return terms(*args, **named)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submitted)
    monkeypatch.setattr(rag, "terms", step)
    # The extractor stays: it would judge lines by the word embeddings of the last refresh, the copy by its own.
    history = run(rag, epochs=6, refresh_every=1, freeze=("extractor",)).history
    assert searched[0] is searched[1] is searched[2]
    assert (searched[2].vectors - vectors[0]).abs().max() > 1e-4
    assert torch.allclose(searched[3].vectors, vectors[0], atol=1e-5)
    assert [row["index_age"] for row in history][:4] == [0, 1, 2, 2]
    assert history[3]["drift"] > 0
    assert rag.drift(every).abs().max() < 1e-5


@pytest.mark.parametrize("place", ["memory", "folder"])
@pytest.mark.parametrize("gates", ["attend", "pool"])
def test_a_copy_gives_what_a_refresh_at_once_would(
    place: str, gates: str, beside: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weights as they were when it began; the system answers from its old index until it takes the new one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rag, twin = (
        system(IndexConfig("Flat", str(tmp_path / "own")) if place == "folder" else None, gates=gates),
        system(gates=gates),
    )
    sent, ask = [], background._ask
    monkeypatch.setattr(background, "_ask", lambda process, job: (sent.append(job), ask(process, job))[1])
    for _ in range(2):
        for each in (rag, twin):
            move(each)
        old = rag.index_.vectors.clone()
        beside.start(rag)
        assert torch.equal(rag.index_.vectors, old)
        twin.refresh()
        taken(rag, beside)
        assert (rag.index_.vectors - old).abs().max() > 1e-3
        torch.testing.assert_close(rag.index_.vectors, twin.index_.vectors, rtol=0, atol=1e-6)
        torch.testing.assert_close(rag.corpus.text, twin.corpus.text)
        assert rag.indexer.changed(rag.index_.manifest, rag.corpus, "soft") == []
    assert [job.corpus is None for job in sent] == [False, True]  # the corpus goes once
    assert [path.name for path in tmp_path.iterdir()] == (["own"] if place == "folder" else [])
    if place == "folder":  # its structure came with it
        monkeypatch.setattr(FaissIndex, "_build", None)
        assert isinstance(rag.index_, FaissIndex)
    assert rag.search(["pilot 3 ?"]).ids.tolist() == twin.search(["pilot 3 ?"]).ids.tolist()


@pytest.mark.parametrize("retriever", [{}, {"lora": 2}, {"tied": False}, {"gates": "pool"}, {"bm25": 0.1}])
def test_what_is_sent_arrives(retriever: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of retriever; without the reader and without BM25."""
    rag = system(**retriever)
    rag.search(["pilot 3 ?"])
    sent: list[Job] = []
    monkeypatch.setattr(background, "_ask", lambda process, job: sent.append(pickle.loads(pickle.dumps(job))))
    monkeypatch.setattr(Background, "_running", lambda self: None)
    here, beside = rag.index_, Background()
    beside.start(rag)
    beside.check()
    beside.stop()
    job = sent[0]._replace(place=IndexConfig(folder=str(tmp_path)))
    assert not list(job.model.generator.parameters())
    assert list(rag.model.generator.parameters())
    assert job.corpus._bm25 is None
    assert rag.corpus._bm25 is not None or not retriever.get("bm25")
    background._encode(job, job.corpus)
    there = job.place.over(background.Store(tmp_path))
    torch.testing.assert_close(there.vectors, here.vectors, rtol=0, atol=1e-6)
    assert there.manifest == here.manifest


def test_rows_pooled_from_sums_that_are_there_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retriever stays, so lines needn't be encoded again: at once, and not in the background."""
    rag = system(gates="pool")
    monkeypatch.setattr(Background, "start", None)
    history = run(rag, epochs=3, refresh_every=1, freeze=("retriever",)).history
    assert [row["index_age"] for row in history] == [0, 0, 0]


def test_an_error_ends_the_run_and_leaves_the_old_index(
    shared: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised between two steps, as the process raised it and with where that was; the process goes on."""
    rag = system()
    index, terms = rag.index_, rag.terms
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(background.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "a file"))

    def step(*args: Any, **named: Any) -> Any:
        if shared.busy:
            shared._answer.exception(120)
        return terms(*args, **named)

    monkeypatch.setattr(rag, "terms", step)
    with pytest.raises(StoreError, match="lies in a file: name another") as raised:
        run(rag, epochs=20, refresh_every=1)
    assert "in _encode" in str(raised.value.__cause__)
    assert rag.index_ is index
    monkeypatch.undo()
    shared.start(rag)
    taken(rag, shared)
    assert rag.index_ is not index


def test_an_error_that_is_there_when_the_run_ends_is_told(
    shared: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is worth knowing of, though nobody needs that index."""
    rag = system()
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(background.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "a file"))
    start = Background.start
    monkeypatch.setattr(Background, "start", lambda self, rag: (start(self, rag), self._answer.exception(120)))
    with pytest.raises(StoreError, match="lies in a file"):
        run(rag, epochs=4, refresh_every="3-4:1")


@pytest.mark.parametrize("begun", [False, True])
def test_a_killed_refresh_changes_nothing(begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its start, or once the new rows lie beside the old ones: the run ends, and says of what."""
    rag = system(IndexConfig(folder=str(tmp_path)))
    index, rows = rag.index_, rag.index_.vectors.clone()
    start, killed_ones = Background.start, []

    def killed(self: Background, rag: RAG) -> None:
        start(self, rag)
        killed_ones.append(self)
        until = time.monotonic() + 120
        while begun and not list(tmp_path.glob(".aside/rows-*")) and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(self._process.pid, signal.SIGKILL)
        if self._answer.exception(60) is None:  # it was quicker
            self._clear()
            killed(self, rag)

    monkeypatch.setattr(Background, "start", killed)
    with pytest.raises(RuntimeError, match=r"in the background ended \(SIGKILL.*the index is as it was"):
        run(rag, epochs=20, refresh_every=1)
    assert killed_ones
    assert rag.index_ is index
    assert torch.equal(rag.index_.vectors, rows)
    assert not (tmp_path / ".aside").exists()
    assert rag.search(["pilot 3 ?"]).ids.shape == (1, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_under_way_ends_with_the_run(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs that index any more: its process ends at once, and what it has written goes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rag = system()
    threads, processes, popen, terms, steps = set(threading.enumerate()), [], subprocess.Popen, rag.terms, []

    def begun(command: Any, **settings: Any) -> Any:
        processes.append(popen(command, **settings))
        return processes[-1]

    def step(*args: Any, **named: Any) -> Any:
        steps.append(1)
        if fails and len(steps) == 4:
            raise KeyError("a step's")
        return terms(*args, **named)

    monkeypatch.setattr(background.subprocess, "Popen", begun)
    monkeypatch.setattr(rag, "terms", step)
    if fails:
        with pytest.raises(KeyError, match="a step's"):
            run(rag, epochs=4, refresh_every="3-4:1")
    else:
        with pytest.warns(UserWarning, match="begun at step 3 was whole for no step"):
            run(rag, epochs=4, refresh_every="3-4:1")
    assert [process.poll() for process in processes] == [-signal.SIGKILL]
    assert not list(tmp_path.iterdir())
    assert not set(threading.enumerate()) - threads


def test_a_process_is_started_anew_and_what_cant_be_sent_is_told(
    beside: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed while idle; one that has half a job, for want of a class that only the caller has, with far
    more behind it than pipes hold; one that was sent half a job."""

    class Local(torch.nn.Module):
        pass

    rag = system()
    beside.start(rag)
    taken(rag, beside)
    beside._process.kill()
    beside._process.wait()
    only_here = types.ModuleType("only_here")
    Local.__module__, Local.__qualname__, only_here.Local = "only_here", "Local", Local
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    rag.model.extractor.more = Local()
    rag.corpus.more = [f"text {i}" for i in range(800_000)]
    beside.start(rag)
    with pytest.raises(
        RuntimeError, match=r"No module named 'only_here'.: define its classes and functions in a module"
    ):
        taken(rag, beside)
    del rag.model.extractor.more, rag.corpus.more
    hook = rag.model.retriever.passage.transformer.register_forward_hook(lambda *_: None)
    beside.start(rag)
    with pytest.raises(RuntimeError, match=r"can't be sent to another process .*lambda"):
        taken(rag, beside)
    hook.remove()
    move(rag)
    old = rag.index_.vectors
    beside.start(rag)
    taken(rag, beside)
    assert not torch.equal(rag.index_.vectors, old)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    """At once, and not by a refresh that a short run never waits for."""
    with pytest.raises(ValueError, match=f"refresh_device is a device of this machine, .* got '{device}'"):
        run(system(), epochs=1, refresh_device=device)


CALLER = """
import os, signal, sys
sys.path.append(sys.argv[1])
from test_background import Background, system
beside, rag = Background(), system()
beside.start(rag)
beside._answer.result(120)
print(beside._process.pid, len(os.listdir(beside._place.folder)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_caller_that_is_killed_leaves_no_process_and_no_rows(tmp_path: Path) -> None:
    """The process sees that nobody waits, and takes away what only its caller knew of."""
    command = [sys.executable, "-c", CALLER, str(Path(__file__).parent)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    caller = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert caller.returncode == -signal.SIGKILL, caller.stderr
    pid, files = map(int, caller.stdout.split()[-2:])
    assert files > 1
    until = time.monotonic() + 30
    while (alive(pid) or list(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(pid)
    assert not list(tmp_path.iterdir())


def alive(pid: int) -> bool:
    """Whether a process hasn't ended; one that has may wait for a parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
