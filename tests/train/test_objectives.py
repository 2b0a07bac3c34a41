"""Objectives against sums written out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2erag.retriever import log_tail
from e2erag.train import OBJECTIVES, marginal, rag_sequence


def corpus(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and answer log-probabilities of n passages for one question, and a closed-book log-probability."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, generator=g, dtype=torch.float64),
        -3 * torch.rand(n, generator=g, dtype=torch.float64),
        torch.tensor(-4.0, dtype=torch.float64),
    )


def prior(scores: torch.Tensor, k: int) -> torch.Tensor:
    """log p(z|x) of the first k passages with Z over all."""
    return scores[:k] - scores.logsumexp(0)


def test_marginal_equals_a_sum_written_out() -> None:
    """Two passages of probability .5 and .3 explain the answer with .8 and .1; the other .2 explain it with .05."""
    loss = marginal(torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0.8, 0.1]]).log(), torch.tensor([0.05]).log())
    assert loss.item() == pytest.approx(-math.log(0.5 * 0.8 + 0.3 * 0.1 + 0.2 * 0.05), rel=1e-6)


def test_rag_sequence_equals_a_sum_written_out() -> None:
    """Renormalised over the two found, .5 and .3 become .625 and .375."""
    loss = rag_sequence(torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0.8, 0.1]]).log(), torch.tensor([0.05]).log())
    assert loss.item() == pytest.approx(-math.log(0.625 * 0.8 + 0.375 * 0.1), rel=1e-6)


def test_marginal_over_the_whole_corpus_is_the_brute_force_sum() -> None:
    """With K = N = 10 nothing is left for the tail: −log Σ_z softmax(s)_z p(y|x,z)."""
    scores, answer, closed = corpus(10)
    loss = marginal(prior(scores, 10)[None], answer[None], closed[None])
    assert loss.item() == pytest.approx(-(scores.softmax(0) * answer.exp()).sum().log().item(), abs=1e-10)


def test_marginal_with_a_tail_is_the_brute_force_sum_over_tail_passages_read_as_closed_book() -> None:
    """K = 4 of 10: the other six explain the answer as well as no passage does."""
    scores, answer, closed = corpus(10)
    read = torch.where(torch.arange(10) < 4, answer, closed)
    loss = marginal(prior(scores, 4)[None], answer[None, :4], closed[None])
    assert loss.item() == pytest.approx(-(scores.softmax(0) * read.exp()).sum().log().item(), abs=1e-10)


@pytest.mark.parametrize("k", [4, 10])
def test_the_scores_gradient_is_prior_minus_posterior(k: int) -> None:
    """dL/ds_z = p(z|x) − p(z|x,y) for every passage of the corpus, read or not."""
    scores, answer, closed = corpus(10)
    scores.requires_grad_()
    marginal(prior(scores, k)[None], answer[None, :k], closed[None]).sum().backward()
    read = torch.where(torch.arange(10) < k, answer, closed)
    p = scores.detach().softmax(0)
    posterior = p * read.exp() / (p * read.exp()).sum()
    torch.testing.assert_close(scores.grad, p - posterior, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Autograd against central differences in float64, with respect to every argument."""
    scores, answer, closed = corpus(6)

    def loss(s: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return OBJECTIVES[name](prior(s, 4)[None], a[None, :4], c[None])

    assert torch.autograd.gradcheck(
        loss, (scores.requires_grad_(), answer.requires_grad_(), closed.requires_grad_()), eps=1e-6, atol=1e-4
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_retrievers_gradient_changes_with_the_generator_alone(name: str) -> None:
    """Same scores, other answer likelihoods, another gradient (DALM's is the same to the bit)."""
    scores, answer, closed = corpus(6)
    gradients = []
    for answers in (answer, answer.flip(0)):
        s = scores.clone().requires_grad_()
        OBJECTIVES[name](prior(s, 4)[None], answers[None, :4], closed[None]).sum().backward()
        gradients.append(s.grad)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_passage_order_does_not_matter(name: str, seed: int) -> None:
    """A permutation of the K passages leaves the loss as it is."""
    scores, answer, closed = corpus(8, seed)
    p, a = prior(scores, 5), answer[:5]
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    here = OBJECTIVES[name](p[None], a[None], closed[None])
    there = OBJECTIVES[name](p[order][None], a[order][None], closed[None])
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_impossible_passage_changes_nothing(name: str) -> None:
    """A padded passage (log p = −∞) leaves loss and gradient as they are, and no NaN behind."""
    scores, answer, closed = corpus(6)
    results = []
    for extra in (0, 2):
        s, a = scores.clone().requires_grad_(), answer.clone().requires_grad_()
        p = torch.cat([prior(s, 4), torch.full((extra,), -torch.inf, dtype=s.dtype)])
        read = torch.cat([a[:4], torch.full((extra,), -torch.inf, dtype=s.dtype)])
        loss = OBJECTIVES[name](p[None], read[None], closed[None])
        loss.sum().backward()
        results.append((loss.detach(), s.grad, a.grad))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_probabilities_stay_finite(name: str) -> None:
    """An answer of log-probability −1e4 everywhere gives a loss of about 1e4, not infinity or NaN."""
    p = torch.tensor([[0.7, 0.2]]).log().requires_grad_()
    loss = OBJECTIVES[name](p, torch.full((1, 2), -1e4), torch.tensor([-1e4]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(1e4, rel=1e-3)
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


def test_a_gold_passage_out_of_reach_leaves_marginal_quiet_and_rag_sequence_loud() -> None:
    """None of the K found explains the answer, nor does the closed book: only RAG-Sequence pretends to know better."""
    scores = torch.zeros(1000, dtype=torch.float64)
    answer = torch.tensor([-9.0, -10.0, -11.0, -12.0], dtype=torch.float64)
    norms = {}
    for name, objective in OBJECTIVES.items():
        s = scores.clone().requires_grad_()
        objective(prior(s, 4)[None], answer[None], torch.tensor([-9.0], dtype=torch.float64)).sum().backward()
        norms[name] = s.grad.norm().item()
    assert norms["marginal"] < 0.05 * norms["rag_sequence"]


def test_the_tail_is_stable_at_both_ends() -> None:
    """log(1 − P) for P = 1e-12, .5 and 1, with finite gradients."""
    p = torch.tensor([[1e-12], [0.5], [1.0]], dtype=torch.float64).log().requires_grad_()
    tail = log_tail(p)
    tail[:2].sum().backward()
    torch.testing.assert_close(tail[:2].detach(), torch.tensor([-1e-12, math.log(0.5)], dtype=torch.float64))
    assert tail[2].item() == -math.inf
    assert torch.isfinite(p.grad).all()


def test_gate_divergence_is_zero_at_its_rates_and_pulls_towards_them() -> None:
    """Keep gates at .9 and a mean cut of .1 cost nothing; all open and all cut is pulled down, all shut up."""
    from e2erag.extract import Extraction
    from e2erag.train.module import gate_divergence

    def extraction(keep: float, cut: float) -> Extraction:
        logits = [torch.full((6,), p).logit().requires_grad_() for p in (keep, keep, 0.5, cut, 0.5, 0.5, 0.5)]
        return Extraction(*logits)

    assert gate_divergence(extraction(0.9, 0.1), 0.9, 0.1).item() == pytest.approx(0, abs=1e-6)
    for keep, cut, sign in ((0.97, 0.5, 1), (0.2, 0.02, -1)):
        out = extraction(keep, cut)
        gate_divergence(out, 0.9, 0.1).backward()
        for logits in (out.retrieve, out.read, out.cut):
            assert (logits.grad.sign() == sign).all()
