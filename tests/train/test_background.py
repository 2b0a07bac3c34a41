"""A process encodes the index while another one trains: what it gives, and what is left when it fails or is killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from e2erag import RAG, RAGConfig, background
from e2erag.background import Background, RefreshError
from e2erag.extract import ExtractorConfig
from e2erag.retriever import ExactIndex, FaissIndex, IndexConfig, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import Run

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
    """Other weights, so that every vector moves, and every line's gates and every passage's prior."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in [*rag.model.retriever.passage.parameters(), *rag.model.extractor.parameters()]:
            p.add_(0.3 * torch.randn(p.shape, generator=noise) * (p.std() if p.numel() > 1 and p.std() > 0 else 1))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """One whose process starts once, which takes some seconds."""
    beside = Background()
    yield beside
    beside.stop()


@pytest.fixture
def shared(beside: Background, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """The same for a run, which doesn't end it."""
    monkeypatch.setattr("e2erag.train.refresh.Background", lambda device: beside)
    with monkeypatch.context() as stays:
        stays.setattr(beside, "stop", lambda: None)
        yield beside
    if beside.busy:
        beside.wait(120.0)
        beside._forget()


def taken(rag: RAG, beside: Background) -> None:
    """What was begun, once it is whole."""
    assert beside.busy
    assert beside.wait(120.0)
    beside.take(rag)
    assert not beside.busy
    assert not beside.done


def damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written from now on for the process to read is half there."""
    save = background.save_finder

    def half(model: Any, folder: Path) -> Any:
        settings = save(model, folder)
        file = folder / "extractor.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return settings

    monkeypatch.setattr(background, "save_finder", half)


def begun_from_now(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """All processes that are begun."""
    processes, popen = [], subprocess.Popen

    def begun(*command: Any, **settings: Any) -> Any:
        processes.append(popen(*command, **settings))
        return processes[-1]

    monkeypatch.setattr(background.subprocess, "Popen", begun)
    return processes


def test_training_goes_on_and_the_index_is_exchanged_whole(shared: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for before the second step and whole after the third: the fourth finds it, with the second's weights."""
    rag = system()
    searched, vectors = [], []
    terms, every = rag.terms, torch.arange(len(rag.corpus.passages))

    def step(*args: Any, **named: Any) -> Any:
        searched.append(rag.index_)
        if len(searched) == 2:
            vectors.append(rag.indexer.rows(rag.corpus, every, "soft"))
        if len(searched) == 3:
            assert shared.wait(120.0)
        return terms(*args, **named)

    monkeypatch.setattr(rag, "terms", step)
    whole = Background.done.fget  # told by the third step, and not before
    monkeypatch.setattr(Background, "done", property(lambda self: len(searched) > 2 and whole(self)))
    # The extractor stays: it would judge lines by the word embeddings of the last refresh, the copy by its own.
    history = run(rag, epochs=6, refresh_every=1, freeze=("extractor",)).history
    assert searched[0] is searched[1] is searched[2]
    assert (searched[2].vectors - vectors[0]).abs().max() > 1e-4
    assert torch.allclose(searched[3].vectors, vectors[0], atol=1e-5)
    assert [row["index_age"] for row in history][:4] == [0, 1, 2, 2]
    assert history[3]["drift"] > 0
    assert rag.drift(every).abs().max() < 1e-5


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("place", ["memory", "folder"])
@pytest.mark.parametrize("gates", ["attend", "pool"])
def test_a_copy_gives_what_a_refresh_at_once_would(
    learning: bool, place: str, gates: str, beside: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the weights as they were when it began, also while the extractor learns, which has other figures then; the
    system answers from its old index until it takes the new one."""
    rag, twin = (
        system(IndexConfig("Flat", str(tmp_path / "own")) if place == "folder" else None, gates=gates),
        system(gates=gates),
    )
    written, save = [], background.save_corpus
    monkeypatch.setattr(background, "save_corpus", lambda *given: (written.append(1), save(*given)))
    for each in (rag, twin):
        each.model.extractor.train(learning)
    for _ in range(2):
        for each in (rag, twin):
            move(each)
        old = rag.index_.vectors.clone()
        beside.start(rag)
        asked = rag.index_
        move(rag)  # training goes on meanwhile, and what was begun is of the weights of before
        assert torch.equal(rag.index_.vectors, old)
        twin.refresh()
        taken(rag, beside)
        assert rag.index_ is not asked
        assert (rag.index_.vectors - old).abs().max() > 1e-3
        torch.testing.assert_close(rag.index_.vectors, twin.index_.vectors, rtol=0, atol=1e-6)
        torch.testing.assert_close(rag.corpus.text, twin.corpus.text)
        move(twin)
        assert twin.indexer.changed(rag.index_.manifest, rag.corpus, "soft") == ["encoder", "extractor"]
        assert rag.index_.vectors[:, -1].std() > 0.01  # log π tells passages apart
        rag.model.load_state_dict(twin.model.state_dict())
    assert written == [1]  # the corpus goes once
    assert not list(beside._folder.glob("job-*"))
    if place == "folder":  # its structure came with it
        monkeypatch.setattr(FaissIndex, "_build", None)
        assert isinstance(rag.index_, FaissIndex)
    assert rag.search(["pilot 3 ?"]).ids.tolist() == twin.search(["pilot 3 ?"]).ids.tolist()


@pytest.mark.parametrize("retriever", [{}, {"lora": 2}, {"tied": False}, {"gates": "pool"}, {"bm25": 0.1}])
def test_what_is_written_is_read(retriever: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of retriever, with weights that aren't those it began with; the reader isn't among what is written."""
    rag = system(**retriever)
    move(rag)
    rag.refresh()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    popen, idle = subprocess.Popen, [sys.executable, "-c", ""]
    monkeypatch.setattr(background.subprocess, "Popen", lambda command, **settings: popen(idle, **settings))
    beside = Background()
    beside.start(rag)
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"corpus-of-job-1", "job-1", "said.txt"}
    assert {path.name for path in (folder / "job-1").iterdir()} == {"extractor.safetensors", "job.json", "retriever"}
    background.encode(folder / "job-1", None)
    there = ExactIndex.load(folder / "job-1" / "index")
    torch.testing.assert_close(there.vectors, rag.index_.vectors, rtol=0, atol=1e-6)
    assert there.manifest == rag.index_.manifest
    beside.stop()
    assert not list(tmp_path.iterdir())


def test_rows_pooled_from_sums_that_are_there_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retriever stays, so lines needn't be encoded again: at once, and not in the background."""
    rag = system(gates="pool")
    monkeypatch.setattr(Background, "start", None)
    history = run(rag, epochs=3, refresh_every=1, freeze=("retriever",)).history
    assert [row["index_age"] for row in history] == [0, 0, 0]


def test_an_error_ends_the_run_and_leaves_the_old_index(shared: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised between two steps, with where that was; the process goes on."""
    rag = system()
    index, terms = rag.index_, rag.terms

    def step(*args: Any, **named: Any) -> Any:
        if shared.busy:
            assert shared.wait(120.0)
        return terms(*args, **named)

    with monkeypatch.context() as during:
        damaged(during)
        during.setattr(rag, "terms", step)
        with pytest.raises(RefreshError, match="failed, and it is as it was: SafetensorError") as raised:
            run(rag, epochs=20, refresh_every=1)
    assert "in load_finder" in str(raised.value.__cause__)
    assert rag.index_ is index
    process = shared._process
    assert process is not None
    shared.start(rag)
    taken(rag, shared)
    assert rag.index_ is not index
    assert shared._process is process


def test_an_error_that_is_there_when_the_run_ends_is_told(shared: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is worth knowing of, though nobody needs that index."""
    rag, start = system(), Background.start
    damaged(monkeypatch)
    monkeypatch.setattr(Background, "start", lambda self, rag: (start(self, rag), self.wait(120.0)))
    with pytest.raises(RefreshError, match="SafetensorError"):
        run(rag, epochs=4, refresh_every="3-4:1")


@pytest.mark.parametrize("begun", [False, True])
def test_a_killed_refresh_changes_nothing(begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its start, or once the new rows lie beside the old ones: the run ends, and says of what."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rag = system(IndexConfig(folder=str(tmp_path / "own")))
    index, rows = rag.index_, rag.index_.vectors.clone()
    start, killed_ones = Background.start, []

    def killed(self: Background, rag: RAG) -> None:
        start(self, rag)
        killed_ones.append(self)
        until = time.monotonic() + 120
        while begun and not list(tmp_path.glob("own/.aside/rows-*")) and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if (self._job / "answer.json").exists():  # it was quicker
            self._forget()
            killed(self, rag)

    monkeypatch.setattr(Background, "start", killed)
    with pytest.raises(RefreshError, match=r"in the background ended \(SIGKILL.*the index is as it was"):
        run(rag, epochs=20, refresh_every=1)
    assert killed_ones
    assert rag.index_ is index
    assert torch.equal(rag.index_.vectors, rows)
    assert not (tmp_path / "own/.aside").exists()
    assert not list((tmp_path / "temporary").iterdir())
    assert rag.search(["pilot 3 ?"]).ids.shape == (1, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_under_way_ends_with_the_run(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs that index any more: its process ends at once, and what was written for it goes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rag = system()
    processes, terms, steps = begun_from_now(monkeypatch), rag.terms, []

    def step(*args: Any, **named: Any) -> Any:
        steps.append(1)
        if fails and len(steps) == 4:
            raise KeyError("a step's")
        return terms(*args, **named)

    monkeypatch.setattr(rag, "terms", step)
    if fails:
        with pytest.raises(KeyError, match="a step's"):
            run(rag, epochs=4, refresh_every="3-4:1")
    else:
        with pytest.warns(UserWarning, match="begun at step 3 was whole for no step"):
            run(rag, epochs=4, refresh_every="3-4:1")
    assert [process.poll() for process in processes] == [-signal.SIGKILL]
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_killed_while_idle_is_started_anew(beside: Background) -> None:
    """With the corpus, which the one before had read."""
    rag = system()
    beside.start(rag)
    taken(rag, beside)
    beside._process.kill()
    beside._process.wait()
    move(rag)
    old = rag.index_.vectors
    beside.start(rag)
    taken(rag, beside)
    assert not torch.equal(rag.index_.vectors, old)


def test_what_cannot_be_done_in_the_background_is_refused(beside: Background, tmp_path: Path) -> None:
    """Hard mode, whose candidates depend on weights; two at a time; to take what isn't done."""
    rag = system()
    with pytest.raises(RuntimeError, match="no refresh is done"):
        beside.take(rag)
    beside.start(rag)
    with pytest.raises(RuntimeError, match="one refresh at a time"):
        beside.start(rag)
    if not beside.done:
        with pytest.raises(RuntimeError, match="no refresh is done"):
            beside.take(rag)
    taken(rag, beside)
    rag.config = RAGConfig(mode="hard")
    with pytest.raises(ValueError, match=r"others would be proposed now: call rag.refresh\(\)"):
        beside.start(rag)
    assert not beside.busy


def test_a_temporary_folder_that_was_tidied_away_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process said last isn't known then."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    beside = Background()
    beside.start(system())
    for file in tmp_path.glob("*/said.txt"):
        file.unlink()
    beside.stop()
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's error is told."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(background.sys, "executable", str(tmp_path / "none"))
    beside = Background()
    with pytest.raises(FileNotFoundError):
        beside.start(system())
    assert not list(tmp_path.iterdir())
    assert not beside.busy


def test_what_cannot_be_written_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it stays, nor a process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    processes = begun_from_now(monkeypatch)

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(background, "save_corpus", full)
    beside = Background()
    with pytest.raises(OSError, match="No space left"):
        beside.start(system())
    assert not beside.busy
    assert [process.poll() for process in processes] == [-signal.SIGKILL]
    assert not list(tmp_path.iterdir())


CALLER = """
import os, signal, sys
sys.path.append(sys.argv[1])
from test_background import Background, system
beside, rag = Background(), system()
beside.start(rag)
beside.wait(120.0)
print(beside._process.pid, len(os.listdir(beside._job)), flush=True)
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
