"""Search and log Z against brute force."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2erag.retriever import Hits, Index, Spans, log_prob_found


def spans(*rows: tuple[int, int, int]) -> torch.Tensor:
    """As printed: reading 0."""
    return torch.tensor([(*row, 0) for row in rows])


@given(n=st.integers(1, 30), k=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_search_is_brute_force(n: int, k: int, seed: int) -> None:
    """The k largest inner products in order, also where k exceeds the corpus."""
    g = torch.Generator().manual_seed(seed)
    vectors, queries = torch.randn(n, 5, generator=g), torch.randn(3, 5, generator=g)
    hits = Index(vectors).search(queries, k)
    best = (queries @ vectors.T).sort(1, descending=True)
    torch.testing.assert_close(hits.scores, best.values[:, :k], atol=1e-5, rtol=0)
    torch.testing.assert_close((queries @ vectors.T).gather(1, hits.ids), hits.scores, atol=1e-5, rtol=0)


def test_the_vectors_are_a_view_of_the_index() -> None:
    """log Z and the search read the same memory: the corpus isn't held twice."""
    index = Index(torch.randn(7, 4))
    index.vectors[3] = 9.0
    assert index.search(torch.ones(1, 4), 1).ids.tolist() == [[3]]


def test_a_view_keeps_its_memory_when_the_index_is_replaced() -> None:
    """A graph may hold the view longer than the system holds the index."""
    index = Index(torch.ones(1000, 64))
    view = index.vectors
    del index
    gc.collect()
    assert len([torch.full((1000, 64), 7.0) for _ in range(20)]) == 20
    assert (view == 1).all()


def test_equal_scores_are_ordered_by_row() -> None:
    """Eight equal vectors: 0 to 7, in the search and in what training finds."""
    index = Index(torch.ones(8, 2))
    assert index.search(torch.ones(1, 2), 8).ids.tolist() == [list(range(8))]
    rows = spans(*((0, 2 * i, 2 * i + 1) for i in range(8)))
    assert index.found(torch.ones(1, 8), Spans(rows, 0.3), 8).tolist() == [list(range(8))]


def test_an_empty_corpus_and_bad_vectors_are_refused() -> None:
    """Each with what came and what to do."""
    with pytest.raises(ValueError, match="at least one passage"):
        Index(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="passage 1 has NaN"):
        Index(torch.tensor([[1.0], [float("nan")]]))


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
def test_nested_finds_every_passage_that_repeats_one_found(seed: int, overlap: float) -> None:
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
    assert torch.equal(every.nested(ids), repeats)
