"""Another process writes while one reads or writes: whole versions, and nothing is lost."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from helpers import BY_URI, INDEXES, forked
from versions import build, content, rows_of, save, sources

from e2erag.retriever import ExactIndex, FaissIndex, Index, MilvusIndex, ShardedIndex, Source, Store, StoreError
from e2erag.retriever.approximate import KINDS
from e2erag.retriever.ledger import Ledger

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each takes no time")


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
    threads = isinstance(first, MilvusIndex)  # which a search starts, and below is a fork
    kept = None if threads else first.search(queries, 9)
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
