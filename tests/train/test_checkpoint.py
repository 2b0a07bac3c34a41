"""A run that was stopped goes on as if it had not been: the same weights, figures and index, to the bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from e2erag import RAG, RAGConfig, artefact
from e2erag.artefact import ManifestError
from e2erag.extract import ExtractorConfig
from e2erag.retriever import IndexConfig, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import Run
from e2erag.train.callbacks import Checkpoint
from e2erag.train.checkpoint import is_saved, read_state, write_state

ROWS = [{"question": f"how old was pilot {i} ?", "answers": [str(20 + i)]} for i in range(6)]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run, which takes far longer to draw than these take."""
    monkeypatch.setattr(sys.modules["e2erag.train.fit"], "draw_run", lambda history, path: None)


def system(mode: str = "soft", index: IndexConfig | None = None, **retriever: Any) -> RAG:
    rag = tiny_rag(
        retriever=RetrieverConfig(**retriever),
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=0, kinds=()),
        config=RAGConfig(k=2, mode=mode, precision="float32", index=index or IndexConfig()),
    )
    rag.index([tiny_document([[f"pilot {i} was {20 + i}", f"engine {i} seats 4"]], f"{i}.pdf") for i in range(40)])
    return rag


def run(rag: RAG, folder: Path, **changes: Any) -> Run:
    """Three steps an epoch, draws of gates and of passages, an index that is stale at every second step."""
    settings = {
        "epochs": 3, "batch_size": 2, "k": 4, "progress": False, "lr_retriever": 1e-3, "refresh_every": 2,
        "gates": "sample", "objective": {"marginal": 1.0, "rloo": 0.5}, "folder": folder, "checkpoint_every": 1,
    }  # fmt: skip
    return rag.fit(ROWS, **{**settings, **changes})


def stopped(rag: RAG, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A run that ends right after so many steps."""
    end = Checkpoint.on_train_batch_end

    def ends(self: Checkpoint, trainer: Any, module: Any, *given: Any) -> None:
        end(self, trainer, module, *given)
        if module.stepped and trainer.global_step == after:
            raise RuntimeError("stopped")

    with monkeypatch.context() as during:
        during.setattr(Checkpoint, "on_train_batch_end", ends)
        with pytest.raises(RuntimeError, match="stopped"):
            run(rag, folder, **changes)


def alike(one: RAG, other: RAG) -> bool:
    """Weights and rows."""
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(one.index_.vectors, other.index_.vectors)


@pytest.mark.parametrize(
    ("after", "left", "changes"),
    [
        *((after, 9 - after, {}) for after in (1, 2, 3, 8)),  # in an epoch and at its end, beside a refresh and at one
        (3, 7, {"accumulate": 2, "epochs": 4}),
        (5, 4, {"refresh_share": 0.5, "refresh_drift": 1e-6}),
        (4, 5, {"freeze": ("generator",), "objective": "marginal", "negatives": 5, "calibrate": 3}),
        (5, 4, {"freeze": ("extractor",), "gates": "hard"}),
        (5, 4, {"freeze": ("extractor",)}),
        (5, 4, {"freeze": ("retriever",), "calibrate": 3}),
        (5, 4, {"freeze": ("retriever",), "calibrate": 3, "retriever": {"bm25": 0.1, "learn_temperature": True}}),
    ],
)
def test_it_goes_on_to_the_bit(
    after: int, left: int, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, history, `metrics.csv`, weights and index are those of a run that was never stopped."""
    changes = dict(changes)
    kind = changes.pop("retriever", {})
    whole, halted, rag = system(**kind), system(**kind), system(**kind)
    expected = run(whole, tmp_path / "whole", **changes)
    stopped(halted, tmp_path / "run", after, monkeypatch, **changes)
    steps: list[int] = []
    terms = rag.terms
    monkeypatch.setattr(rag, "terms", lambda *given, **named: (steps.append(1), terms(*given, **named))[1])
    got = run(rag, tmp_path / "run", resume=True, **changes)
    assert len(steps) == left  # batches, none of them twice
    assert (got.steps, got.history) == (expected.steps, expected.history)
    written = [(tmp_path / name / "metrics.csv").read_text() for name in ("run", "whole")]
    assert written[0] == written[1]
    assert alike(rag, whole)
    assert not alike(rag, halted)


@pytest.mark.parametrize("learns", [False, True])
def test_a_fitted_temperature_is_not_fitted_again(
    learns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by another system, nor by the one that was stopped, whose weights and τ aren't those of the beginning."""
    systems = [system(learn_temperature=learns) for _ in range(3)]
    expected = run(systems[0], tmp_path / "whole", calibrate=3)
    assert expected.calibration is not None
    assert expected.calibration.temperature != 0.05
    stopped(systems[1], tmp_path / "run", 4, monkeypatch, calibrate=3)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for rag, folder in ((systems[1], "run"), (systems[2], "again")):
        got = run(rag, tmp_path / folder, resume=True, calibrate=3)
        assert (got.history, got.calibration) == (expected.history, expected.calibration)
        assert rag.model.retriever.config == systems[0].model.retriever.config


@pytest.mark.parametrize("kind", ["hard", "pool", "folder", "HNSW", "untied", "lora"])
def test_so_does_every_kind_of_system(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is trained over another index than its own, and one whose rows lie in a folder."""

    def made(name: str) -> RAG:
        index = IndexConfig("HNSW" if kind == "HNSW" else "exact", str(tmp_path / f"index {name}"))
        retriever = {"pool": {"gates": "pool"}, "untied": {"tied": False}, "lora": {"lora": 2}}.get(kind, {})
        return system("hard" if kind == "hard" else "soft", index if kind in ("folder", "HNSW") else None, **retriever)

    changes = {"search": "index"} if kind == "HNSW" else {}
    whole, rag = made("a"), made("b")
    expected = run(whole, tmp_path / "whole", **changes)
    stopped(made("c"), tmp_path / "run", 5, monkeypatch, **changes)
    got = run(rag, tmp_path / "run", resume=True, **changes)
    assert got.history == expected.history
    assert alike(rag, whole)


def test_what_began_with_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, questions or documents; a state of which a file has changed. The system stays as it was."""
    stopped(system(), tmp_path / "run", 2, monkeypatch)
    rag = system()
    before = {name: value.clone() for name, value in rag.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"can't go on, .*\(settings or questions\): begin with the same"):
        run(rag, tmp_path / "run", resume=True, k=3)
    with pytest.raises(ValueError, match="settings or questions"):
        rag.fit(ROWS[:5], epochs=3, folder=tmp_path / "run", resume=True, progress=False)
    assert all(torch.equal(before[name], value) for name, value in rag.model.state_dict().items())
    rag.add([tiny_document([["one more line"]], "more.pdf")])
    with pytest.raises(ValueError, match=r"\(corpus\)"):
        run(rag, tmp_path / "run", resume=True)
    lines = [unit.text for document in system().corpus.documents for unit in document]
    for cut in (len(lines), 1):  # as many lines in other documents
        rag = system()
        rag.index(
            [tiny_document([lines[:cut]], "a.pdf"), *([tiny_document([lines[cut:]], "b.pdf")] if cut == 1 else [])]
        )
        with pytest.raises(ValueError, match=r"\(corpus\)"):
            run(rag, tmp_path / "run", resume=True)
    rag = system()
    file = tmp_path / "run" / "checkpoint" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ManifestError, match=r"tensors\.safetensors has changed"):
        run(rag, tmp_path / "run", resume=True)
    assert all(torch.equal(before[name], value) for name, value in rag.model.state_dict().items())


@pytest.mark.parametrize(
    ("stage", "told", "changes"),
    [
        ("extractor", "extractor", {"gates": "hard", "freeze": ("extractor",)}),
        ("retriever", "encoder", {"freeze": ("retriever",)}),
    ],
)
def test_a_frozen_stage_with_other_weights_is_refused(
    stage: str, told: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They aren't in a run's state, and what was indexed with them goes on being used."""
    stopped(system(), tmp_path / "run", 2, monkeypatch, **changes)
    rag = system()
    with torch.no_grad():
        for parameter in rag.model.get_submodule(stage).parameters():
            parameter.add_(0.01)
    rag.refresh()
    with pytest.raises(ValueError, match=rf"can't go on, .*{told}"):
        run(rag, tmp_path / "run", resume=True, **changes)


def test_settings_that_need_each_other(tmp_path: Path) -> None:
    """A state needs a folder; where there is none yet, a run that may go on begins."""
    rag = system()
    for settings in ({"checkpoint_every": 2}, {"resume": True}):
        with pytest.raises(ValueError, match="set folder too, or leave out checkpoint_every and resume"):
            rag.fit(ROWS, **settings)
    with pytest.raises(ValueError, match="checkpoint_every must be at least 0"):
        run(rag, tmp_path, checkpoint_every=-1)
    assert run(rag, tmp_path, resume=True, epochs=1, checkpoint_every=2).steps == 3
    shutil.rmtree(tmp_path / "checkpoint")
    run(rag, tmp_path, epochs=1, checkpoint_every=0)
    assert not (tmp_path / "checkpoint").exists()


def test_one_that_a_kill_left_aside_is_found(tmp_path: Path) -> None:
    """Between the two renames of an exchange no folder has its name, and the old one is whole."""
    assert not is_saved(tmp_path / "state")
    write_state({"a": 1}, tmp_path / "state")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    aside = artefact._sibling(tmp_path / "state", "aside").name.replace(str(os.getpid()), gone.stdout.decode().strip())
    (tmp_path / "state").rename(tmp_path / aside)
    assert is_saved(tmp_path / "state")
    assert read_state(tmp_path / "state") == {"a": 1}


def test_a_checkpoint_is_tensors_and_json(tmp_path: Path) -> None:
    """What goes in comes out: numbers as keys, tuples, None, bfloat16; else it is refused, and nothing lost."""
    state = {
        "a": {0: torch.arange(3), 1: [torch.ones(2, dtype=torch.bfloat16), (None, True, 1.5, "text")]},
        2: torch.tensor(1.0),
    }
    write_state(state, tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert found["a"][0].equal(state["a"][0])
    assert found["a"][1][0].equal(state["a"][1][0])
    assert found["a"][1][1] == (None, True, 1.5, "text")
    assert found[2].shape == ()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "manifest.json", "rest.json", "tensors.safetensors",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="tensors and plain values, got object"):
        write_state({"a": object()}, tmp_path / "state")
    assert read_state(tmp_path / "state")[2] == 1
