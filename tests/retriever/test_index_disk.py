"""A disk that is full or read-only: every change of every kind of index says so, and what was there stays, whole."""

import errno
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import versions
from helpers import BY_URI, INDEXES, forked, loaded, serving

from e2erag.retriever import ExactIndex, FaissIndex, Index, MilvusIndex, Source, Store

DIM = 15


def rows_of(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))
    return filler


def content(index: Index) -> list[list[list[float]]]:
    return [index.vectors[where].tolist() for _, where in index.sources()]


def answers(index: Index) -> list[list[float]]:
    return index.search(rows_of(3, 9), 7).scores.tolist()


def build(index: Index) -> None:
    index.store.build([[Source("a", "2", 2000)]], lambda _: rows_of(2000, 2), {"encoder": 2})


CHANGES: dict[str, Callable[[Index], object]] = {
    "build": build,
    "add": lambda index: index.add([Source("c", "1", 2000)], rows_of(2000, 3)),
    "update": lambda index: index.update([Source("b", "2", 2000)], rows_of(2000, 4)),
    "delete": lambda index: index.delete(["b"]),
    "save": lambda index: index.save(index.store.folder.parent / "saved"),
}


WITH_ROOM = [kind for kind in (*INDEXES, BY_URI) if kind != "Milvus Lite"]  # whose copy is below


@pytest.mark.parametrize("over", WITH_ROOM, indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_without_room_is_told_and_the_old_index_stays(
    over: Callable[[Store], Index], change: str, small_disk: Path
) -> None:
    """What was there, and what was saved there, answers as before, to who has it open and to who opens it; with room
    the same call ends."""

    index = over(Store(small_disk / "a"))
    index.add([Source("a", "1", 300), Source("b", "1", 300)], rows_of(600, 0))
    index.save(small_disk / "saved")
    before = answers(index)
    index.update([Source("a", "3", 300)], rows_of(300, 5))
    now, old = answers(index), content(index)
    filler = fill(small_disk, 0)
    with pytest.raises(OSError, match="what was there before stays as it was: make room") as told:
        CHANGES[change](index)
    assert told.value.errno == errno.ENOSPC
    assert answers(index) == now
    assert answers(over(Store(small_disk / "a"))) == now
    Store.open(small_disk / "a")  # every hash
    assert answers(loaded(index, small_disk / "saved")) == before
    filler.unlink()
    CHANGES[change](index)
    changed = loaded(index, small_disk / "saved") if change == "save" else over(Store(small_disk / "a"))
    assert content(changed) == content(index)
    assert (content(index) != old) == (change != "save")
    assert torch.isfinite(torch.tensor(answers(changed))).all()


def test_rows_saved_without_room_for_their_structure_say_so(small_disk: Path) -> None:
    """The rows are whole and searchable, and the error doesn't say that nothing has changed."""
    index = FaissIndex(Store(small_disk / "a"), "Flat")
    index.add([Source("a", "1", 3000)], rows_of(3000, 0))
    index.search(rows_of(1, 9), 1)
    for gone in (0, 1):
        filler = fill(small_disk, 3000 * DIM * 4 + 80_000)
        with pytest.raises(OSError, match=r"rows are saved in .*, and Flat's structure isn't .*: make room or") as told:
            index.save(small_disk / "saved")
        assert told.value.errno == errno.ENOSPC
        assert "stays as it was" not in str(told.value)
        del told  # which maps what was saved
        filler.unlink()
        assert len(ExactIndex.load(small_disk / "saved")) == len(index)
        shutil.rmtree(small_disk / "saved")
        if not gone:  # next its rows have other numbers there, so that it is built
            index.add([Source("b", "1", 10)], rows_of(10, 1))
            index.delete(["b"])


@pytest.mark.parametrize("left", [0, 60_000])
def test_without_room_for_its_copy_milvus_says_so_and_goes_on_later(left: int, small_disk: Path) -> None:
    """Not for an empty collection, or for a part of the rows alone: the rows stay, and with room the same index and
    another process' find everything."""
    pytest.importorskip("milvus_lite", reason="Milvus Lite isn't installed: pip install 'e2erag[milvus]'")
    Store(small_disk / "a").add([Source("a", "x", 2000)], torch.randn(2000, DIM))
    filler = small_disk / "filler"

    def same(index: MilvusIndex) -> None:
        hits, exact = (each.search(torch.eye(DIM), 5) for each in (index, ExactIndex(index.store)))
        assert torch.equal(hits.ids, exact.ids)

    def full() -> None:
        index = MilvusIndex(Store(small_disk / "a"))
        before = content(index)
        fill(small_disk, left)
        for _ in range(2):
            with pytest.raises(OSError, match=r"milvus.db'\); what was there .* stays as it was: make room") as told:
                index.search(torch.eye(DIM), 5)
            assert told.value.errno == errno.ENOSPC
        assert content(ExactIndex.load(small_disk / "a")) == before
        if not left:  # a process that ended here left what the next one finds
            return
        filler.unlink()
        same(index)

    assert forked(full) > 0
    filler.unlink(missing_ok=True)
    assert forked(lambda: same(MilvusIndex(Store(small_disk / "a")))) > 0


def test_without_room_in_milvus_elsewhere_that_is_told_and_mended_there(small_disk: Path, tmp_path: Path) -> None:
    """Its disk is full: the error names the Milvus; the rows stay, and with room the same index finds everything."""
    pytest.importorskip("milvus_lite", reason="Milvus Lite isn't installed: pip install 'e2erag[milvus]'")
    store = Store(tmp_path / "a")
    store.add([Source("a", "x", 2000)], rows_of(2000, 0))
    with serving(small_disk)() as uri:
        index = MilvusIndex(store, uri, name="small")
        filler = fill(small_disk, 60_000)
        for _ in range(2):
            with pytest.raises(OSError, match=r"Milvus must have room and leave to write, .*No space left") as told:
                index.search(torch.eye(DIM), 5)
            assert (told.value.errno, told.value.filename) == (errno.ENOSPC, uri)
        filler.unlink()
        assert torch.equal(index.search(torch.eye(DIM), 5).ids, ExactIndex(store).search(torch.eye(DIM), 5).ids)


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """The error says so; what was there stays, and can still be read."""
    versions.build(small_disk / "a", 1)
    before = versions.content(small_disk / "a")
    with pytest.raises(OSError, match="what was there before stays as it was: make room"):
        Store(small_disk / "a").add([Source("large", "x", 10**5)], torch.ones(10**5, 4))
    assert versions.content(small_disk / "a") == before
    assert Store(small_disk / "a").add([Source("small", "x", 10)], torch.ones(10, 4)) == 10


def test_a_build_that_filled_the_disk_says_what_of_it_lies_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the fourth of six batches. What is done can be kept, or be deleted and encoded again."""
    versions.build(tmp_path, 1)
    flush, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = sum(source.passages for batch in versions.sources(1)[:3] for source in batch)
    begun = tmp_path / "rows-2.bin"
    with pytest.raises(OSError, match=f"make room. {begun} holds {done} passages of a build .* encoded again"):
        Store(tmp_path).build(versions.sources(1), versions.rows_of, {"encoder": 3})
    assert begun.stat().st_size == done * 16
    shutil.copytree(tmp_path, tmp_path / "kept")
    begun.unlink()
    assert Store(tmp_path).build(versions.sources(1), versions.rows_of, {"encoder": 3}) == 90
    assert Store(tmp_path / "kept").build(versions.sources(1), versions.rows_of, {"encoder": 3}) == 90 - done
    assert versions.content(tmp_path) == versions.content(tmp_path / "kept")


def test_a_read_only_folder_is_read_and_not_written(small_disk: Path) -> None:
    """It loads and answers; a change is refused with the way out, and so is Milvus Lite, which writes to be read."""
    versions.build(small_disk / "a", 1)
    gc.collect()
    assert os.system(f"mount -o remount,ro {small_disk}") == 0
    index = ExactIndex.load(small_disk / "a")
    assert index.search(torch.ones(1, 4), 1).ids.shape == (1, 1)
    with pytest.raises(OSError, match="must be writable, and this one isn't"):
        index.add([Source("x", "x", 1)], torch.ones(1, 4))
    with pytest.raises(OSError, match=r"must be writable|Read-only"):
        index.save(small_disk / "b")
    with pytest.raises(
        OSError, match=r"Milvus Lite's file must be writable, .* ExactIndex or FaissIndex, copy the fold"
    ):
        MilvusIndex.load(small_disk / "a").search(torch.ones(1, 4), 1)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_without_room_for_a_structure_it_serves_from_memory(state: str, small_disk: Path) -> None:
    """600 kB of rows on a disk of 1 MB: faiss' structure can't stand beside them, which is told, and is searched."""
    Store(small_disk / "a").add([Source("a", "x", 10_000)], torch.eye(15).repeat(667, 1)[:10_000])
    gc.collect()
    if state == "read-only":
        assert os.system(f"mount -o remount,ro {small_disk}") == 0
    said: list[str] = []
    index = FaissIndex(Store.open(small_disk / "a"), "Flat", said.append)
    hits = index.search(torch.eye(15), 1)
    assert (hits.scores == 1).all()
    assert index.search(torch.eye(15), 1).ids.equal(hits.ids)
    assert len(said) == 1
    assert said[0].startswith("Flat's structure stays in memory and isn't kept: an index must be writable, and this")
    assert {path.name for path in (small_disk / "a").iterdir()} == {"ledger.sqlite", "rows-1.bin"}
    with pytest.raises(OSError, match=r"must be writable|Read-only"):
        index.save(small_disk / "b")
