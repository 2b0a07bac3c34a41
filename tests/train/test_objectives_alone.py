"""Objectives one by one: what holds for a single one of them, and how several are put together."""

import math
from dataclasses import replace

import pytest
import torch
from evidence import STOCHASTIC, agree, drawn_slopes, gradients, options, tiny
from torch import Tensor

from e2erag.retriever import log_tail
from e2erag.train import OBJECTIVES, Evidence, Options, marginal
from e2erag.train.objectives import COMPARING, TARGETS, negligible, weighted, weights_of


def test_rlooes_mean_is_the_marginals_gradient() -> None:
    """Over 50,000 draws, within four standard errors, in p(z|x) (so in both towers) and in the reader."""
    e = tiny(n=5, level=0.7).evidence(3)
    drawn = drawn_slopes("rloo", e, 50_000, options(samples=3))
    exact = drawn_slopes("marginal", e, 1, options())
    for slopes, expected in zip(drawn, exact, strict=True):
        assert agree(slopes, expected[0])
        assert expected.abs().max() > 20 * slopes.std(0).max() / 50_000**0.5  # or anything would agree


def test_a_leave_one_out_baseline_lowers_the_variance() -> None:
    """Four draws with it against the mean of four draws without (a single draw has none)."""
    e = tiny(n=5, level=0.7).evidence(4)
    scores = e.prior_logp.detach()

    def spread(slopes: Tensor) -> float:
        return float((slopes - slopes.sum(1, keepdim=True) * scores[:1].exp()).var(0).sum())  # in the scores

    alone = drawn_slopes("rloo", e, 40_000, options(samples=1))[0].view(10_000, 4, -1).mean(1)
    together = drawn_slopes("rloo", e, 10_000, options(samples=4))[0]
    assert spread(together) < 0.8 * spread(alone)


def test_gumbels_gradient_is_the_straight_through_one() -> None:
    """Value: the mixture of the passages drawn. Slope: Σ_z dL/dW_z · d soft_z/ds, for one draw re-made by hand."""
    system = tiny(b=1)
    e, o = system.evidence(4), options(7, samples=2)
    loss = OBJECTIVES["gumbel"](e, o)
    u = torch.rand(1, 4, generator=options(7).noise, dtype=torch.float64)
    prior = e.prior_logp.log_softmax(1)
    noisy = prior - (-u.log()).log()
    first, second = noisy.detach().argsort(descending=True)[0, :2].tolist()
    read = e.answer_logp.detach()[0].exp()
    drawn = read[first] + read[second]
    assert loss.item() == pytest.approx(-math.log(drawn / 2))
    left = noisy.clone()
    left[0, first] = -torch.inf
    soft = noisy.softmax(1) + left.softmax(1)
    expected = torch.autograd.grad(-(soft[0] * read / drawn).sum(), system.questions, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), system.questions)[0], expected)


def test_gumbels_slopes_are_held_at_a_bound() -> None:
    """Of a passage that wasn't drawn and is e²⁰ times likelier, in full; of one e⁸⁰ times, as if it were e³⁰."""
    slopes = {}
    for gap in (20.0, 30.0, 80.0):
        scores = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        first = int((torch.rand(1, 2, generator=options(7).noise, dtype=torch.float64)).argmax())
        answers = torch.full((1, 2), -90.0, dtype=torch.float64)
        answers[0, 1 - first] += gap
        e = Evidence(prior_logp=scores.log_softmax(1), answer_logp=answers, closed_book_logp=torch.tensor([-90.0]))
        loss = OBJECTIVES["gumbel"](e, options(7, samples=1))
        slopes[gap] = float(torch.autograd.grad(loss.sum(), scores)[0].norm())
    assert slopes[30.0] / slopes[20.0] == pytest.approx(math.exp(10), rel=1e-3)
    assert slopes[80.0] == pytest.approx(slopes[30.0], rel=1e-6)


def test_answers_by_the_token_leave_no_passage_unread() -> None:
    """A share of the likelihood says nothing of shares by the token."""
    assert negligible(("marginal",), 0.02) == (0.02, True)
    assert negligible(("marginal",), 0.02, Options(per_token=True)) == (0.0, True)
    assert negligible(("rag_sequence",), 0.02, Options(per_token=True)) == (0.0, False)
    assert negligible(("pdist",), 0.02, Options(per_token=True)) == (1.0, False)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_generator_makes_draws_repeatable(name: str) -> None:
    """The same seed, the same gradient; another seed, another."""
    a, b, c = (gradients(name, tiny(), 4, options(seed, samples=2))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_gold_passage_out_of_reach_leaves_marginal_quiet_and_rag_sequence_loud() -> None:
    """None of the K found explains the answer, nor does the closed book: only RAG-Sequence pretends to know better."""
    norms = {}
    for name in ("marginal", "rag_sequence"):
        scores = torch.zeros(1, 1000, dtype=torch.float64, requires_grad=True)
        e = Evidence(
            prior_logp=scores.log_softmax(1)[:, :4],
            answer_logp=torch.tensor([[-9.0, -10.0, -11.0, -12.0]], dtype=torch.float64),
            closed_book_logp=torch.tensor([-9.0], dtype=torch.float64),
        )
        norms[name] = torch.autograd.grad(OBJECTIVES[name](e, options()).sum(), scores)[0].norm().item()
    assert norms["marginal"] < 0.05 * norms["rag_sequence"]


def test_distillation_does_not_shrink_with_k() -> None:
    """Each passage twice: the target and p_K are both halved, so the divergence stays. Atlas' element mean halves."""
    e = tiny().evidence(4)
    twice = replace(
        e,
        prior_logp=e.prior_logp.repeat(1, 2) - math.log(2),
        answer_logp=e.answer_logp.repeat(1, 2),
        token_logp=None,
        ids=None,
        passage_rows=None,
    )
    for name in ("pdist", "lsr"):
        torch.testing.assert_close(OBJECTIVES[name](e, options()), OBJECTIVES[name](twice, options()))


@pytest.mark.parametrize("name", sorted(COMPARING - {"contrastive"}))
def test_passages_read_together_are_compared_by_what_each_says_alone(name: str) -> None:
    """`alone_logp`, without gradient: a retriever's term is of it, a reader's of what was read together."""
    system, other = tiny(), tiny(seed=1)
    e, apart = system.evidence(4), other.evidence(4)
    given = replace(e, alone_logp=apart.token_logp)
    same = replace(e, token_logp=apart.token_logp.detach(), answer_logp=apart.answer_logp.detach())
    if name in ("emdr2", "emdr2_token"):
        term, unit = (OBJECTIVES["rag_token"], e.length) if name == "emdr2_token" else (OBJECTIVES["rag_sequence"], 1)
        held = replace(e, prior_logp=e.prior_logp.detach())
        expected = (term(held, options()) + term(same, options())) / unit
    else:
        expected = OBJECTIVES[name](same, options())
    inputs = (system.questions, system.passages, system.tokens, other.tokens)
    how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    results = [
        (loss.detach(), *torch.autograd.grad(loss.sum(), inputs, **how))
        for loss in (OBJECTIVES[name](given, options()), expected)
    ]
    assert results[0][1].abs().max() > 1e-6
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there)


def test_a_cold_target_is_one_hot() -> None:
    """Atlas' default of .01 on log-likelihoods of −.50, −.52, −.55 gives .88, .12, .01; .1 gives .41, .34, .25."""
    e = Evidence(
        prior_logp=torch.full((1, 3), 1 / 3).log(),
        answer_logp=torch.tensor([[-0.50, -0.52, -0.55]]),
        closed_book_logp=torch.zeros(1),
        length=torch.tensor([1]),
    )
    for temperature, expected in ((0.01, [0.88, 0.12, 0.01]), (0.1, [0.41, 0.34, 0.25])):
        target = TARGETS["pdist"](e, Options(temperature)).exp()[0].tolist()
        assert target == pytest.approx(expected, abs=0.006)


def test_long_answers_do_not_underflow_a_target() -> None:
    """Answers of −20, −25 and −120 nats: FedRAG's exp of the sum rounds the last to nothing and the rest to equal."""
    e = Evidence(
        prior_logp=torch.full((1, 3), 1 / 3).log(),
        answer_logp=torch.tensor([[-20.0, -25.0, -120.0]]),
        closed_book_logp=torch.zeros(1),
        length=torch.tensor([5]),
    )
    assert TARGETS["lsr"](e, Options(1.0)).exp()[0].tolist() == pytest.approx([0.7311, 0.2689, 0.0], abs=1e-4)


def test_contrastive_takes_the_gold_passage_where_it_is_known() -> None:
    """Question 0 names its page, of whose passages the second was found; question 1's page wasn't; question 2 names
    none. The second is left out, as a row and as a column."""
    system = tiny()
    e = system.evidence(4)
    gold = torch.tensor([[False, True, False, False], [False] * 4, [True] * 4])
    loss = OBJECTIVES["contrastive"](replace(e, gold=gold), options())
    best = int((e.prior_logp + e.answer_logp)[2].argmax())
    rows = torch.stack([e.passage_rows[0, 1], e.passage_rows[2, best]])
    scores = system.questions[[0, 2]] @ rows.T
    expected = -scores.log_softmax(1).diagonal()
    torch.testing.assert_close(loss, torch.stack([expected[0], torch.zeros(()).double(), expected[1]]))


def test_contrastive_takes_the_best_of_those_that_were_found() -> None:
    """Of question 0 two of four were, and the best of the four wasn't; question 1 has all of its four."""
    system = tiny(b=2)
    e = system.evidence(4)
    joint = (e.prior_logp + e.answer_logp).detach()
    missing = torch.zeros(2, 4, dtype=torch.bool)
    missing[0, joint[0].topk(2).indices] = True
    best = joint.masked_fill(missing, -torch.inf).argmax(1)
    assert best[0] != joint[0].argmax()
    chosen = e.ids[[0, 1], best]
    assert chosen[0] != chosen[1]
    cut = replace(
        e,
        prior_logp=e.prior_logp.masked_fill(missing, -torch.inf),
        answer_logp=e.answer_logp.masked_fill(missing, -torch.inf),
        ids=e.ids.masked_fill(missing, -1),
    )
    expected = -(system.questions @ system.passages[chosen].T).log_softmax(1).diagonal()
    torch.testing.assert_close(OBJECTIVES["contrastive"](cut, options()), expected)


def test_a_passage_two_questions_share_is_no_negative_of_either() -> None:
    """Both questions' best is passage 0: nothing is left to tell it from, and the loss is 0."""
    system = tiny(b=2)
    e = system.evidence(4)
    ids = torch.zeros_like(e.ids)
    loss = OBJECTIVES["contrastive"](replace(e, ids=ids), options())
    torch.testing.assert_close(loss, torch.zeros(2).double())


def test_weights_compose() -> None:
    """{"marginal": 1, "pdist": .5} is the sum, in value and gradient."""
    e = tiny().evidence(4)
    parts = weighted({"marginal": 1, "pdist": 0.5}, e, options())
    expected = marginal(e) + 0.5 * OBJECTIVES["pdist"](e, options())
    torch.testing.assert_close(sum(parts.values()), expected)
    assert weights_of("emdr2") == {"emdr2": 1.0}
    assert weights_of({"loop": torch.tensor(2), "lsr": torch.ones(1).numpy()[0]}) == {"loop": 2.0, "lsr": 1.0}


def test_wrong_names_and_weights_are_told_the_right_ones() -> None:
    """The nearest name; a weight that would do nothing or harm; none at all; evidence that is missing."""
    with pytest.raises(ValueError, match=r"there is no objective 'pdits': did you mean pdist\?"):
        weights_of({"pdits": 1})
    with pytest.raises(ValueError, match="there is no objective 'xyz': there are marginal, rag_sequence, rag_token"):
        weights_of("xyz")
    for weight in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"an objective's weight must be positive, got .* for loop: leave it out"):
            weights_of({"loop": weight})
    with pytest.raises(ValueError, match="objective names none: take one or several of marginal"):
        weights_of({})
    for named in (["marginal", "pdist"], None, {"marginal": None}):
        with pytest.raises(ValueError, match=r"an objective is a name, or names with weights \(.*\), got "):
            weights_of(named)
    for wrong in ({"temperature": 0.0}, {"temperature": -1.0}, {"samples": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got .* is the default"):
            Options(**wrong)
    bare = Evidence(prior_logp=torch.zeros(1, 1), answer_logp=torch.zeros(1, 1), closed_book_logp=torch.zeros(1))
    for name, missing in (("rag_token", "token_logp"), ("pdist", "needs length"), ("contrastive", "question_rows")):
        with pytest.raises(ValueError, match=missing):
            OBJECTIVES[name](bare, Options())


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
