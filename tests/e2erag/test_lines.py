"""Sums over lines lie with an index, in memory, in its folder and in a saved system: pooled anew without the model."""

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import forked
from torch import Tensor

from e2erag import RAG, RAGConfig
from e2erag.artefact import ManifestError, check_folder
from e2erag.retriever import IndexConfig, LineSums, RetrieverConfig, Store, StoreError
from e2erag.testing import tiny_document, tiny_rag

A, B, C, D = (
    tiny_document([[f"the pilot was 8{i}", f"seats {i}"], ["engine lycoming", f"damage {word}"]], f"{word}.pdf")
    for i, word in enumerate(["none", "minor", "substantial", "destroyed"])
)
SYSTEMS = ["memory", "folder", "loaded", "loaded into a folder"]


def system(folder: Path | None = None, mode: str = "soft") -> RAG:
    index = IndexConfig(folder=None if folder is None else str(folder))
    config = RAGConfig(k=2, mode=mode, precision="float32", index=index)
    return tiny_rag(config=config, retriever=RetrieverConfig(gates="pool"))


def loaded(rag: RAG, saved: Path, folder: Path | None = None) -> RAG:
    rag.save_pretrained(saved)
    return RAG.from_pretrained(saved, index=IndexConfig(folder=None if folder is None else str(folder)))


def indexed(kind: str, path: Path) -> RAG:
    """Two documents, in one of the places."""
    rag = system(path / "index" if kind == "folder" else None)
    rag.index([A, B])
    if kind.startswith("loaded"):
        return loaded(rag, path / "saved", path / "index" if kind.endswith("folder") else None)
    return rag


def changed(rag: RAG, seed: int = 0) -> None:
    """Another extractor, whose gates differ from line to line."""
    torch.manual_seed(seed)
    with torch.no_grad():
        torch.nn.init.normal_(rag.model.extractor.gates.weight, std=4.0)


def counted(rag: RAG) -> list[int]:
    """The texts that the passage tower encodes from now on, call by call."""
    sizes: list[int] = []
    rag.model.retriever.passage.transformer.register_forward_pre_hook(
        lambda _, given, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    return sizes


def afresh(rag: RAG) -> Tensor:
    """Every row by the model, with the present weights."""
    corpus, mode = rag.corpus, rag.config.mode
    assert corpus is not None
    with torch.no_grad():
        gates = rag.model.gates(corpus, mode)
        every = torch.arange(len(corpus.passages))
        return rag.model.encode(corpus, every, gates, rag.model.log_prior(corpus, gates), mode)


def passages(rag: RAG, *documents: object) -> int:
    return sum(passage.document.sha256 in {d.sha256 for d in documents} for passage in rag.corpus.passages)


@pytest.mark.parametrize("at_once", [1, 3, 4096])
@pytest.mark.parametrize("kind", SYSTEMS)
def test_a_changed_extractor_encodes_nothing_and_another_encoder_all(
    kind: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the index lies, pooled in portions of any size: rows equal those encoded afresh, twice in a row."""
    monkeypatch.setattr("e2erag.indexing.AT_ONCE", at_once)
    monkeypatch.setattr("e2erag.indexing.PORTION", at_once)
    rag = indexed(kind, tmp_path)
    sizes = counted(rag)
    for seed in range(2):
        before = rag.index_.vectors.clone()
        changed(rag, seed)
        rag.refresh()
        assert sizes == []
        assert (rag.index_.vectors - before).abs().max() > 1e-2
        torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)
        sizes.clear()
    with torch.no_grad():
        next(rag.model.retriever.passage.transformer.parameters()).add_(0.1)
    rag.refresh()
    assert sum(sizes) == len(rag.corpus.passages)
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("kind", SYSTEMS)
def test_documents_that_come_and_go_are_all_that_is_encoded(kind: str, mode: str, tmp_path: Path) -> None:
    """Two come, one is replaced, one goes; and afterwards a change of the extractor encodes nothing, also once the
    result is saved and loaded."""
    rag = indexed(kind, tmp_path)
    rag.config = rag.config if mode == "soft" else RAGConfig(mode=mode, precision="float32", index=rag.config.index)
    rag.refresh()
    sizes = counted(rag)
    rag.add([C, D])
    assert sum(sizes) == passages(rag, C, D)
    sizes.clear()
    other = tiny_document([["the pilot was 90"]], B.file)
    rag.add([other])
    assert sum(sizes) == passages(rag, other)
    sizes.clear()
    rag.delete([A.file])
    assert sizes == []
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)
    for each in (rag, loaded(rag, tmp_path / "again")):
        sizes, before = counted(each), each.index_.manifest
        with torch.no_grad():  # so little that hard gates leave the same candidates
            each.model.extractor.gates.bias.add_(1e-3)
        each.refresh()
        assert sizes == []
        assert each.index_.manifest["extractor"] != before["extractor"]
    names = {document.sha256 for document in (other, C, D)}
    assert {source.name for source, _ in rag.indexer.lines.store.sources()} == names


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_documents_whose_candidates_stay_keep_their_sums(where: str, tmp_path: Path) -> None:
    """Other candidates of one document are encoded, as hard gates make them, and those of the other are not."""
    rag = system(tmp_path if where == "folder" else None, "hard")
    rag.index([A, B])
    sizes, corpus = counted(rag), rag._lay_out([A, B])
    corpus.take(rag.corpus.spans.spans[:-1], rag.model.extractor, rag.config.overlap)
    rag.index_, rag.corpus = rag.indexer.encode(corpus, "hard", rag.config.index), corpus
    assert sum(sizes) == passages(rag, B)
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)


def killed_at(sums: Callable[..., LineSums], calls: list[int], at: int) -> Callable[..., LineSums]:
    """Killed in the call of this number; the calls that were made are noted."""

    def call(*given: object) -> LineSums:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return sums(*given)

    return call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is killed")
def test_a_killed_build_of_sums_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the third of four documents is encoded, the same call encodes two; killed while the second of three
    is added, the index is as it was and adding encodes two."""
    monkeypatch.setattr("e2erag.indexing.AT_ONCE", 1)
    rag, calls = system(tmp_path), []
    sums = rag.model.line_sums
    monkeypatch.setattr(rag.model, "line_sums", killed_at(sums, calls, 3))
    assert forked(lambda: rag.index([A, B, C, D])) == -1
    monkeypatch.setattr(rag.model, "line_sums", killed_at(sums, calls, -1))
    rag.index([A, B, C, D])
    assert len(calls) == 2
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)
    shutil.rmtree(tmp_path)
    rag = system(tmp_path)
    rag.index([A])
    before, sums = rag.index_.vectors.clone(), rag.model.line_sums
    calls.clear()
    monkeypatch.setattr(rag.model, "line_sums", killed_at(sums, calls, 2))
    assert forked(lambda: rag.add([B, C, D])) == -1
    monkeypatch.setattr(rag.model, "line_sums", killed_at(sums, calls, -1))
    assert torch.equal(Store.open(tmp_path).rows, before)
    rag.add([B, C, D])
    assert len(calls) == 2
    sizes = counted(rag)
    changed(rag)
    rag.refresh()
    assert sizes == []
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is killed")
def test_killed_at_any_point_of_a_refresh_the_same_call_ends_it_without_encoding(tmp_path: Path) -> None:
    """The system was just loaded into a folder that holds nothing: what is saved is copied there first."""
    start = system()
    start.index([A, B])
    start.save_pretrained(tmp_path / "saved")

    def refreshed(folder: Path) -> RAG:
        rag = RAG.from_pretrained(tmp_path / "saved", index=IndexConfig(folder=str(folder)))
        changed(rag)
        sizes = counted(rag)
        rag.refresh()
        assert sizes == []
        return rag

    expected = refreshed(tmp_path / "whole").index_.vectors
    traced = ("e2erag/lines.py", "retriever/store.py", "retriever/ledger.py")
    total = forked(lambda: refreshed(tmp_path / "done"), None, traced)
    for point in range(total // 6, total, total // 6):
        folder = tmp_path / str(point)
        assert forked(lambda folder=folder: refreshed(folder), point, traced) == -1
        assert torch.equal(refreshed(folder).index_.vectors, expected)


@pytest.mark.parametrize("kind", ["folder", "loaded into a folder"])
def test_sums_that_have_changed_are_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    """One bit of one sum, and a file cut short: nothing is pooled from it; deleted, they are encoded anew."""
    rag = indexed(kind, tmp_path)
    changed(rag)
    lines, before = tmp_path / "index" / "lines", rag.index_.vectors.clone()
    (file,) = lines.glob("rows-*.bin")
    whole = file.read_bytes()
    for broken in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1]):
        file.write_bytes(broken)
        with pytest.raises(StoreError, match=r"Line sums can be made again: delete .*lines, and they are encoded anew"):
            rag.refresh()
        assert torch.equal(rag.index_.vectors, before)
        file.write_bytes(whole)
    file.write_bytes(bytes(len(whole)))
    shutil.rmtree(lines)
    rag.indexer.lines.store, sizes = None, counted(rag)
    rag.refresh()
    assert sum(sizes) == len(rag.corpus.passages)
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)


def test_a_saved_system_covers_its_sums_and_stays_as_it_was(tmp_path: Path) -> None:
    """They are in its manifest; refreshing, adding and deleting write nothing there; changed, it isn't loaded."""
    rag, saved = indexed("loaded", tmp_path), tmp_path / "saved"
    manifest = check_folder(saved)
    assert {"lines/ledger.sqlite", "lines/rows-1.bin"} <= set(manifest["files"])
    other = RAG.from_pretrained(saved, index=IndexConfig(folder=str(tmp_path / "other")))
    for each in (rag, other):
        each.add([C])
        changed(each)
        each.refresh()
        each.delete([A.file])
        assert check_folder(saved) == manifest
    other.save_pretrained(saved)  # over the one that `rag` was loaded from
    sizes = counted(rag)
    changed(rag)
    rag.refresh()
    assert sizes == []
    file = saved / "lines" / "rows-1.bin"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(ManifestError, match=r"rows-1\.bin has changed"):
        RAG.from_pretrained(saved)


def test_a_system_that_is_saved_over_pools_what_it_was_loaded_with(tmp_path: Path) -> None:
    """Another takes the saved system's place while this one still reads its sums: they are those of before."""
    rag = indexed("loaded", tmp_path)
    other = system()
    other.index([D, C])
    other.save_pretrained(tmp_path / "saved")
    sizes = counted(rag)
    changed(rag)
    rag.refresh()
    assert sizes == []
    torch.testing.assert_close(rag.index_.vectors, afresh(rag), atol=1e-6, rtol=1e-6)


def test_a_refresh_of_some_passages_pools_them(tmp_path: Path) -> None:
    """Their rows are of the present extractor, without the model."""
    rag = indexed("loaded", tmp_path)
    sizes, before = counted(rag), rag.index_.vectors.clone()
    changed(rag)
    rag.refresh(torch.tensor([2, 0]))
    assert sizes == []
    now, rest = afresh(rag), torch.arange(len(before)) % 2 > 0
    torch.testing.assert_close(rag.index_.vectors[[2, 0]], now[[2, 0]], atol=1e-6, rtol=1e-6)
    assert torch.equal(rag.index_.vectors[rest, :-1], before[rest, :-1])


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_what_sums_take_is_told(where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of 33 numbers and sums of 33, four bytes each, one sum for a line and one more per passage; a refresh that
    encodes nothing says nothing."""
    rag = system(tmp_path if where == "folder" else None)
    told, tell = [], rag.indexer._tell
    rag.indexer._tell = lambda *given: (told.append(tell(*given)), told[-1])[1]
    with caplog.at_level(logging.INFO, "e2erag.indexing"):
        rag.index([A, B])
        changed(rag)
        rag.refresh()
    count, entries = len(rag.corpus.passages), len(rag.corpus.entries[0])
    assert entries == sum(len(rag.corpus.lines(i)[0]) + 1 for i in range(count))
    rows, sums = count * 33 * 4, entries * 33 * 4
    on_disk = where == "folder"
    assert told[0][:2] == ((rows + sums) * on_disk, rows * (1 + on_disk) + sums)
    assert caplog.messages == [f"to index {count} passages: {told[0]}"]
    if on_disk:
        assert told[1][:2] == (rows, rows * 2)
        (file,) = (tmp_path / "lines").glob("rows-*.bin")
        assert file.stat().st_size == sums


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_a_corpus_without_a_passage_is_told_what_an_index_needs(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an index needs at least one passage, got none"):
        system(tmp_path if place == "folder" else None).index([tiny_document([[]], "empty.pdf")])


def test_sums_of_another_encoder_are_replaced_without_being_read(tmp_path: Path) -> None:
    """Changed on the disk, they are refused only where they would be used."""
    rag = indexed("folder", tmp_path)
    (rows,) = (tmp_path / "index" / "lines").glob("rows-*.bin")
    data = bytearray(rows.read_bytes())
    data[5] ^= 1
    rows.write_bytes(data)
    with pytest.raises(StoreError, match=r"delete .*lines, and they are encoded anew"):
        rag.refresh()
    with torch.no_grad():
        next(rag.model.retriever.passage.transformer.encoder.parameters())[0, 0] += 0.1
    rag.refresh()


def test_processes_that_load_into_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    """Four at a time: one copies rows and sums, and all have them."""
    indexed("memory", tmp_path).save_pretrained(tmp_path / "saved")

    def load() -> None:
        torch.set_num_threads(1)  # a forked child has no thread pool
        again = RAG.from_pretrained(tmp_path / "saved", index=IndexConfig(folder=str(tmp_path / "index")))
        assert len(again.index_) == len(again.corpus.passages)
        assert again.indexer.lines.store is not None

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=load) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
