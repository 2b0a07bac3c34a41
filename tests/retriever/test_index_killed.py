"""SIGKILL at seeded points: the old index or the new one, never neither; and the same call then ends what was begun."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch
from helpers import OURS, forked
from versions import build, content, rows_of, save, sources

from e2erag.retriever import ExactIndex, FaissIndex, MilvusIndex, Source, Store, StoreError
from e2erag.retriever.approximate import KINDS
from e2erag.retriever.index import fingerprint_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each takes no time")

POINTS = 40
"""Kills per operation."""


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
