"""Training over an index that lies in a folder: what it learns, where its rows are meanwhile, and what is left."""

from pathlib import Path
from typing import Any

import pytest
import torch

from e2erag import RAG, RAGConfig
from e2erag.background import Background
from e2erag.extract import ExtractorConfig
from e2erag.retriever import ExactIndex, FaissIndex, IndexConfig, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import Run

ROWS = [
    {"question": "how old was pilot 3 ?", "answers": ["23"]},
    {"question": "engine of pilot 7 ?", "answers": ["lycoming"]},
]
PASSAGES = 80


def system(index: IndexConfig | None = None, mode: str = "soft", gates: str = "attend") -> RAG:
    """Passages of one line each, more than a run of the probe."""
    rag = tiny_rag(
        retriever=RetrieverConfig(gates=gates),
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=0, kinds=()),
        config=RAGConfig(k=2, mode=mode, precision="float32", index=index or IndexConfig()),
    )
    rag.index([tiny_document([[f"pilot {i} was {20 + i}", f"engine {i} seats 4"]], f"{i}.pdf") for i in range(40)])
    assert len(rag.corpus.passages) == PASSAGES
    return rag


def run(rag: RAG, **changes: object) -> Run:
    settings = {"epochs": 3, "batch_size": 2, "k": 4, "progress": False, "lr_retriever": 1e-3, "refresh_every": 1}
    return rag.fit(ROWS, **{**settings, **changes})


def watched(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, Path | None]]:
    """The kind of index of every step, and where its rows lie."""
    seen: list[tuple[type, Path | None]] = []
    terms = rag.terms

    def noted(*given: Any, **settings: Any) -> Any:
        seen.append((type(rag.index_), rag.index_.store.folder))
        return terms(*given, **settings)

    monkeypatch.setattr(rag, "terms", noted)
    return seen


@pytest.mark.parametrize("changes", [{}, {"refresh_share": 0.5}, {"refresh_background": True}])
def test_it_learns_what_it_would_in_memory(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows encoded anew, half of them, or in the background; losses, drift and the final index are the same."""
    start = Background.start  # the background is done before the next step, so that runs can be compared
    monkeypatch.setattr(Background, "start", lambda self, rag: (start(self, rag), self.wait(120.0)))
    one, other = system(), system(IndexConfig("HNSW", str(tmp_path)))
    seen = watched(other, monkeypatch)
    expected, got = (run(each, **changes) for each in (one, other))
    assert [row["loss"] for row in got.history] == pytest.approx([row["loss"] for row in expected.history], abs=1e-6)
    assert [row["drift"] for row in got.history] == pytest.approx([row["drift"] for row in expected.history], abs=1e-6)
    aside = tmp_path / ".aside"
    # Before anything is learned, the system's own rows are those that training would make.
    stale = 2 if "refresh_background" in changes else 1
    assert seen == [(ExactIndex, tmp_path)] * stale + [(ExactIndex, aside)] * (3 - stale)
    assert not aside.exists()
    assert type(other.index_) is FaissIndex
    assert other.index_.store.folder == tmp_path
    torch.testing.assert_close(other.index_.vectors, one.index_.vectors, rtol=0, atol=1e-6)
    assert other.indexer.changed(other.index_.manifest, other.corpus, "soft") == []


def test_gates_in_pooling_alone_encode_nothing_while_the_retriever_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over lines stay in the system's own folder, and are saved with it."""
    one, other = system(gates="pool"), system(IndexConfig(folder=str(tmp_path)), gates="pool")
    monkeypatch.setattr(other.model, "line_sums", None)
    expected, got = (run(each, freeze=("retriever",)) for each in (one, other))
    assert [row["loss"] for row in got.history] == pytest.approx([row["loss"] for row in expected.history], abs=1e-6)
    assert not (tmp_path / ".aside").exists()
    other.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "lines").is_dir()
    with torch.no_grad():
        other.model.extractor.gates.bias += 1.0
    other.refresh()
    one.model.extractor.load_state_dict(other.model.extractor.state_dict())
    one.refresh()
    torch.testing.assert_close(other.index_.vectors, one.index_.vectors, rtol=0, atol=1e-6)


def test_a_structure_of_faiss_is_trained_over_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passages found, there is nothing left to estimate: log Z, and so the loss, is that of exact search."""
    one, other = system(), system(IndexConfig("Flat", str(tmp_path)))
    seen = watched(other, monkeypatch)
    expected, got = run(one, k=PASSAGES), run(other, k=PASSAGES, search="index")
    assert [row["loss"] for row in got.history] == pytest.approx([row["loss"] for row in expected.history], abs=1e-4)
    assert [kind for kind, _ in seen] == [FaissIndex] * 3
    assert not (tmp_path / ".aside").exists()


def test_what_fails_leaves_the_index_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In hard mode other rows are made for training; a step that fails leaves those that were there, searched as
    before."""
    rag = system(IndexConfig("Flat", str(tmp_path)), "hard")
    before, rows = rag.index_, rag.index_.vectors.clone()
    seen = watched(rag, monkeypatch)
    inside = rag.terms

    def failing(*given: Any, **settings: Any) -> Any:
        inside(*given, **settings)
        raise RuntimeError("no more")

    monkeypatch.setattr(rag, "terms", failing)
    with pytest.raises(RuntimeError, match="no more"):
        run(rag)
    assert seen == [(ExactIndex, tmp_path / ".aside")]
    assert not (tmp_path / ".aside").exists()
    assert rag.index_ is before
    assert torch.equal(rag.index_.vectors, rows)
    assert rag.search(["pilot 3 ?"]).ids.shape == (1, 2)


def test_what_fits_is_not_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mode and weights: neither on entering another mode nor on leaving it; other weights: on entering."""
    for place in (IndexConfig(), IndexConfig(folder=str(tmp_path))):
        rag = system(place)
        index, encode, calls = rag.index_, rag.model.encode, []
        counted = lambda *given, calls=calls, encode=encode: (calls.append(1), encode(*given))[1]  # noqa: E731
        monkeypatch.setattr(rag.model, "encode", counted)
        with rag.in_mode("soft"):
            assert torch.equal(rag.index_.vectors, index.vectors)
        assert (calls, rag.index_) == ([], index)
        with rag.in_mode("hard"):
            assert len(calls) == 1
        assert (len(calls), rag.index_) == (1, index)
        with rag.in_mode("soft"), torch.no_grad():
            rag.model.extractor.scores.bias += 1.0
        assert len(calls) == 2
        assert rag.index_ is not index


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_what_another_mode_made_of_lines_is_not_saved_in_place_of_ones_own(place: str, tmp_path: Path) -> None:
    """With nothing learned, or after a failure: the sums in hand are those of the index that is put back."""
    rag = system(IndexConfig(folder=str(tmp_path / "own") if place == "folder" else None), gates="pool")
    weight = rag.model.extractor.gates.weight
    with torch.no_grad():
        weight.copy_(4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    rag.refresh()
    with rag.in_mode("hard"):
        assert 0 < len(rag.corpus.passages) < PASSAGES
    rag.save_pretrained(tmp_path / "one")
    with pytest.raises(KeyError), rag.in_mode("hard"):
        raise KeyError
    rag.save_pretrained(tmp_path / "two")
    assert (tmp_path / "one" / "lines").is_dir()
    assert (tmp_path / "two" / "lines").is_dir()


def test_what_is_frozen_is_as_it_was(tmp_path: Path) -> None:
    """The extractor's temperature too, so that an index still fits it."""
    rag = system()
    before = rag.index_
    run(rag, freeze=("extractor", "retriever"))
    assert rag.index_ is before


def test_nothing_is_told_of_what_follows_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A system that is indexed tells what it takes, and so does a refresh, but not those of every step."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    rag = system(IndexConfig(folder=str(tmp_path)))
    assert capsys.readouterr().err.count("to index 80 passages") == 1
    run(rag)
    assert "to index" not in capsys.readouterr().err
    with torch.no_grad():
        rag.model.extractor.scores.bias += 1.0
    rag.refresh()
    assert capsys.readouterr().err.count("to index 80 passages") == 1
    rag.add([tiny_document([["pilot 3 was 29"]], "3.pdf")])  # in the place of another
    assert capsys.readouterr().err.count("to index 1 passages") == 1


def test_what_can_not_be_trained_over_is_refused(tmp_path: Path) -> None:
    """A Milvus serves."""
    rag = system()
    rag.config = RAGConfig(index=IndexConfig("milvus", str(tmp_path)))
    with pytest.raises(ValueError, match="one of kind 'milvus' is for serving: leave it out"):
        run(rag, search="index")
