"""SIGKILL at seeded points: the old index or the new one, never neither; and the same call then ends what was begun."""

import errno
import gc
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from helpers import BY_URI, INDEXES, OURS, forked

from e2erag.retriever import ExactIndex, FaissIndex, Index, MilvusIndex, ShardedIndex, Source, Store, StoreError
from e2erag.retriever.approximate import KINDS
from e2erag.retriever.index import fingerprint_of
from e2erag.retriever.ledger import Ledger

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each takes no time")

POINTS = 40
"""Kills per operation."""


def sources(version: int) -> list[list[Source]]:
    """Six batches of two documents; half of them change with the version."""
    return [[Source(f"{i}.{j}", f"{(version if i % 2 else 0)}", 5 + i) for j in range(2)] for i in range(6)]


def rows_of(new: Sequence[Source]) -> torch.Tensor:
    """Rows that say which document they are of, and of which content."""
    return torch.cat([torch.full((s.passages, 4), float(s.name) + 100 * int(s.content)) for s in new])


def build(folder: Path, version: int) -> int:
    return Store(folder).build(sources(version), rows_of, {"encoder": version})


def content(folder: Path) -> list[list[float]]:
    """What a reader sees, all of it checked."""
    store = Store.open(folder)
    return [store.rows[where].tolist() for _, where in store.sources()]


def save(folder: Path) -> None:
    store = Store()
    store.build(sources(2), rows_of, {"encoder": 2})
    store.save(folder)


def update(folder: Path) -> None:
    new = [source for batch in sources(2) for source in batch]
    Store(folder).update(new, rows_of)


def delete(folder: Path) -> None:
    Store(folder).delete([source.name for source in sources(1)[3]])


def searched(folder: Path, kind: str) -> None:
    faiss.omp_set_num_threads(1)  # a forked child has no thread pool
    FaissIndex(Store(folder), kind).search(torch.ones(1, 4), 1)


def saved(folder: Path) -> None:
    """Of another folder's rows, with a structure beside them."""
    faiss.omp_set_num_threads(1)
    made = folder.with_name(f"{folder.name} made")
    build(made, 2)
    index = FaissIndex(Store(made), "HNSW")
    index.search(torch.ones(1, 4), 1)
    index.save(folder)


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "build": lambda folder: build(folder, 2),
    "save": save,
    "save with a structure": saved,
    "update": update,
    "delete": delete,
    **{f"structure {kind}": lambda folder, kind=kind: searched(folder, kind) for kind in KINDS},
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_line_the_old_or_the_new_index_is_there(name: str, tmp_path: Path) -> None:
    """At 40 seeded lines of each operation; afterwards the operation ends, and no other file is left."""
    operation = OPERATIONS[name]
    build(tmp_path / "start", 1)
    shutil.copytree(tmp_path / "start", tmp_path / "done")
    total = forked(lambda: operation(tmp_path / "done"))
    assert total > POINTS
    old, new = content(tmp_path / "start"), content(tmp_path / "done")
    seen = set()
    for point in sorted(random.Random(name).sample(range(1, total + 1), POINTS)):
        folder = tmp_path / str(point)
        shutil.copytree(tmp_path / "start", folder)
        assert forked(lambda folder=folder: operation(folder), point) == -1
        found = content(folder)
        assert found in (old, new)
        seen.add(found == new)
        if not (name == "delete" and found == new):  # what is deleted can't be deleted again
            operation(folder)
        assert content(folder) == new
        store = Store(folder)
        store._sweep()
        assert {path.name for path in folder.iterdir()} == {"ledger.sqlite", *store.ledger.files()}
        shutil.rmtree(folder)
    assert False in seen or old == new  # a search structure changes no rows


@pytest.mark.parametrize("by_uri", [False, True])
def test_killed_at_any_line_milvus_and_the_rows_agree_afterwards(
    by_uri: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed in our lines that send to Milvus, in the store's, and in those of a Milvus Lite in the process: the old
    rows or the new; then the same call ends, and Milvus finds what exact search finds."""
    pytest.importorskip("milvus_lite", reason="Milvus Lite isn't installed: pip install 'e2erag[milvus]'")
    uri = request.getfixturevalue("server") if by_uri else None

    def updated(folder: Path) -> None:
        update(folder)
        same(folder)

    def same(folder: Path) -> None:
        store = Store(folder)
        queries = torch.eye(4)[:2] / torch.arange(1.0, 5)
        indexes = MilvusIndex(store, uri, name=f"of_{folder.name}"), ExactIndex(store)
        found, exact = (index.search(queries, 90) for index in indexes)
        assert torch.equal(found.ids, exact.ids)
        torch.testing.assert_close(found.scores, exact.scores)

    def begun(folder: Path) -> Path:
        """Rows, and a Milvus that has them: a file beside them, or a collection of this folder's name."""
        shutil.copytree(tmp_path / "start", folder)
        assert not by_uri or forked(lambda: same(folder)) > 0
        return folder

    build(tmp_path / "start", 1)
    assert by_uri or forked(lambda: same(tmp_path / "start")) > 0
    old = content(tmp_path / "start")
    for traced in ((*OURS, "retriever/milvus.py"), *([] if by_uri else [("/milvus_lite/",)])):
        done = begun(tmp_path / "done")
        total = forked(lambda done=done: updated(done), traced=traced)
        new = content(done)
        for point in sorted(random.Random(traced[-1]).sample(range(1, total + 1), POINTS // 2)):
            folder = begun(tmp_path / str(point))
            assert forked(lambda folder=folder: updated(folder), point, traced) == -1
            assert content(folder) in (old, new)
            assert forked(lambda folder=folder: updated(folder)) > 0
            assert content(folder) == new
            shutil.rmtree(folder)
        shutil.rmtree(done)


def test_a_killed_build_encodes_nothing_twice_but_the_batch_it_was_in(tmp_path: Path) -> None:
    """Killed while the fourth of six batches is encoded: the second run encodes three, and the result is the same."""

    def killed(new: Sequence[Source]) -> torch.Tensor:
        if new[0].name.startswith("3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rows_of(new)

    assert forked(lambda: Store(tmp_path / "a").build(sources(1), killed, {"encoder": 1})) == -1
    with pytest.raises(StoreError, match="holds no whole index, only one begun: call build"):
        Store.open(tmp_path / "a")
    assert build(tmp_path / "a", 1) == sum(s.passages for batch in sources(1)[3:] for s in batch)
    build(tmp_path / "b", 1)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    ("batches", "again"),
    [
        (sources(1)[:2], 0),  # fewer documents than were done
        (sources(1)[1:], 80),  # without the first: nothing agrees
        ([[*sources(1)[0], sources(1)[1][0]], [sources(1)[3][0]]], 6 + 8),  # its part was written with another, so anew
        (sources(3), 80),
    ],
)
def test_a_build_begun_with_other_documents_goes_on_as_far_as_both_agree(
    batches: list[list[Source]], again: int, tmp_path: Path
) -> None:
    """Killed in the fourth of six batches, then called with other documents: the rows are those of a build from
    scratch, in the order given, and nothing of the first call's is left over."""

    def killed(new: Sequence[Source]) -> torch.Tensor:
        if new[0].name.startswith("3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rows_of(new)

    assert forked(lambda: Store(tmp_path / "a").build(sources(1), killed, {"encoder": 1})) == -1
    encoded = Store(tmp_path / "a").build(batches, rows_of, {"encoder": 1})
    Store(tmp_path / "b").build(batches, rows_of, {"encoder": 1})
    one, other = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    assert list(one.sources()) == list(other.sources())
    assert torch.equal(one.rows, other.rows)
    assert not len(one.dead)
    assert encoded == again


def test_documents_of_unknown_content_are_built_anew_after_a_kill(tmp_path: Path) -> None:
    """What has no hash can't be told to be the same: nothing is taken over, and no dead row is left behind."""
    batches = [[Source(str(i), "", 5)] for i in range(3)]

    def killed(new: Sequence[Source]) -> torch.Tensor:
        if new[0].name == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((5, 4), float(new[0].name))

    assert forked(lambda: Store(tmp_path).build(batches, killed)) == -1
    store = Store(tmp_path)
    assert store.build(batches, lambda new: torch.full((5, 4), float(new[0].name))) == 15
    assert not len(store.dead)
    assert store.rows[:, 0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


def test_a_new_build_encodes_only_what_has_changed_and_another_manifest_everything(tmp_path: Path) -> None:
    """The manifest says with what rows were made: only then can they be taken over."""
    store = Store(tmp_path / "a")
    assert store.build(sources(1), rows_of, {"encoder": "x"}) == 90
    assert store.build(sources(2), rows_of, {"encoder": "x"}) == sum(s.passages for b in sources(2)[1::2] for s in b)
    assert store.build(sources(2), rows_of, {"encoder": "x"}) == 0
    assert store.build(sources(2), rows_of, {"encoder": "y"}) == 90
    with pytest.raises(StoreError, match=r"another encoder \('y' there, 'x' here\).*call build\(\)"):
        Store.open(tmp_path / "a", {"encoder": "x"})
    manifest = Store.open(tmp_path / "a", {"encoder": "y"}).manifest
    corpus = fingerprint_of(source for batch in sources(2) for source in batch)
    assert manifest == {"encoder": "y", "corpus": corpus, "dtype": "float32", "count": 90}


def test_what_a_build_has_left_is_what_it_then_writes_and_encodes(tmp_path: Path) -> None:
    """All at first, the other half after a kill; of a new version all is written, and what has changed is encoded."""

    def killed(new: Sequence[Source]) -> torch.Tensor:
        if new[0].name.startswith("3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rows_of(new)

    def left(version: int) -> tuple[list[Source], list[Source]]:
        return Store(tmp_path).left([source for batch in sources(version) for source in batch], {"encoder": "x"})

    every = [source for batch in sources(1) for source in batch]
    assert left(1) == (every, every)
    assert forked(lambda: Store(tmp_path).build(sources(1), killed, {"encoder": "x"})) == -1
    assert left(1) == (every[6:], every[6:])
    Store(tmp_path).build(sources(1), rows_of, {"encoder": "x"})
    assert left(1) == (every, [])
    assert left(2)[1] == [source for batch in sources(2)[1::2] for source in batch]


def test_a_document_that_comes_in_two_batches_is_refused(tmp_path: Path) -> None:
    """Each name once in a build, not only in each batch."""
    batches = [[Source("0", "1", 5)], [Source("1", "1", 5)], [Source("0", "2", 5)]]
    with pytest.raises(ValueError, match="each document comes once, and '0' came twice: give every one a name"):
        Store(tmp_path).build(batches, rows_of)
    with pytest.raises(StoreError, match="holds no whole index"):
        Store.open(tmp_path)


CHANGES: dict[str, Callable[[Store], Any]] = {
    "added": lambda store: store.add([Source("50", "1", 2)], rows_of),
    "added, without a passage": lambda store: store.add([Source("50", "1", 0)], rows_of),
    "updated": lambda store: store.update(sources(3)[1], rows_of),
    "deleted": lambda store: store.delete(["0.0"]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("way", ["build", "save"])
def test_what_another_process_changes_while_a_new_version_is_written_is_not_lost(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go with the version that is replaced: that one stays, and the same call then ends what it began."""
    build(tmp_path, 1)
    put, calls, seen = Store._put, [], []

    def write() -> None:
        save(tmp_path) if way == "save" else build(tmp_path, 2)

    def meanwhile(store: Store, *args: Any, **kwargs: Any) -> int:
        if store.folder is not None and not calls:
            calls.append(1)
            CHANGES[name](Store(tmp_path))
            seen.extend(Store.open(tmp_path).sources())
        return put(store, *args, **kwargs)

    monkeypatch.setattr(Store, "_put", meanwhile)
    with pytest.raises(StoreError, match="let one write at a time, and call again"):
        write()
    assert seen == list(Store.open(tmp_path).sources())
    write()
    assert content(tmp_path) == [rows_of([source]).tolist() for batch in sources(2) for source in batch]


def test_a_reader_sees_whole_indexes_while_another_process_builds(tmp_path: Path) -> None:
    """Twenty builds in a row: whoever opens the folder meanwhile gets one version, all of it, and keeps it."""
    build(tmp_path / "a", 0)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: [(torch.set_num_threads(1), build(tmp_path / "a", version)) for version in range(1, 21)]
    )
    process.start()
    versions, first = set(), ExactIndex.load(tmp_path / "a")
    kept = first.vectors.clone()
    while process.is_alive():
        store = Store.open(tmp_path / "a")
        try:
            (version,) = {int(s.content) for s, _ in store.sources() if int(s.name[0]) % 2}
        except StoreError as error:
            assert "call reload()" in str(error)  # noqa: PT017 - it may come or not
            continue
        assert torch.equal(store.rows, torch.cat([rows_of(batch) for batch in sources(version)]))
        versions.add(version)
        time.sleep(0.001)
    process.join()
    assert process.exitcode == 0
    assert len(versions) > 1
    assert torch.equal(first.vectors, kept)
    assert Store.open(tmp_path / "a").manifest["encoder"] == 20


@pytest.mark.parametrize("over", [*INDEXES, BY_URI], indirect=True)
def test_a_reader_searches_one_whole_version_while_another_process_builds(
    over: Callable[[Store], Index], tmp_path: Path
) -> None:
    """Every kind, until it has answered from three versions: each time with the rows of one, and all that it finds has
    its score there. Who has one open keeps it, and what it finds."""
    build(tmp_path, 0)
    context, queries = multiprocessing.get_context("fork"), torch.eye(4)[:2] / torch.arange(1.0, 5)
    enough = context.Event()

    def write() -> None:
        torch.set_num_threads(1)
        version = 0
        while not enough.is_set():
            version += 1
            build(tmp_path, version)

    first = over(Store.open(tmp_path))
    kept = (
        None if isinstance(first, MilvusIndex) else first.search(queries, 9)
    )  # it starts threads, and below is a fork
    process, seen, end = context.Process(target=write), set(), time.monotonic() + 120
    process.start()
    try:
        while len(seen) < 3 and time.monotonic() < end:
            store = Store.open(tmp_path)
            try:
                hits = over(store).search(queries, 9)
            except StoreError as error:
                assert "call reload()" in str(error)  # noqa: PT017 - it may come or not
                continue
            version = store.manifest["encoder"]
            scores = queries @ torch.cat([rows_of(batch) for batch in sources(version)]).T
            assert (hits.ids >= 0).all()
            torch.testing.assert_close(hits.scores, scores.gather(1, hits.ids))
            if getattr(first, "kind", None) not in ("IVF", "SQ", "PQ"):
                torch.testing.assert_close(hits.scores, scores.topk(9).values)
            seen.add(version)
    finally:
        enough.set()
        process.join()
    assert process.exitcode == 0
    assert len(seen) == 3
    if kept is not None:
        assert torch.equal(first.search(queries, 9).scores, kept.scores)


@pytest.mark.parametrize("kind", ["exact", "sharded", *KINDS])
def test_a_reader_searches_the_rows_it_has_seen_while_another_process_adds(kind: str, tmp_path: Path) -> None:
    """The writer's structure holds more than the reader knows of: none of it is found before the reader looks."""
    made = {"exact": ExactIndex, "sharded": ShardedIndex}.get(kind, lambda store: FaissIndex(store, kind))
    build(tmp_path, 1)
    reader, queries = made(Store(tmp_path)), torch.eye(4)[:2]

    def write() -> None:
        faiss.omp_set_num_threads(1)
        index = made(Store(tmp_path))
        index.add([Source("1000", "0", 50)], torch.full((50, 4), 1000.0))
        index.search(queries, 5)

    assert forked(write) > 0
    before = reader.search(queries, 5)
    assert before.ids.max() < 90
    assert (before.scores > 0).all()
    assert torch.isfinite(reader.log_z(queries, before)).all()
    reader.store.reload()
    after = reader.search(queries, 5)
    assert (after.ids >= 90).any()
    assert torch.isfinite(reader.log_z(queries, after)).all()


@pytest.mark.parametrize(("where", "look"), [(np, "memmap"), (Ledger, "parts")])
def test_a_version_replaced_between_two_looks_at_it_is_looked_at_anew(
    where: Any, look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process publishes after the ledger was read and before the file is mapped, or before it is verified."""
    build(tmp_path / "a", 1)
    original, first = getattr(where, look), True

    def late(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if first:
            first = False
            forked(lambda: build(tmp_path / "a", 2))
        return original(*args, **kwargs)

    monkeypatch.setattr(where, look, late)
    store = Store.open(tmp_path / "a")
    assert store.manifest["encoder"] == 2
    assert torch.equal(store.rows, torch.cat([rows_of(batch) for batch in sources(2)]))


def test_a_reader_of_a_replaced_version_keeps_its_rows(tmp_path: Path) -> None:
    """They stay mapped; what lies in the ledger alone is refused with the way out."""
    build(tmp_path / "a", 1)
    store = Store(tmp_path / "a")
    build(tmp_path / "a", 2)
    assert torch.equal(store.read(3, 9), torch.cat([rows_of(batch) for batch in sources(1)])[3:9])
    for look in (store.verify, lambda: list(store.sources())):
        with pytest.raises(StoreError, match=r"call reload\(\) to see it"):
            look()


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """The error says so; what was there stays, and can still be read."""
    build(small_disk / "a", 1)
    before = content(small_disk / "a")
    with pytest.raises(OSError, match="what was there before stays as it was: make room"):
        Store(small_disk / "a").add([Source("large", "x", 10**5)], torch.ones(10**5, 4))
    assert content(small_disk / "a") == before
    assert Store(small_disk / "a").add([Source("small", "x", 10)], torch.ones(10, 4)) == 10


def test_a_build_that_filled_the_disk_says_what_of_it_lies_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the fourth of six batches. What is done can be kept, or be deleted and encoded again."""
    build(tmp_path, 1)
    flush, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = sum(source.passages for batch in sources(1)[:3] for source in batch)
    begun = tmp_path / "rows-2.bin"
    with pytest.raises(OSError, match=f"make room. {begun} holds {done} passages of a build .* encoded again"):
        Store(tmp_path).build(sources(1), rows_of, {"encoder": 3})
    assert begun.stat().st_size == done * 16
    shutil.copytree(tmp_path, tmp_path / "kept")
    begun.unlink()
    assert Store(tmp_path).build(sources(1), rows_of, {"encoder": 3}) == 90
    assert Store(tmp_path / "kept").build(sources(1), rows_of, {"encoder": 3}) == 90 - done
    assert content(tmp_path) == content(tmp_path / "kept")


def test_a_read_only_folder_is_read_and_not_written(small_disk: Path) -> None:
    """It loads and answers; a change is refused with the way out, and so is Milvus Lite, which writes to be read."""
    build(small_disk / "a", 1)
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
