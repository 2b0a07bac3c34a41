"""Search and log Z against brute force, and what no text may count twice for."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from e2erag.retriever import ExactIndex, Hits, Softmax, Source, Spans, Store, StoreError, Without, log_prob_found
from e2erag.retriever.scan import BLOCK, TILE


def spans(*rows: tuple[int, int, int]) -> torch.Tensor:
    """As printed: reading 0."""
    return torch.tensor([(*row, 0) for row in rows])


def drawn(n: int, seed: int, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of small whole numbers, so that many scores are equal, and three queries."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (n, dim), generator=g).float(), torch.randint(-2, 3, (3, dim), generator=g).float()


SIZES = st.one_of(st.integers(1, 200), st.sampled_from([TILE, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + TILE + 1]))


@given(n=SIZES, k=st.integers(1, 100), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_search_is_brute_force_and_equal_scores_are_ordered_by_row(n: int, k: int, seed: int) -> None:
    """The k best in order, the lower row first, at the edge of K too, over blocks, and where k exceeds the corpus."""
    rows, queries = drawn(n, seed)
    hits = ExactIndex.of(rows).search(queries, k)
    best = (queries @ rows.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(hits.ids, best.indices[:, :k])
    assert torch.equal(hits.scores, best.values[:, :k])


@pytest.mark.parametrize("gone", [{"a"}, {"b"}, {"a", "b"}, {"a", "c"}])
def test_a_block_without_a_living_row_finds_nothing(gone: set[str]) -> None:
    """Documents that fill whole blocks are deleted, the first, a later one, all but the last rows."""
    rows, queries = drawn(2 * BLOCK + 70, 3)
    index = ExactIndex.of(rows, [Source("a", "", BLOCK), Source("b", "", BLOCK), Source("c", "", 70)])
    index.delete(sorted(gone))
    scores = queries @ rows.T
    scores[:, index.store.dead] = -torch.inf
    best = scores.sort(dim=1, descending=True, stable=True)
    hits = index.search(queries, 5)
    assert torch.equal(hits.ids, best.indices[:, :5])
    torch.testing.assert_close(index.log_z(queries, hits), scores.logsumexp(1))


@given(n=SIZES, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_log_z_is_logsumexp_and_its_gradient_is_p(n: int, seed: int) -> None:
    """In float64, with a fresh prior and with terms left out: equal to the sum written out, gradients too."""
    rows, queries = drawn(n, seed)
    g = torch.Generator().manual_seed(seed)
    queries = (queries.double() * 0.7).requires_grad_()
    prior = torch.randn(n, generator=g, dtype=torch.float64).requires_grad_()
    out = torch.randperm(n, generator=g)[:70].sort().values
    without = Without(out, torch.rand(3, len(out), generator=g) < 0.7)
    index = ExactIndex.of(rows)
    ours = index.log_z(queries, index.search(queries, 4, prior), without, prior)
    scores = queries[:, :-1] @ rows.double()[:, :-1].T + prior
    mask = torch.zeros(3, n, dtype=torch.bool)
    mask[:, out] = without.mask
    brute = scores.masked_fill(mask, -torch.inf).logsumexp(1)
    torch.testing.assert_close(ours, brute)
    weights = torch.randn(3, generator=g, dtype=torch.float64).where(brute > -torch.inf, torch.tensor(0.0))
    expected = torch.autograd.grad(weights @ brute.clamp_min(-1e9), [queries, prior])
    got = torch.autograd.grad(weights @ ours.clamp_min(-1e9), [queries, prior])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_and_scores_are_float32(dtype: torch.dtype) -> None:
    """Scores of the stored rows to float32's last digits: a product in half precision would tie thousands of them."""
    rows, queries = torch.randn(300, 16), torch.randn(4, 16)
    store = Store(dtype=dtype)
    store.add([Source("a", "", 300)], rows)
    hits = ExactIndex(store).search(queries, 300)
    assert store.rows.dtype == dtype
    exact = queries @ rows.to(dtype).float().T
    assert torch.equal(hits.ids, exact.sort(dim=1, descending=True, stable=True).indices)
    assert all(len(row.unique()) > 290 for row in hits.scores)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own form
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_a_block_is_all_that_a_search_and_a_gradient_hold() -> None:
    """Sixteen questions over four blocks: no tensor is larger than one block's scores, forward and backward."""
    index = ExactIndex.of(torch.randn(4 * BLOCK, 4))
    queries = torch.randn(16, 4, requires_grad=True)
    with Largest() as largest:
        index.log_z(queries, index.search(queries, 5)).sum().backward()
    assert queries.grad is not None
    assert largest.numbers == 16 * BLOCK


def test_rows_are_searched_where_they_lie() -> None:
    """In memory the corpus isn't held twice."""
    rows = torch.randn(7, 4)
    index = ExactIndex.of(rows)
    assert index.vectors.data_ptr() == rows.data_ptr()


@given(seed=st.integers(0, 999), n=st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_a_passage_of_score_minus_infinity_changes_nothing(seed: int, n: int) -> None:
    """Its prior says that it can't be: same hits, same log Z."""
    rows, queries = drawn(n, seed)
    more = torch.cat([rows, torch.ones(1, 5)])
    prior = torch.zeros(n)
    fewer, index = ExactIndex.of(rows), ExactIndex.of(more)
    without = fewer.search(queries, 9, prior)
    with_ = index.search(queries, 9, torch.cat([prior, torch.tensor([-torch.inf])]))
    width = min(9, n)
    assert torch.equal(with_.ids[:, :width], without.ids)
    assert (with_.ids[:, width:] == -1).all()
    torch.testing.assert_close(
        index.log_z(queries, with_, None, torch.cat([prior, torch.tensor([-torch.inf])])),
        fewer.log_z(queries, without, None, prior),
    )


@given(seed=st.integers(0, 999), n=st.integers(8, 60), k=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_log_prob_is_a_softmax_over_every_passage(seed: int, n: int, k: int) -> None:
    """Fresh scores where passages were encoded anew, stored ones elsewhere, without those that repeat one found."""
    g = torch.Generator().manual_seed(seed)
    rows, queries = torch.randn(n, 5, generator=g), torch.randn(3, 5, generator=g)
    table = torch.tensor(sorted((i // 12, i, i + 1 + i * seed % 5, 0) for i in range(n)))
    every = Spans(table, 0.3)
    index = ExactIndex.of(rows)
    hits = index.search(queries, 6 * k)
    ids = every.distinct(hits, k).ids
    unique = ids[ids >= 0].unique()
    fresh = rows[unique] + 0.1 * torch.randn(len(unique), 5, generator=g)
    scores = (queries @ rows.T).index_copy(1, unique, queries @ fresh.T)
    repeated = every.repeated(ids)
    nested = torch.zeros(3, n, dtype=torch.bool)
    nested[:, repeated.rows] = repeated.mask
    torch.testing.assert_close(
        Softmax(index, queries, hits, ids, every, unique, shared=True).log_prob(queries @ fresh.T),
        log_prob_found(scores, ids, nested),
        atol=1e-5,
        rtol=0,
    )


@given(seed=st.integers(0, 999), k=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_log_prob_found_is_a_softmax_over_the_whole_corpus(seed: int, k: int) -> None:
    """Nested passages are left out of Z, the ones found never are."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 10, generator=g, dtype=torch.float64)
    ids = torch.stack([torch.randperm(10, generator=g)[:k] for _ in range(2)])
    nested = torch.rand(2, 10, generator=g) < 0.3
    left_out = nested.scatter(1, ids, False)
    expected = scores.masked_fill(left_out, -torch.inf).log_softmax(1).gather(1, ids)
    torch.testing.assert_close(log_prob_found(scores, ids, nested), expected)


def test_a_missing_passage_has_no_probability_and_no_gradient() -> None:
    """An id of −1 gets −∞, and row 0, to which it might be mistaken, stays in Z."""
    scores = torch.zeros(1, 3, requires_grad=True)
    logp = log_prob_found(scores, torch.tensor([[1, -1]]))
    logp[0, 0].backward()
    assert logp[0, 1].item() == -torch.inf
    assert logp[0, 0].exp().item() == pytest.approx(1 / 3)
    torch.testing.assert_close(scores.grad, torch.tensor([[-1 / 3, 2 / 3, -1 / 3]]))


def test_nested_passages_do_not_fill_k() -> None:
    """Three sizes around one place, and another place: the best of the first and the other are chosen."""
    rows = spans((0, 0, 6), (0, 0, 12), (0, 3, 9), (1, 0, 6))
    hits = Hits(torch.tensor([[0, 2, 1, 3]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    chosen = Spans(rows, overlap=0.3).distinct(hits, 3)
    assert chosen.ids.tolist() == [[0, 3, -1]]
    assert chosen.scores.tolist() == [[4.0, 1.0, -torch.inf]]


def test_two_readings_of_a_table_stand_beside_each_other() -> None:
    """Rows and sentences of the same lines are alternatives; the lines as printed repeat either."""
    rows = torch.tensor([(0, 0, 6, 0), (0, 0, 6, 1), (0, 0, 6, 2)])
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    assert Spans(rows, 0.3).distinct(Hits(torch.tensor([[1, 2, 0]]), scores), 3).ids.tolist() == [[1, 2, -1]]
    assert Spans(rows, 0.3).distinct(Hits(torch.tensor([[0, 1, 2]]), scores), 3).ids.tolist() == [[0, -1, -1]]


@given(seed=st.integers(0, 999), overlap=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_repeated_finds_every_passage_that_repeats_one_found(seed: int, overlap: float) -> None:
    """Looking only at neighbours in the index gives the same as comparing with every passage."""
    g = torch.Generator().manual_seed(seed)
    made = set()
    for _ in range(25):
        document, start, size = (int(torch.randint(0, top, (1,), generator=g)) for top in (3, 20, 8))
        reading = int(torch.randint(0, 3, (1,), generator=g))
        made.add((document, 30 * document + start, 30 * document + start + size + 1, reading))
    table = torch.tensor(sorted(made))
    every = Spans(table, overlap)
    ids = torch.randint(0, len(table), (2, 3), generator=g)
    n = len(table)
    repeats = every.repeats(table[ids][:, :, None].expand(2, 3, n, 4), table[None, None].expand(2, 3, n, 4)).any(1)
    found = every.repeated(ids)
    nested = torch.zeros(2, n, dtype=torch.bool)
    nested[:, found.rows] = found.mask
    assert torch.equal(nested, repeats)


def test_a_file_in_a_folders_place_is_told(tmp_path: Path) -> None:
    """The file itself, and a folder that would lie in it; the file stays."""
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for place in (file, file / "index"):
        with pytest.raises(StoreError, match="is or lies in a file: name another"):
            Store(place)
    assert file.read_text() == "mine"
