"""What only Milvus does: its copy follows the store, from wherever it was left, here and over a socket."""

import base64
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import serving

from e2erag.retriever import ExactIndex, Index, IndexConfig, MilvusIndex, Source, Store, StoreError, milvus

pytest.importorskip("milvus_lite", reason="Milvus Lite isn't installed: pip install 'e2erag[milvus]'")
server_manager_instance = pytest.importorskip("milvus_lite.server_manager").server_manager_instance
grpc = pytest.importorskip("grpc")  # which pymilvus brings

N, DIM = 300, 8


def drawn(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "index")
    store.add([Source(name, name, N // 3) for name in "abc"], drawn(0))
    return store


def same_as_exact(index: Index, store: Store) -> None:
    """Everything alive is found, and nothing else is."""
    exact = ExactIndex(store).search(drawn(1, 3), N)
    found = index.search(drawn(1, 3), N)
    assert torch.equal(found.ids, exact.ids)
    torch.testing.assert_close(found.scores, exact.scores)


def rows_of(index: MilvusIndex) -> list[int]:
    """The rows that Milvus holds."""
    return sorted(row["row"] for row in index._client.query(index._collection, filter="row >= 0"))


def test_what_its_copy_takes_is_told_before_it_is_made() -> None:
    """Float32, here; a cluster's is elsewhere."""
    assert IndexConfig("milvus", "rows").structure_bytes(1000, 17) == 68_000
    assert IndexConfig("milvus", "rows", uri="http://milvus:19530", name="rows").structure_bytes(1000, 17) == 0


def searched(folder: Path) -> tuple[list[int], list[Path]]:
    """What every fiftieth row finds first, after Milvus Lite has forgotten what it held in memory, and the files of its
    copy."""
    server_manager_instance.release_server(str(folder / "milvus.db"))
    index = MilvusIndex(Store(folder))
    found = index.search(index.vectors[::50], 1).ids[:, 0].tolist()
    index._client.close()
    server_manager_instance.release_server(str(folder / "milvus.db"))
    return found, sorted(folder.glob("milvus.db/**/*.parquet"))


def test_a_copy_that_has_lost_rows_gets_them_again_and_one_that_is_damaged_is_told(tmp_path: Path) -> None:
    """A file of the copy is gone: no row is missing from what is found. One can't be read: which, and the way out. What
    is there isn't sent a second time."""
    rows = torch.nn.functional.normalize(torch.randn(400, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    store = Store(tmp_path)
    store.build([[Source("a", "1", 300)]], lambda _: rows[:300], {})
    found, files = searched(tmp_path)
    assert found == list(range(0, 300, 50))
    assert searched(tmp_path) == (found, files)  # all of it was there
    store.update([Source("b", "1", 100)], rows[300:])
    every = list(range(0, 400, 50))
    found, (first, second) = searched(tmp_path)
    assert found == every
    first.unlink()
    assert searched(tmp_path)[0] == every
    second.write_bytes(b"")
    with pytest.raises(StoreError, match=r"copy can't be read: delete .*/milvus\.db, and the rows are sent again"):
        searched(tmp_path)
    server_manager_instance.release_server(str(tmp_path / "milvus.db"))
    shutil.rmtree(tmp_path / "milvus.db")
    assert searched(tmp_path)[0] == every


def test_by_its_uri_it_is_the_same_index(store: Store, server: str) -> None:
    """The same code over a socket: what is added, replaced and deleted, and a second reader of the same collection."""
    index = MilvusIndex(store, server, name="one")
    same_as_exact(index, store)
    index.update([Source("b", "B", 20)], drawn(2, 20))
    index.delete(["a"])
    same_as_exact(index, store)
    alive = sorted(set(range(N + 20)) - set(store.dead.tolist()))
    assert rows_of(index) == alive
    reader = Store.open(store.folder)
    same_as_exact(MilvusIndex(reader, server, name="one"), reader)
    other = Store(store.folder.parent / "other")
    other.add([Source("x", "x", 40)], drawn(3, 40))
    same_as_exact(MilvusIndex(other, server, name="one_other"), other)
    same_as_exact(index, store)


def test_a_reader_finds_all_that_it_has_seen_while_another_adds_and_deletes(store: Store, server: str) -> None:
    """The writer's rows score highest, and the reader has not looked: it finds the K best of its own. What a reader
    that came late has sent again is not found by one that knows it for deleted."""
    reader, late = (Store.open(store.folder) for _ in range(2))
    reading = MilvusIndex(reader, server, name="two")
    same_as_exact(reading, reader)
    writer = MilvusIndex(store, server, name="two")
    writer.add([Source("d", "d", 50)], 10 * drawn(1, 3)[:1] + drawn(4, 50))
    writer.delete(["c"])
    same_as_exact(writer, store)
    exact = ExactIndex(reader).search(drawn(1, 3), N)
    before = reading.search(drawn(1, 3), 7)
    assert before.ids.max() < N
    assert (before.ids >= 0).all()
    assert all((exact.ids[i, :, None] == ids).any(0).all() for i, ids in enumerate(before.ids))
    same_as_exact(MilvusIndex(late, server, name="two"), late)
    same_as_exact(writer, store)
    reader.reload()
    same_as_exact(reading, reader)


def test_a_server_that_goes_is_told_and_one_that_is_back_goes_on(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Between two searches, and within half a minute; what came meanwhile is sent to the one that is back."""
    serve = serving(tmp_path_factory.mktemp("server"))
    with serve() as uri:
        index = MilvusIndex(store, uri, name="three")
        same_as_exact(index, store)
    index.add([Source("d", "d", 50)], drawn(4, 50))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"Milvus must answer at {uri}: start it, or give another uri and token"):
        index.search(drawn(1, 3), 1)
    assert time.monotonic() - start < 30
    with serve():
        while True:  # gRPC waits between its attempts to connect, longer each time
            try:
                same_as_exact(index, store)
                break
            except ConnectionError:
                assert time.monotonic() - start < 120
                time.sleep(1)


def test_a_file_that_another_process_has_open_is_told(store: Store) -> None:
    """Milvus Lite's belongs to one process at a time; once that has ended, it is searched."""
    index = MilvusIndex(store)
    with (
        serving(Path(index.uri))(),
        pytest.raises(ConnectionError, match=r"milvus.db: check .*that no other process has the file open"),
    ):
        index.search(drawn(1, 3), 1)
    same_as_exact(index, store)


def test_a_token_goes_to_the_server_and_into_no_error(store: Store) -> None:
    """To one that lets nobody in: it has seen the token, and the error says what to change and not the token."""
    seen = set()

    class Refuses(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            seen.add(dict(call.invocation_metadata).get("authorization"))
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "another token")
            )

    server = grpc.server(ThreadPoolExecutor(1), [Refuses()])
    uri = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with pytest.raises(ConnectionError, match=rf"must answer at {uri}: .*, or give another uri and token") as told:
        MilvusIndex(store, uri, "root:SECRET", "four").search(drawn(1, 3), 1)
    server.stop(None)
    assert seen == {base64.b64encode(b"root:SECRET").decode()}
    assert "SECRET" not in str(told.value)


def test_what_was_not_sent_is_sent_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after three of ten requests; meanwhile a document that was sent is deleted, and another is added."""
    monkeypatch.setattr(milvus, "_AT_ONCE", 30)
    index = MilvusIndex(store)
    index._client = client = milvus._connected(index.uri, "")
    sent, upsert = [], client.upsert

    def fails(*args: object) -> object:
        if len(sent) == 3:
            raise InterruptedError
        return sent.append(upsert(*args))

    monkeypatch.setattr(client, "upsert", fails)
    with pytest.raises(InterruptedError):
        index.search(drawn(1, 3), 5)
    assert rows_of(index) == list(range(90))
    monkeypatch.undo()
    store.delete(["a"])
    store.add([Source("d", "d", 7)], drawn(2, 7))
    index = MilvusIndex(Store.open(store.folder))
    same_as_exact(index, store)
    assert rows_of(index) == list(range(100, 307))


def test_a_new_version_has_a_collection_and_the_one_before_stays(store: Store) -> None:
    """A reader of the old version goes on; of three versions two are kept."""
    old, stale = MilvusIndex(Store.open(store.folder)), Store.open(store.folder)
    before = old.search(drawn(1, 3), 9)
    for seed in (5, 6):
        store.build([[Source("a", str(seed), 50)]], lambda _, seed=seed: drawn(seed, 50))
        index = MilvusIndex(store)
        same_as_exact(index, store)
        if seed == 5:
            assert torch.equal(old.search(drawn(1, 3), 9).ids, before.ids)
    assert len(index._client.list_collections()) == 2
    late = MilvusIndex(stale)
    with pytest.raises(StoreError, match=r"a newer version has taken this one's place in .* call reload\(\)"):
        late.search(drawn(1, 3), 1)


def test_equal_scores_are_ordered_by_row_and_a_fresh_prior_counts(store: Store) -> None:
    """A row twice; and a prior that lifts one passage above all others' stored scores."""
    store.add([Source("again", "", 100)], drawn(0)[:100])
    index, queries = MilvusIndex(store), drawn(0)[[3, 40]]
    hits = index.search(queries, 400)
    both = [[row.index(3 + i), row.index(303 + i)] for i, row in zip((0, 37), hits.ids.tolist(), strict=True)]
    assert all(second == first + 1 for first, second in both)
    prior = torch.zeros(400)
    best = ExactIndex(store).search(queries, 4, prior).ids[:, 3]
    prior[best] = 50.0
    assert (
        index.search(queries, 2, prior).ids[:, 0].tolist()
        == ExactIndex(store).search(queries, 1, prior).ids[:, 0].tolist()
    )


def test_log_z_is_an_estimate_and_says_so(store: Store) -> None:
    """With three hundred rows and 4,096 draws it is near."""
    index, queries = MilvusIndex(store), drawn(1, 3)
    assert not index.exact
    assert MilvusIndex.log_z.__doc__
    assert MilvusIndex.log_z.__doc__.startswith("An estimate")
    exact = ExactIndex(store)
    estimate = index.log_z(queries, index.search(queries, 10))
    torch.testing.assert_close(estimate, exact.log_z(queries, exact.search(queries, 10)), atol=0.1, rtol=0)


def test_what_milvus_cannot_do_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the way out."""
    with pytest.raises(ValueError, match="give the Store a folder, or use ExactIndex"):
        MilvusIndex(Store())
    with pytest.raises(ValueError, match="needs a name for each"):
        MilvusIndex(store, "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"must answer at http://127.0.0.1:1: start it, or give another uri"):
        MilvusIndex(store, "http://127.0.0.1:1", name="one").search(drawn(1, 3), 1)
    monkeypatch.setattr(milvus, "MOST", 100)
    with pytest.raises(ValueError, match=r"k must be at most Milvus' 100, got 200: ask for fewer, or use ExactIndex"):
        MilvusIndex(store).search(drawn(1, 3), 200)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"needs pymilvus: pip install 'e2erag\[milvus\]'"):
        MilvusIndex(store).search(drawn(1, 3), 1)
