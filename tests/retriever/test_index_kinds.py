"""What every kind of index promises: documents come and go, are saved and loaded, and bad input changes nothing."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import BY_URI, INDEXES, indexes_of, loaded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from e2erag.retriever import ExactIndex, Index, Source, Store, StoreError
from e2erag.retriever.index import Without, check_queries
from e2erag.retriever.sampled import SAMPLE

DIM = 8
ELSEWHERE: dict[str, Callable[[Path], Index]] = {
    "exact in memory": lambda _: ExactIndex(Store()),
    "exact, float16": lambda folder: ExactIndex(Store(folder, torch.float16)),
}
"""Kinds beside those over a store of float32 in a folder."""


def document(name: str, passages: int, seed: int = 0) -> tuple[Source, torch.Tensor]:
    """Rows that float16 can hold."""
    g = torch.Generator().manual_seed(ord(name[0]) + 1000 * seed)
    return Source(name, f"{name} {seed}", passages), torch.randn(passages, DIM, generator=g).half().float()


def added(index: Index, *documents: tuple[Source, torch.Tensor]) -> Index:
    index.add([source for source, _ in documents], torch.cat([rows for _, rows in documents]))
    return index


@pytest.fixture(params=[*ELSEWHERE, *INDEXES, BY_URI], scope="module")  # one kind in a row: no server is left idle
def make(request: pytest.FixtureRequest) -> Callable[[Path], Index]:
    """Makes an index of each kind over what lies in a folder."""
    if request.param in ELSEWHERE:
        return ELSEWHERE[request.param]
    over = indexes_of(request.param, request)
    return lambda folder: over(Store(folder))


@pytest.fixture
def index(make: Callable[[Path], Index], tmp_path: Path) -> Index:
    return added(make(tmp_path / "index"), *(document(name, n) for name, n in [("a", 30), ("b", 1), ("c", 70)]))


def everything(index: Index) -> list[list[float]]:
    """What is alive, in order."""
    alive = torch.ones(len(index.vectors), dtype=torch.bool)
    alive[index.store.dead] = False
    assert alive.sum() == len(index)
    return index.vectors[alive].tolist()


def test_every_passage_finds_itself(index: Index) -> None:
    """The best row comes first, and what stands as its score is its score. A product quantiser with two centroids, all
    that a hundred rows can teach, keeps the second half of this only."""
    rows = index.vectors.float()
    hits = index.search(rows, 1)
    scores = rows @ rows.T
    torch.testing.assert_close(hits.scores, scores.gather(1, hits.ids), atol=1e-4, rtol=1e-4)
    if getattr(index, "kind", None) != "PQ":
        torch.testing.assert_close(hits.scores[:, 0], scores.max(1).values, atol=1e-4, rtol=1e-4)


def test_what_a_questions_own_prior_lifts_above_all_is_found_and_counted(index: Index) -> None:
    """The row that is last by what is stored comes first, and log Z is within four of its standard errors
    (`SampledIndex.log_z`) of the exact one; a dead row is lifted in vain."""
    dead = index.delete(["b"]) and index.store.dead
    queries = torch.cat([torch.randn(5, DIM - 1), torch.ones(5, 1)], 1)
    rows = index.vectors.float()
    prior = rows[:, -1].repeat(5, 1)
    prior[:, dead] = 1000
    last = (queries @ rows.T).index_fill(1, dead, torch.inf).argmin(1)
    prior[torch.arange(5), last] += 50
    scores = (queries[:, :-1] @ rows[:, :-1].T + prior).index_fill(1, dead, -torch.inf)
    hits, log_z = index.search(queries, 2, prior), scores.logsumexp(1)
    assert hits.ids[:, 0].tolist() == last.tolist()
    torch.testing.assert_close(hits.scores[:, 0], scores.max(1).values)
    rest = (scores - log_z[:, None]).exp().scatter(1, hits.ids, 0)
    error = 0 if index.exact else (len(rows) / SAMPLE * rest.max(1).values * rest.sum(1)).sqrt()
    assert ((index.log_z(queries, hits, None, prior) - log_z).abs() <= 4 * error + 1e-4).all()


@pytest.mark.parametrize("prior", ["stored", "of the corpus", "of each question"])
def test_no_queries_find_nothing_and_have_no_log_z(index: Index, prior: str) -> None:
    """An empty batch has an empty answer, with a gradient that is empty too."""
    queries = torch.ones(0, DIM, requires_grad=True)
    given_ = {"stored": None, "of the corpus": torch.zeros(101), "of each question": torch.zeros(0, 101)}[prior]
    hits = index.search(queries, 3, given_)
    assert hits.ids.shape == hits.scores.shape == (0, 3)
    log_z = index.log_z(queries, hits, Without(torch.tensor([5]), torch.ones(0, 1, dtype=torch.bool)), given_)
    assert log_z.shape == index.log_z(queries, hits, None, given_).shape == (0,)
    assert torch.autograd.grad(log_z.sum(), queries)[0].shape == (0, DIM)


def test_what_is_added_is_found_and_costs_nothing_twice(index: Index) -> None:
    """The same content again: nothing is encoded. The same name with other content is refused, and nothing changes."""
    source, _ = document("a", 30)
    assert index.add([source], lambda sources: pytest.fail("was encoded again")) == 0
    before = everything(index)
    other, changed = document("a", 30, seed=1)
    with pytest.raises(ValueError, match="'a' is indexed already with other content: call update"):
        index.add([document("d", 2)[0], other], torch.cat([document("d", 2)[1], changed]))
    assert everything(index) == before
    assert index.add([source, document("d", 2)[0]], lambda new: document("d", 2)[1]) == 2
    assert everything(index) == before + document("d", 2)[1].tolist()


def test_an_update_replaces_and_a_delete_forgets(index: Index) -> None:
    """Shorter content in the place of longer; the old rows are never found."""
    assert index.update([document("a", 5, seed=1)[0]], document("a", 5, seed=1)[1]) == 5
    assert index.delete(["b"]) == 1
    assert len(index) == 75
    assert everything(index) == document("c", 70)[1].tolist() + document("a", 5, seed=1)[1].tolist()
    with pytest.raises(KeyError, match="'b' is not indexed"):
        index.delete(["c", "b"])
    assert len(index) == 75


@given(data=st.data())
@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_after_any_changes_a_search_is_one_over_what_is_alive(
    make: Callable[[Path], Index], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Documents added, updated and deleted in any order: what is deleted is never found, log Z counts the rest only."""
    index, alive = make(tmp_path_factory.mktemp("index")), {}
    for step in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from("abc"))
        if name in alive and len(alive) > 1 and data.draw(st.booleans()):
            index.delete([name])
            del alive[name]
        else:
            source, rows = document(name, data.draw(st.integers(1, 90)), seed=step + 1)
            index.update([source], rows)
            alive[name] = rows
    rows = torch.cat(list(alive.values()))
    queries = torch.randn(3, DIM, generator=torch.Generator().manual_seed(step))
    hits = index.search(queries, len(rows) + 3)
    assert hits.ids.shape[1] == len(rows) == len(index)
    assert not torch.isin(hits.ids, index.store.dead).any()
    for ids, scores, query in zip(hits.ids, hits.scores, queries, strict=True):
        found = ids[ids >= 0]
        assert len(found.unique()) == len(found) > 0
        torch.testing.assert_close(scores[ids >= 0], index.vectors[found].float() @ query)
    if index.exact:
        torch.testing.assert_close(hits.scores, (queries @ rows.T).sort(dim=1, descending=True).values)
        torch.testing.assert_close(index.log_z(queries, hits), (queries @ rows.T).logsumexp(1))
    assert sorted(everything(index)) == sorted(rows.tolist())


def test_saved_and_loaded_it_is_the_same(index: Index, tmp_path: Path) -> None:
    """Without the rows that are dead; and what is loaded can be changed."""
    index.delete(["b"])
    index.save(tmp_path / "saved")
    again = loaded(index, tmp_path / "saved")
    assert everything(again) == everything(index)
    assert len(again.vectors) == 100
    queries = torch.randn(2, DIM)
    if index.exact:
        assert torch.equal(again.search(queries, 7).scores, index.search(queries, 7).scores)
    else:
        assert again.search(queries, 7).scores.isfinite().any()
    assert again.add([document("a", 30)[0]], lambda sources: pytest.fail("was encoded again")) == 0
    assert again.add([document("d", 2)[0]], document("d", 2)[1]) == 2
    assert everything(loaded(index, tmp_path / "saved")) == everything(index) + document("d", 2)[1].tolist()


def test_a_reader_keeps_the_old_index_while_a_new_one_is_saved_over_it(index: Index, tmp_path: Path) -> None:
    """Double buffer: before, during and after; whoever opens it later sees the new one."""
    index.save(tmp_path / "saved")
    reader = loaded(index, tmp_path / "saved")
    before = everything(reader)
    index.update([document("c", 3, seed=1)[0]], document("c", 3, seed=1)[1])
    index.save(tmp_path / "saved")
    assert everything(reader) == before
    assert everything(loaded(index, tmp_path / "saved")) == everything(index) != before


def test_a_changed_file_is_refused(index: Index, tmp_path: Path) -> None:
    """One byte flipped, a file cut short, one missing, a ledger that is none: each is named."""
    index.save(tmp_path / "saved")
    path = tmp_path / "saved" / "rows-1.bin"
    content = path.read_bytes()
    path.write_bytes(content[:77] + bytes([content[77] ^ 1]) + content[78:])
    with pytest.raises(StoreError, match=r"rows 0 to 101 in .* have changed since they were written"):
        loaded(index, tmp_path / "saved")
    path.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=r"rows-1.bin is shorter than its ledger states"):
        loaded(index, tmp_path / "saved")
    path.unlink()
    with pytest.raises(StoreError, match="lacks a file that its ledger names"):
        loaded(index, tmp_path / "saved")
    (tmp_path / "saved" / "ledger.sqlite").write_bytes(b"not a ledger" * 100)
    with pytest.raises(StoreError, match="can't be read as an index' ledger"):
        loaded(index, tmp_path / "saved")
    with pytest.raises(StoreError, match=r"must hold ledger.sqlite, and doesn't"):
        loaded(index, tmp_path / "nowhere")


def test_bad_input_is_refused_and_changes_nothing(index: Index) -> None:
    """Each with what came and what to do."""
    before = everything(index)
    x, rows = document("x", 4)
    bad = rows.clone()
    bad[2, 1] = torch.nan
    for sources, given_, error in [
        ([x], bad, "passage 2 has NaN or infinity"),
        ([x], rows[:, :5], "must have the stored 8 components, got 5"),
        ([x], rows[:3], "1 documents of 4 passages need as many rows"),
        ([x, x], torch.cat([rows, rows]), "'x' came twice"),
        ([x._replace(name="caf\udce9")], rows, "must be text that UTF-8 can write"),
        ([x._replace(name=3)], rows, "name must be text that UTF-8 can write, got 3"),
        ([x._replace(content="\ud800")], rows, "content must be text that UTF-8 can write"),
        ([x._replace(passages=-1), document("y", 5)[0]], rows, "no passage or more, and 'x' came with -1"),
    ]:
        with pytest.raises(ValueError, match=error):
            index.add(sources, given_)
    for queries, k, error in [
        (torch.ones(1, 5), 3, "must have the rows' 8 components, got 5"),
        (torch.full((1, DIM), torch.nan), 3, "queries must be finite"),
        (torch.ones(1, DIM), 0, "k must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=error):
            index.search(queries, k)
    with pytest.raises(ValueError, match=r"questions × 8 components, got \(8,\): one alone is queries\[None\]"):
        inspect.unwrap(check_queries)(index, torch.ones(DIM), 3)  # past the tests' own look at shapes
    for prior, error in [
        (torch.zeros(100), r"of the index' 101 rows, dead ones too, or 2 questions × 101, got \(100,\)"),
        (torch.zeros(102), r"got \(102,\)"),
        (torch.zeros(3, 101), r"got \(3, 101\)"),
        (torch.zeros(101).index_fill(0, torch.tensor(7), torch.nan), "finite or −∞, got NaN or ∞"),
        (torch.full((2, 101), -torch.inf).index_fill(1, torch.tensor(7), torch.inf), "finite or −∞, got NaN or ∞"),
    ]:
        with pytest.raises(ValueError, match=error):
            index.search(torch.ones(2, DIM), 3, prior)
    allowed = torch.full((101,), -3e38).index_fill(0, torch.tensor(7), -torch.inf)
    assert index.search(torch.ones(2, DIM), 3, allowed).ids.shape == (2, 3)
    assert everything(index) == before


def test_an_empty_corpus_is_refused(make: Callable[[Path], Index], tmp_path: Path) -> None:
    """Nothing to search, nothing to save."""
    index = make(tmp_path / "index")
    with pytest.raises(ValueError, match="at least one passage"):
        index.search(torch.ones(1, DIM), 1)
    with pytest.raises(ValueError, match="at least one passage"):
        index.save(tmp_path / "saved")


@pytest.mark.parametrize("over", [*INDEXES, BY_URI], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_stored_in_half_are_those_that_are_scored(
    over: Callable[[Store], Index], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Scores are float32's of the rounded rows, before and after saving; what the dtype can't hold is refused."""
    index, rows, queries = over(Store(tmp_path / "index", dtype)), torch.randn(200, DIM), torch.randn(3, DIM)
    index.add([Source("a", "a", 150)], rows[:150])
    index.search(queries, 9)  # so that what follows is added to what is there
    index.add([Source("b", "b", 50)], rows[150:])
    index.save(tmp_path / "saved")
    for each in (index, loaded(index, tmp_path / "saved")):
        assert each.vectors.dtype == dtype
        assert torch.equal(each.vectors, rows.to(dtype))
        scores, hits = queries @ rows.to(dtype).float().T, each.search(queries, 9)
        torch.testing.assert_close(hits.scores, scores.gather(1, hits.ids), atol=1e-5, rtol=1e-5)
        if getattr(index, "kind", None) not in ("IVF", "SQ", "PQ"):
            assert torch.equal(hits.ids, scores.topk(9).indices)
    large = torch.full((2, DIM), 1e5 if dtype == torch.float16 else 3.4e38)
    with pytest.raises(ValueError, match=r"finite in b?float16; passage 0 has .*, which it can't hold: store float32"):
        index.add([Source("c", "c", 2)], large)
    assert torch.equal(index.vectors, rows.to(dtype))


@pytest.mark.parametrize("folder", [True, False])
def test_a_rebuilt_index_of_the_same_size_is_the_one_searched(folder: bool, tmp_path: Path) -> None:
    """New weights give other rows, as many as before: a search that has run once must see them."""
    store = Store(tmp_path if folder else None)
    index, documents, query = ExactIndex(store), [Source("a", "1", 4)], torch.eye(4)[:1]
    for weights, rows in enumerate((torch.eye(4), torch.eye(4).flip(0))):
        store.build([documents], lambda _, rows=rows: rows, {"weights": weights})
        hits = index.search(query, 1)
        assert hits.ids.item() == (0, 3)[weights]
        assert index.log_z(query, hits).item() == pytest.approx(torch.tensor([1.0, 0, 0, 0]).logsumexp(0).item())


@pytest.mark.parametrize("first", [0, 4])
def test_a_document_of_no_passage_can_be_stored(first: int, tmp_path: Path) -> None:
    """Hard gates can leave nothing of a document, and it can come alone, or first."""
    store = Store(tmp_path / "index")
    store.add([Source("a", "1", first)], torch.eye(4)[:first])
    store.add([Source("b", "2", 4 - first)], torch.eye(4)[first:])
    again = Store.open(tmp_path / "index")
    assert torch.equal(again.rows, torch.eye(4))
    assert [source.name for source, _ in again.sources()] == ["a", "b"]
