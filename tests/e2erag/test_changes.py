"""Documents come and go one by one, in memory and in a folder; the result is what indexing all of them gives."""

import logging
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import forked

from e2erag import RAG, RAGConfig
from e2erag.estimate import Estimate
from e2erag.extract import ReadError
from e2erag.retriever import FaissIndex, IndexConfig, RetrieverConfig, Store, StoreError
from e2erag.testing import tiny_document, tiny_rag

A, B, C, D = (
    tiny_document([[f"the pilot was 8{i}", f"seats {i}"], ["engine lycoming", f"damage {word}"]], f"{word}.pdf")
    for i, word in enumerate(["none", "minor", "substantial", "destroyed"])
)
QUESTIONS = ["seats ?", "what damage ?", "who was the pilot ?"]


def system(index: IndexConfig | None = None, mode: str = "hard", gates: str = "attend") -> RAG:
    config = RAGConfig(k=2, mode=mode, precision="float32", index=index or IndexConfig())
    return tiny_rag(config=config, retriever=RetrieverConfig(gates=gates))


def same(one: RAG, other: RAG) -> None:
    """Two systems with the same documents in the same order find and store the same."""
    assert [d.file for d in one.corpus.documents] == [d.file for d in other.corpus.documents]
    assert [p.text for p in one.corpus.passages] == [p.text for p in other.corpus.passages]
    assert list(one.index_.sources()) == list(other.index_.sources())
    torch.testing.assert_close(one.index_.vectors, other.index_.vectors, rtol=0, atol=1e-5)
    found, expected = one.search(QUESTIONS), other.search(QUESTIONS)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.prior_logp, expected.prior_logp, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gates", ["attend", "pool"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_added_and_deleted_documents_leave_what_indexing_the_rest_gives(
    where: str, mode: str, gates: str, tmp_path: Path
) -> None:
    """Two and then two more are four; without the second, three; each to 1e-5, and each answers alike."""
    rag = system(IndexConfig(folder=str(tmp_path)) if where == "folder" else None, mode, gates)
    whole = system(None, mode, gates)
    rag.index([A, B])
    assert rag.add([C, D]) == (2, 0, 0, [])
    whole.index([A, B, C, D])
    same(rag, whole)
    assert rag.ask("seats ?").text == whole.ask("seats ?").text
    assert rag.delete("minor.pdf") == 1
    whole.index([A, C, D])
    same(rag, whole)


def test_what_is_indexed_already_is_not_encoded_again(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding encodes what is new, adding again and deleting nothing, replacing the replacement."""
    rag = system()
    rag.index([A, B])
    seen: list[int] = []
    encode = rag.model.encode
    monkeypatch.setattr(
        rag.model,
        "encode",
        lambda corpus, passages, *rest: (seen.append(len(passages)), encode(corpus, passages, *rest))[1],
    )
    rag.add([A, C])
    count = len(rag.corpus.passages)
    assert seen == [count - sum(p.document in (A, B) for p in rag.corpus.passages)]
    assert rag.add([A, B, C]) == (0, 0, 3, [])
    rag.delete([A.file])
    assert sum(seen[1:]) == 0
    other = tiny_document([["the pilot was 90"]], "minor.pdf")
    assert rag.add([other]) == (1, 1, 0, [])
    assert sum(seen[1:]) == sum(p.document is other for p in rag.corpus.passages)
    assert [d.sha256 for d in rag.corpus.documents] == [C.sha256, other.sha256]


def test_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    """A file that hasn't changed isn't read, one that has takes its own place, one that can't be read is told."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the pilot of {name} was 85")
    rag = system()
    rag.index(tmp_path)
    (tmp_path / "b.txt").write_text("the pilot was somebody else")
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.warns(UserWarning, match=r"skipped .*c\.pdf"):
        done = rag.add(tmp_path)
    assert done[:3] == (1, 1, 1)
    assert [type(error) for error in done.failed] == [ReadError]
    assert [p.text for p in rag.corpus.passages] == ["the pilot of a was 85", "the pilot was somebody else"]


def test_a_name_keeps_its_own_bytes_also_where_they_are_known_by_another(tmp_path: Path) -> None:
    """Swapped, each text is found under its new name; a copy leaves one document and nothing stale."""
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("seats of a 1")
    b.write_text("seats of b 2")
    rag = system()
    rag.index(tmp_path)
    a.write_text("seats of b 2")
    b.write_text("seats of a 1")
    assert rag.add(tmp_path)[:3] == (2, 2, 0)
    assert {(p.document.name, p.text) for p in rag.corpus.passages} == {
        ("a.txt", "seats of b 2"),
        ("b.txt", "seats of a 1"),
    }
    b.write_text("seats of b 2")
    rag.add(tmp_path)
    assert [p.text for p in rag.corpus.passages] == ["seats of b 2"]
    with pytest.warns(UserWarning, match="skipped"):
        assert len(rag.add("x" * 5000 + ".txt").failed) == 1


def test_two_documents_of_one_name_are_not_taken_in_one_call() -> None:
    """Deleting one would delete the other; a copy under its own name is the same document."""
    rag = system()
    other = replace(C, file=A.file)
    with pytest.warns(UserWarning, match="is the same file as"):
        rag.index([A, A, B])
    for change in (rag.index, rag.add):
        with pytest.raises(ValueError, match=r"two different ones are called 'none\.pdf': rename one"):
            change([A, B, other])
    assert rag.add([other])[:2] == (1, 1)
    assert [d.sha256 for d in rag.corpus.documents] == [B.sha256, C.sha256]


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_document_without_a_line_changes_nothing_else(mode: str) -> None:
    rag = system(mode=mode)
    rag.index([A, B])
    empty = tiny_document([[]], "empty.pdf")
    assert rag.add([empty])[0] == 1
    assert rag.ask("seats ?").citations
    rag.add([C])
    rag.delete(A.file)
    whole = system(mode=mode)
    whole.index([B, empty, C])
    same(rag, whole)


def test_a_folder_in_which_another_system_has_written_is_not_added_to(tmp_path: Path) -> None:
    """Its rows are no longer those of this system's passages."""
    one, other = (system(IndexConfig(folder=str(tmp_path / "work"))) for _ in range(2))
    one.index([A, B])
    one.save_pretrained(tmp_path / "saved")
    other.index([D])
    for change in (lambda: one.add([C]), lambda: one.delete(A.file)):
        with pytest.raises(StoreError, match="a folder of its own"):
            change()


def test_what_is_saved_is_not_written_into_and_not_copied_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder inside a saved system is refused; a second load takes the copy, structure and all, that is there; and a
    system that could not be indexed again after training says so before."""
    rag = system(IndexConfig("Flat", str(tmp_path / "work")))
    rag.index([A, B])
    saved, own = tmp_path / "saved", IndexConfig("Flat", str(tmp_path / "own"))
    rag.save_pretrained(saved)
    with pytest.raises(ValueError, match="is in the saved system"):
        RAG.from_pretrained(saved, index=IndexConfig(folder=str(saved / "index")))
    trained: list[str] = []
    train = FaissIndex._trained
    monkeypatch.setattr(
        FaissIndex, "_trained", lambda index, name, *size: (trained.append(name), train(index, name, *size))[1]
    )
    for _ in range(2):
        again = RAG.from_pretrained(saved, index=own)
        again.search(QUESTIONS)
    assert trained == []
    again.add([C])
    with pytest.warns(UserWarning, match="held another index, which is replaced"):
        RAG.from_pretrained(saved, index=own)
    with pytest.raises(ValueError, match="give IndexConfig a folder"):
        RAG.from_pretrained(saved).fit([{"question": "seats ?", "answers": ["2"]}], progress=False)
    assert len(RAG.from_pretrained(saved).corpus.documents) == 2


def test_no_change_to_an_index_of_other_weights_and_none_of_nothing(rag: RAG) -> None:
    """Rows of two encoders don't belong together; an unknown name is answered with the nearest."""
    rag = system()
    rag.index([A, B])
    with pytest.raises(KeyError, match=r"'minor.pd' is not indexed: did you mean 'minor.pdf'\?"):
        rag.delete("minor.pd")
    with pytest.raises(ValueError, match="at least one document"):
        rag.delete([A.file, B.file])
    assert [d.file for d in rag.corpus.documents] == [A.file, B.file]
    with torch.no_grad():
        next(rag.model.retriever.passage.transformer.encoder.parameters())[0, 0] += 0.1
    for change in (lambda: rag.add([C]), lambda: rag.delete(A.file)):
        with pytest.raises(RuntimeError, match=r"encoder changed since.*rag\.refresh\(\) first"):
            change()
    rag.refresh()
    rag.add([C])
    assert len(rag.corpus.documents) == 3


@pytest.mark.parametrize("kind", ["exact", "auto", "HNSW"])
def test_a_system_in_a_folder_is_saved_loaded_and_changed_there(kind: str, tmp_path: Path) -> None:
    """A saved system stays as it is: changed is a copy, in memory for exact search, else in a folder that is given."""
    rag = system(IndexConfig(kind, str(tmp_path / "work"), "float16"))
    rag.index([A, B])
    assert isinstance(rag.index_, FaissIndex) == (kind != "exact")
    assert rag.index_.manifest["dtype"] == "float16"
    rag.save_pretrained(tmp_path / "saved")
    again = RAG.from_pretrained(tmp_path / "saved")
    assert again.config.index == IndexConfig(kind, None, "float16")
    same(again, rag)
    if kind == "exact":
        again.add([C])
    else:
        with pytest.raises(RuntimeError, match="stays as it was saved"):
            again.add([C])
        with pytest.raises(ValueError, match=r"saved without a structure of kind 'IVF'.*give IndexConfig a folder"):
            RAG.from_pretrained(tmp_path / "saved", index=IndexConfig("IVF"))
        again = RAG.from_pretrained(tmp_path / "saved", index=IndexConfig(kind, str(tmp_path / "own"), "float16"))
        assert isinstance(again.index_, FaissIndex)
        again.add([C])
    rag.add([C])
    assert len(again.corpus.documents) == 3
    same(again, rag)
    assert len(RAG.from_pretrained(tmp_path / "saved").corpus.documents) == 2


def test_a_copy_of_a_saved_index_is_in_the_dtype_asked_for_and_encodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved from memory in float32, searched in a folder in float16; then a document leaves."""
    rag = system()
    rag.index([A, B])
    rag.save_pretrained(tmp_path / "saved")
    again = RAG.from_pretrained(tmp_path / "saved", index=IndexConfig("Flat", str(tmp_path / "own"), "float16"))
    assert again.index_.vectors.dtype == torch.float16
    monkeypatch.setattr(again.model, "encode", None)
    again.delete(A.file)
    rag.delete(A.file)
    torch.testing.assert_close(again.index_.vectors.float(), rag.index_.vectors, rtol=0, atol=1e-3)


def test_it_learns_and_is_back_in_its_folder_afterwards(tmp_path: Path) -> None:
    rag = system(IndexConfig("Flat", str(tmp_path)))
    rag.index([A, B, C])
    rag.fit([{"question": "seats ?", "answers": ["2"]}], epochs=1, k=2, progress=False)
    assert isinstance(rag.index_, FaissIndex)
    assert rag.indexer.changed(rag.index_.manifest, rag.corpus, "hard") == []
    rag.add([D])


def test_a_killed_build_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document at a time is written; killed while the third is encoded, the next run encodes two of four."""
    monkeypatch.setattr("e2erag.indexing.AT_ONCE", 1)
    rag = system(IndexConfig(folder=str(tmp_path)))
    encode, calls = rag.model.encode, []

    def counted(*given: object) -> torch.Tensor:
        calls.append(1)
        if os.getpid() != parent and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*given)

    parent = os.getpid()
    monkeypatch.setattr(rag.model, "encode", counted)
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        rag.index([A, B, C, D])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    rag.index([A, B, C, D])
    assert len(calls) == 2
    whole = system()
    whole.index([A, B, C, D])
    same(rag, whole)


def test_a_killed_add_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the third of three documents is encoded: the index is as it was, and the same calls by another
    process encode that one alone, whether they load or index the first."""
    monkeypatch.setattr("e2erag.indexing.AT_ONCE", 1)
    work = tmp_path / "work"
    rag = system(IndexConfig(folder=str(work)))
    rag.index([A])
    rag.save_pretrained(tmp_path / "saved")
    encode, encoded = rag.model.encode, []

    def killed(*given: object) -> torch.Tensor:
        encoded.append(1)
        if len(encoded) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*given)

    monkeypatch.setattr(rag.model, "encode", killed)
    assert forked(lambda: rag.add([B, C, D])) == -1
    shutil.copytree(work, tmp_path / "other")
    whole = system()
    whole.index([A, B, C, D])
    again = RAG.from_pretrained(tmp_path / "saved", index=IndexConfig(folder=str(work)))
    anew = system(IndexConfig(folder=str(tmp_path / "other")))
    anew.index([A])
    for each in (again, anew):
        encoded.clear()
        encode = each.model.encode
        monkeypatch.setattr(each.model, "encode", lambda *given, encode=encode: (encoded.append(1), encode(*given))[1])
        assert each.add([B, C, D])[0] == 3
        assert len(encoded) == 1
        same(each, whole)
        assert not (Path(each.config.index.folder) / "adding").exists()


def test_a_refresh_killed_at_any_line_leaves_the_old_or_the_new_index(tmp_path: Path) -> None:
    """At seeded lines of what writes: rows and what they were made with belong together, and the same call ends it."""
    rag = system(IndexConfig(folder=str(tmp_path / "start")))
    rag.index([A, B, C])
    with torch.no_grad():
        next(rag.model.retriever.passage.transformer.encoder.parameters())[0, 0] += 0.1

    def refresh(folder: Path, at: int | None = None) -> int:
        rag.config = replace(rag.config, index=IndexConfig(folder=str(folder)))
        return forked(rag.refresh, at)

    def content(folder: Path) -> tuple[dict[str, object], list[list[float]]]:
        store = Store.open(folder)
        return store.manifest, store.rows.tolist()

    shutil.copytree(tmp_path / "start", tmp_path / "done")
    total = refresh(tmp_path / "done")
    old, new = content(tmp_path / "start"), content(tmp_path / "done")
    assert old[0]["encoder"] != new[0]["encoder"]
    assert old[1] != new[1]
    seen = set()
    for point in [*random.Random(0).sample(range(1, total), 11), total]:
        folder = tmp_path / str(point)
        shutil.copytree(tmp_path / "start", folder)
        assert refresh(folder, point) == -1
        found = content(folder)
        assert found in (old, new)
        seen.add(found == new)
        assert refresh(folder) > 0
        assert content(folder) == new
    assert seen == {False, True}


@pytest.mark.parametrize("kind", ["memory", "exact", "Flat"])
def test_what_a_build_takes_is_told_before_anything_is_encoded(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk and memory by counting, time from a few passages where there are many; what has no room is refused."""
    folder = None if kind == "memory" else str(tmp_path)
    rag = system(IndexConfig("Flat" if kind == "Flat" else "exact", folder, "float16"))
    encode, tell, told, before = rag.model.encode, rag.indexer._tell, [], []
    monkeypatch.setattr(rag.indexer, "_tell", lambda *given: (told.append(tell(*given)), told[-1])[1])
    monkeypatch.setattr(rag.model, "encode", lambda *given: (before.append(len(caplog.messages)), encode(*given))[1])
    monkeypatch.setattr(rag.indexer, "_seconds", lambda *_: 90.0)
    with caplog.at_level(logging.INFO, "e2erag.indexing"):
        rag.index([A, B])
        count = len(rag.corpus.passages)
        monkeypatch.setattr("e2erag.indexing.PROBE", count // 20)
        rag.index([C, D])
    assert before == [1, 2]
    numbers, structure = count * 33, 4 * 33 * count * (kind == "Flat")
    expected = Estimate(0 if folder is None else 2 * numbers, (4 + 2) * numbers, structure)
    assert told == [expected, expected._replace(seconds=90.0)]
    assert caplog.messages == [f"to index {count} passages: {each}" for each in told]
    assert str(Estimate(10**6, 10**7, 10**6, 90)) == "2.0 MB of disk, 11.0 MB of memory, about 1.5 minutes to encode"
    if folder:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2 * numbers - 1))
        with pytest.raises(OSError, match="nothing was written: make room"):
            rag.index([A, D])
        assert [d.file for d in rag.corpus.documents] == [C.file, D.file]
        needs = told[-1].disk + told[-1].structure
        free = [needs - 1]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free[0]))
        with pytest.raises(OSError, match="nothing was written: make room"):
            rag.index([A, D])
        free[0] = needs
        rag.index([A, D])
        assert [d.file for d in rag.corpus.documents] == [A.file, D.file]


def test_time_is_told_of_many_passages_and_a_terminal_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a few of them, the longest among them; beside a terminal's bars, and not where those aren't wanted."""
    rag, many = system(), [tiny_document([["the pilot was 85", "seats 4"] * 9] * 9)]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("e2erag.indexing.PROBE", 2)
    encode, sizes = rag.model.encode, []
    monkeypatch.setattr(
        rag.model, "encode", lambda corpus, some, *rest: (sizes.append(len(some)), encode(corpus, some, *rest))[1]
    )
    rag.index(many, progress=False)
    assert capsys.readouterr().err == ""
    rag.index(many)
    count = len(rag.corpus.passages)
    assert sizes == [count, 1, 2, count]
    assert re.search(
        rf"to index {count} passages: .* MB of memory, about \d+\.\d minutes to encode\n", capsys.readouterr().err
    )


def test_settings_of_an_index_that_go_together() -> None:
    """What can't be is refused with the way out."""
    with pytest.raises(ValueError, match="one of exact, auto, Flat"):
        IndexConfig("LSH")
    with pytest.raises(ValueError, match="set it to milvus"):
        IndexConfig(uri="http://localhost:19530")
    with pytest.raises(ValueError, match="give IndexConfig its name"):
        IndexConfig("milvus", "x", uri="http://localhost:19530")
    with pytest.raises(ValueError, match="give IndexConfig a folder"):
        system(IndexConfig("HNSW")).index([A])
    cluster = {"kind": "milvus", "name": "x"}
    for more, error in [
        ({"uri": "http://root:SECRET@host:1"}, "must hold no user, and this one does: name .* token_env"),
        ({"uri": "http://host:1", "token_env": "root:SECRET"}, "name of an environment variable .* export that"),
        ({"token_env": "MILVUS_TOKEN"}, "no uri came: give the cluster's"),
    ]:
        with pytest.raises(ValueError, match=error) as refused:
            IndexConfig(**cluster, **more)
        assert "SECRET" not in str(refused.value)
    assert issubclass(StoreError, ValueError)


def test_a_clusters_token_comes_from_the_environment_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It reaches pymilvus' client; no file, log or error has it; where it isn't set, that is said."""
    pymilvus = pytest.importorskip("pymilvus", reason="pymilvus isn't installed: pip install 'e2erag[milvus]'")
    asked = []

    def client(uri: str, token: str) -> None:
        asked.append((uri, token))
        raise pymilvus.MilvusException(message="nobody answers")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MILVUS_TOKEN", "root:SECRET")
    caplog.set_level("DEBUG")
    rag = system(IndexConfig("milvus", str(tmp_path / "work"), uri="http://h:1", name="x", token_env="MILVUS_TOKEN"))
    rag.index([A])
    rag.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConnectionError, match="Milvus must answer at http://h:1") as failed:
        RAG.from_pretrained(tmp_path / "saved").search(["x"])
    assert asked == [("http://h:1", "root:SECRET")]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"MILVUS_TOKEN" in file for file in files)
    shown = [caplog.text, str(failed.value), repr(rag.config)]
    assert not any(b"SECRET" in file for file in [*files, *(text.encode() for text in shown)])
    monkeypatch.delenv("MILVUS_TOKEN")
    with pytest.raises(ValueError, match=r"MILVUS_TOKEN must hold .* not set: export it"):
        RAG.from_pretrained(tmp_path / "saved")
