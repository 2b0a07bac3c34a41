"""A run that torchrun starts over two processes: the weights of one process with the joined batches."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_ranks import ASKED, system
from torch import nn

from e2erag.rag import RAG
from e2erag.retriever import ExactIndex, IndexConfig
from e2erag.retriever.ranks import average, average_gradients, join, led, rank, ranks, share_weights
from e2erag.testing import tiny_document
from e2erag.train import FitConfig
from e2erag.train.callbacks import Checkpoint
from e2erag.train.parallel import over_ranks

HERE = Path(__file__).parent
COMPARED = ("loss", "mass", "utility", "gradient_extractor", "gradient_retriever", "gradient_generator", "drift")


def train(rag: RAG, folder: Path, batch_size: int, index: Path | None = None, share: float = 1.0) -> None:
    """Three steps over four questions, the index encoded anew before each, this share of it; rank 0 writes what came of
    it. With a place for the index, rank 0 writes its rows there.

    Both ranks have rows to scan: 72 passages, more than a tile. Three of them are read: what another question has
    found, on either rank, counts as the rest of the corpus does, without gradient into it."""
    lines = [f"in {i} seats {i % 7} engine maker {i * 3}" for i in range(64)]
    rag.config = replace(rag.config, index=IndexConfig(folder=index and str(index)))
    with over_ranks(rag):
        rag.index([*rag.corpus.documents, tiny_document([lines[:32], lines[32:]], "more.pdf")])
    assert len(rag.corpus.passages) == 72
    if rank():
        with torch.no_grad():
            rag.model.extractor.scores.bias += 1.0  # weights that are others than rank 0's, as drawn ones would be
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED[:4]]
    settings = {"epochs": 3, "k": 3, "refresh_every": 1, "refresh_share": share, "calibrate": 2, "progress": False}
    run = rag.fit(rows, batch_size=batch_size, folder=folder / "run", **settings)
    assert type(rag.index_) is ExactIndex
    assert rag.index_.store.folder == index
    assert run.calibration is not None
    assert run.calibration.temperature != 0.2
    ids = rag.search(["seats ?"] * (1 + rank())).ids  # each rank what it likes
    fitted = torch.tensor([run.calibration.temperature, rag.model.retriever.temperature])
    found = {"ids": ids, "rows": rag.index_.vectors.contiguous(), "temperature": fitted}
    save_file(found, folder / f"found-{rank()}.safetensors")
    save_file({name: p.detach().clone() for name, p in rag.model.named_parameters()}, folder / f"{rank()}.safetensors")
    if rank() == 0:
        (folder / "history.json").write_text(json.dumps(run.history))


def check_sums(rag: RAG, folder: Path) -> None:
    """What ranks tell each other, each with other numbers."""
    a, b, c = (nn.Parameter(torch.zeros(2, 2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32))
    a.grad = torch.full((2, 2), 1.0 + rank())
    if rank():
        b.grad = torch.full((2, 2), 3.0, dtype=torch.float64)
    average_gradients([a, b, c])
    assert a.grad.tolist() == [[1.5, 1.5]] * 2
    assert b.grad.tolist() == [[1.5, 1.5]] * 2
    assert c.grad is None
    assert average({"x": 1.0 + rank(), "y": 2.0}) == {"x": 1.5, "y": 2.0}
    module = nn.BatchNorm1d(2)
    module.running_mean += rank()
    share_weights(module)
    assert module.running_mean.tolist() == [0, 0]
    rag.index([tiny_document([[f"seats of rank {rank()}"]])])  # alone each does what it likes
    with over_ranks(rag), pytest.raises(ValueError, match="every process must index the same files"):
        rag.refresh()
    with pytest.raises(ValueError, match="leave out refresh_background"):
        rag.fit([ASKED[0]], FitConfig(refresh_background=True))
    rag.config = replace(rag.config, index=IndexConfig("Flat", str(folder)))
    with pytest.raises(ValueError, match="one of kind 'Flat' can't be shared by ranks: leave it out"):
        rag.fit([ASKED[0]], FitConfig(search="index"))
    told: list[list[int]] = []

    def work(ask: Callable[[torch.Tensor], torch.Tensor]) -> None:
        assert rank() == 0
        assert ask(torch.tensor([3, 4])).tolist() == [6, 8]
        ask(torch.tensor([], dtype=torch.long))
        if len(told) > 2:
            raise OSError("no space")

    def share(numbers: torch.Tensor) -> torch.Tensor:
        told.append(numbers.tolist())
        return 2 * numbers

    led(work, share)
    assert told == [[3, 4], []]
    with pytest.raises(RuntimeError if rank() else OSError, match="its own error says why" if rank() else "no space"):
        led(work, share)
    assert told == [[3, 4], []] * 2
    (folder / f"checked-{rank()}").touch()


def torchrun(folder: Path, what: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(
        [*command, str(folder), what], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr[:5000]


def test_two_processes_train_as_one_with_the_joined_batches(tmp_path: Path) -> None:
    """Losses, gradient norms, weights after three steps and the index, encoded in halves; rank 1's weights and index
    too. Each rank starts from rank 0's weights. With rows in memory, and in a folder that both have mapped."""
    for name in ("two", "two/placed", "one", "one/placed"):
        (tmp_path / name).mkdir()
    torchrun(tmp_path / "two", "train")
    train(system(), tmp_path / "one", 4)
    train(system(), tmp_path / "one" / "placed", 4, share=0.5)
    for part in ("", "placed"):
        alike(tmp_path / "one" / part, tmp_path / "two" / part)
    assert not (tmp_path / "two" / "index" / ".aside").exists()


def alike(alone: Path, together: Path) -> None:
    """What one process has written, and two."""
    one, two = (json.loads((name / "history.json").read_text()) for name in (alone, together))
    assert len(one) == len(two) == 3
    assert one[0]["loss"] > one[2]["loss"] + 1e-3
    for a, b in zip(one, two, strict=True):
        assert {name: b[name] for name in COMPARED} == pytest.approx({name: a[name] for name in COMPARED}, rel=1e-5)
    expected = load_file(alone / "0.safetensors")
    start = dict(system().model.named_parameters())
    assert sum(bool((expected[name] - start[name]).abs().max() > 1e-5) for name in expected) > 20
    for number in range(2):
        got = load_file(together / f"{number}.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-7, rtol=1e-6, msg=lambda t, n=name: f"{n}: {t}")
        found = load_file(together / f"found-{number}.safetensors")
        own = load_file(alone / "found-0.safetensors")
        assert found["ids"].tolist() == own["ids"].tolist() * (1 + number)
        torch.testing.assert_close(found["rows"], own["rows"], atol=1e-5, rtol=1e-5)
        assert found["temperature"].tolist() == own["temperature"].tolist()
    assert (together / "run" / "report.png").exists()
    assert len((together / "run" / "metrics.csv").read_text().splitlines()) == 4


def test_two_processes_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    """In the middle of an epoch; each with its own questions and its own draws, to the bit."""
    torchrun(tmp_path, "resume")
    assert {"same-0", "same-1"} <= {path.name for path in tmp_path.iterdir()}


def check_resume(systems: list[RAG], folder: Path) -> None:
    """A run over two processes, the same stopped after three of its six steps, and what goes on from there."""
    whole, halted, resumed = systems
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED[:4]]
    settings = {
        "epochs": 3, "batch_size": 1, "k": 4, "samples": 2, "refresh_every": 2, "gates": "sample", "progress": False,
        "checkpoint_every": 1, "objective": {"marginal": 1.0, "rloo": 0.5},
    }  # fmt: skip
    expected = whole.fit(rows, **settings, folder=folder / "whole")
    end = Checkpoint.on_train_batch_end

    def ends(self: Checkpoint, trainer: Any, *given: Any) -> None:
        end(self, trainer, *given)
        if trainer.global_step == 3:
            raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as during:
        during.setattr(Checkpoint, "on_train_batch_end", ends)
        with pytest.raises(RuntimeError, match="stopped"):
            halted.fit(rows, **settings, folder=folder / "run")
    got = resumed.fit(rows, **settings, folder=folder / "run", resume=True)
    assert (got.steps, got.history) == (expected.steps, expected.history)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(whole.index_.vectors, resumed.index_.vectors)
    (folder / f"same-{rank()}").touch()


def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    """Means of gradients (None where no rank has one), of figures, and rank 0's weights."""
    torchrun(tmp_path, "check_sums")
    assert {"checked-0", "checked-1"} <= {path.name for path in tmp_path.iterdir()}  # both came to the end


def test_without_torchrun_there_is_one_process() -> None:
    """Joining does nothing, sums are what they were."""
    join()
    assert (ranks(), rank()) == (1, 0)
    assert average({"x": 1.0}) == {"x": 1.0}
    p = nn.Parameter(torch.zeros(2))
    average_gradients([p])
    assert p.grad is None


def check_pooled(rag: RAG, folder: Path) -> None:
    """Where gates act on pooling alone and rows lie in a folder each rank makes sums of a share, and rank 0 pools; a
    run in which the retriever stays makes no more of them, whether all rows are made anew or some."""
    sums, calls = rag.model.line_sums, []
    rag.model.line_sums = lambda *given: (calls.append(len(given[1])), sums(*given))[1]
    rag.config = replace(rag.config, index=IndexConfig(folder=str(folder / "pooled")))
    with over_ranks(rag):
        rag.index([*rag.corpus.documents, tiny_document([["seats 4", "one more"]], "more.pdf")])
        assert calls == [1]  # of two, beside eight whose sums were in hand
        with pytest.raises(RuntimeError, match="leave over_ranks, and add on rank 0"):
            rag.add([tiny_document([["seats 4"]], "added.pdf")])
    for share in (1.0, 0.5):
        settings = {"refresh_share": share, "freeze": ("retriever",), "progress": False}
        rag.fit([ASKED[0], ASKED[1]], epochs=2, k=2, refresh_every=1, batch_size=1, **settings)
    assert calls == [1]
    gates, log_prior = rag.indexer._judged(rag.corpus, "soft")
    rows = rag.model.encode(rag.corpus, torch.arange(len(rag.corpus.passages)), gates, log_prior, "soft")
    torch.testing.assert_close(rag.index_.vectors, rows.to(rag.index_.vectors), rtol=0, atol=1e-5)


def main(folder: str, what: str) -> None:
    # Made before the ranks meet: from then on transformers saves from rank 0 alone.
    rag, other, pooled, third = system(), system(), system("pool"), system()
    join()
    if what == "train":
        train(rag, Path(folder), 2)
        train(other, Path(folder) / "placed", 2, Path(folder) / "index", share=0.5)
    elif what == "resume":
        check_resume([rag, other, third], Path(folder))
    else:
        check_pooled(pooled, Path(folder))
        check_sums(rag, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
