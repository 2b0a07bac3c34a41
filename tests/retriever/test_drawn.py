"""Passages drawn in the place of all that isn't encoded afresh: whom they stand for, and the slope that comes of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from e2erag.retriever import (
    ExactIndex,
    FaissIndex,
    Hits,
    Index,
    Softmax,
    Source,
    Spans,
    Store,
    log_prob_found,
)
from e2erag.retriever.sampled import SAMPLE
from e2erag.retriever.softmax import Drawn

K, QUESTIONS, DIM = 4, 3, 6


class Case:
    """Overlapping passages, of which each question has found K by stored rows that are no longer quite true."""

    def __init__(self, n: int, index: Index | None = None, sharp: float = 1.0) -> None:
        g = torch.Generator().manual_seed(n)
        self.queries = sharp * torch.randn(QUESTIONS, DIM, generator=g)
        self.queries[:, -1] = 1.0
        self.rows = torch.randn(n, DIM, generator=g)
        self.spans = Spans(torch.tensor([(i // 12, i, i + 1 + i % 4, 0) for i in range(n)]), 0.3)
        self.index = index or ExactIndex.of(self.rows)
        self.hits: Hits = self.index.search(self.queries, 6 * K)
        self.ids = self.spans.distinct(self.hits, K).ids
        self.unique = self.ids[self.ids >= 0].unique()

    def draw(self, count: int, seed: int = 0, part: slice = slice(None)) -> Drawn:
        noise = torch.Generator().manual_seed(seed)
        hits = Hits(self.hits.ids[part], self.hits.scores[part])
        softmax = Softmax(self.index, self.queries[part], hits, self.ids[part], self.spans, self.unique, shared=True)
        return softmax.draw(count, noise)

    def shares(self) -> Tensor:
        """p(z|x) among the rest: passages not encoded afresh that repeat none of the K."""
        scores = self.queries.double() @ self.rows.double().T
        repeated = self.spans.repeated(self.ids)
        scores[:, repeated.rows] = scores[:, repeated.rows].masked_fill(repeated.mask, -torch.inf)
        scores[:, self.unique] = -torch.inf
        return scores.softmax(1)

    def logp(self, rows: Tensor, drawn: Drawn) -> Tensor:
        """log p(z|x) of the K where rows are these, with slope as far as they are encoded."""
        fresh, slope = self.queries @ rows[self.unique].T, drawn.slope(self.queries, rows[drawn.rows])
        softmax = Softmax(self.index, self.queries, self.hits, self.ids, self.spans, self.unique, shared=True)
        return softmax.log_prob(fresh, slope)


def test_with_everything_drawn_the_slope_is_the_whole_softmaxes() -> None:
    """log p(z|x) is what it is without, and its slope in every row is that of a softmax over all of them."""
    case = Case(60)
    rows, every = (case.rows.clone().requires_grad_() for _ in range(2))
    drawn = case.draw(100_000)
    logp = case.logp(rows, drawn)
    torch.testing.assert_close(logp, case.logp(rows, case.draw(0)))
    repeated = case.spans.repeated(case.ids)
    nested = torch.zeros(QUESTIONS, 60, dtype=torch.bool)
    nested[:, repeated.rows] = repeated.mask
    expected = log_prob_found(case.queries @ every.T, case.ids, nested)
    torch.testing.assert_close(logp, expected)
    weight = torch.randn(QUESTIONS, K)
    (weight * logp).sum().backward()
    (weight * expected).sum().backward()
    assert rows.grad is not None
    assert every.grad is not None
    torch.testing.assert_close(rows.grad[:, :-1], every.grad[:, :-1], atol=1e-3, rtol=1e-3)
    assert (rows.grad[drawn.rows, -1] == 0).all()  # log π is fresh for every passage


def test_what_moves_every_row_alike_moves_no_probability() -> None:
    """A passage drawn is enough for that; without one, raising all rows seems to raise the K."""
    case, shift = Case(60), torch.zeros(DIM, requires_grad=True)
    seen = {}
    for count in (0, 1, 8):
        logp = case.logp(case.rows + shift, case.draw(count))
        (seen[count],) = torch.autograd.grad(logp.sum(), shift)
    assert seen[0].abs().max() > 0.1
    for count in (1, 8):
        torch.testing.assert_close(seen[count][:-1], torch.zeros(DIM - 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 5])
def test_one_questions_draws_are_right_in_the_mean(count: int) -> None:
    """Of one question the estimate is without bias: within four standard errors over 1,000 draws."""
    case = Case(60, sharp=0.5)
    expected, draws = case.shares()[0], []
    for seed in range(1000):
        drawn = case.draw(count, seed, slice(1))
        draws.append(torch.zeros(60).index_copy(0, drawn.rows, drawn.share[0]))
        assert drawn.share.sum().item() == pytest.approx(1)
        assert len(drawn.rows) <= count
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 1000**0.5
    assert ((mean - expected).abs() <= 4 * error + 1e-3).all()


def test_nothing_is_drawn_that_is_encoded_and_no_question_is_given_what_repeats_its_own() -> None:
    """Shares are p(z|x) over the mean of it, so 0 where a question leaves a passage out, and more draws are better."""
    case = Case(60)
    expected = case.shares()
    drawn = case.draw(1000)
    assert not torch.isin(drawn.rows, case.unique).any()
    assert (drawn.rows.diff() > 0).all()
    assert (drawn.share[expected[:, drawn.rows] == 0] == 0).all()
    errors = []
    for count in (8, 64, 1000):
        drawn = case.draw(count)
        errors.append((torch.zeros(QUESTIONS, 60).index_copy(1, drawn.rows, drawn.share) - expected).abs().sum())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("kind", ["exact", "HNSW"])
def test_of_many_rows_those_found_and_some_others_are_enough(kind: str, tmp_path: Path) -> None:
    """With more rows than are drawn from, shares of those found are right to a fifth."""
    n = 3 * SAMPLE
    case = Case(n)
    if kind == "HNSW":
        store = Store(tmp_path)
        store.build([[Source("corpus", "", n)]], lambda _: case.rows)
        case = Case(n, FaissIndex(store, "HNSW"))
    expected = case.shares()
    drawn = case.draw(3000)
    share = torch.zeros(QUESTIONS, n).index_copy(1, drawn.rows, drawn.share)
    near = case.hits.ids[(case.hits.ids >= 0) & ~torch.isin(case.hits.ids, case.unique)].unique()
    torch.testing.assert_close(share[:, near].sum(1), expected[:, near].sum(1).float(), atol=0.0, rtol=0.2)
    assert not torch.isin(drawn.rows, case.unique).any()


def test_where_nothing_is_left_nothing_is_drawn() -> None:
    """Every passage is read: no draw, and log p(z|x) stays finite."""
    case = Case(5)
    case.unique = torch.arange(5)
    drawn = case.draw(8)
    assert len(drawn.rows) == 0
    rows = case.rows.clone().requires_grad_()
    logp = case.logp(rows, drawn)
    logp[case.ids >= 0].sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_the_random_numbers_taken_do_not_depend_on_what_is_left() -> None:
    """Ranks with questions of their own draw on alike."""
    states = []
    for case in (Case(60), Case(5)):
        noise = torch.Generator().manual_seed(0)
        Softmax(case.index, case.queries, case.hits, case.ids, case.spans, torch.arange(5), shared=True).draw(8, noise)
        states.append(noise.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("n", [60, SAMPLE + 500])
@pytest.mark.parametrize("each", [False, True])
def test_a_prior_given_counts_in_place_of_the_stored_one(each: bool, n: int) -> None:
    """What it makes likely is drawn, of all rows or of some, and what it rules out never is."""
    case = Case(n, sharp=0.1)
    likely = next(i for i in range(n // 2, n) if not torch.isin(torch.tensor(i), case.ids) and i % 4 == 0)
    prior = torch.full((n,), -torch.inf)
    prior[likely] = 5.0
    prior[case.ids.flatten()] = 0.0
    prior = prior.expand(QUESTIONS, n) if each else prior
    hits = case.index.search(case.queries, 6 * K, prior)
    drawn = Softmax(case.index, case.queries, hits, case.ids, case.spans, case.unique, prior, shared=True).draw(8)
    assert drawn.rows.tolist() == [likely]
    assert (drawn.share == 1).all()


def test_without_a_hit_there_is_still_a_rest() -> None:
    """No passage found for any question: all of them are the rest."""
    case = Case(60)
    ids, unique = torch.full((QUESTIONS, K), -1), torch.zeros(0, dtype=torch.long)
    hits = Hits(ids, torch.zeros(ids.shape))
    drawn = Softmax(case.index, case.queries, hits, ids, case.spans, unique, shared=True).draw(8)
    assert 0 < len(drawn.rows) <= 8
    torch.testing.assert_close(drawn.share.sum(1), torch.ones(QUESTIONS))


def test_nothing_is_drawn_where_questions_share_no_z() -> None:
    """A passage that one question reads would be encoded twice."""
    case = Case(60)
    alone = Softmax(case.index, case.queries, case.hits, case.ids, case.spans, case.unique)
    assert not len(alone.draw(0).rows)
    with pytest.raises(ValueError, match="takes a Z that they share"):
        alone.draw(8)


def test_a_question_has_the_p_that_it_has_alone() -> None:
    """Whatever the others of its batch have encoded afresh, here with other rows than those stored."""
    case = Case(60)
    rows = case.rows + 0.1 * torch.randn(case.rows.shape, generator=torch.Generator().manual_seed(1))
    fresh = case.queries @ rows[case.unique].T
    together = Softmax(case.index, case.queries, case.hits, case.ids, case.spans, case.unique).log_prob(fresh)
    for i in range(QUESTIONS):
        one = slice(i, i + 1)
        own = case.ids[one].unique()
        own = own[own >= 0]
        hits = case.index.search(case.queries[one], 6 * K)
        alone = Softmax(case.index, case.queries[one], hits, case.ids[one], case.spans, own)
        torch.testing.assert_close(alone.log_prob(case.queries[one] @ rows[own].T)[0], together[i])
