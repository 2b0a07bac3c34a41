"""Objectives against sums written out by hand, on a tiny corpus in float64: every claim for every name there is."""

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from evidence import (
    EXACT,
    READER_ALONE,
    RETRIEVER_ALONE,
    RETRIEVING,
    STOCHASTIC,
    Tiny,
    agree,
    changed,
    drawn_slopes,
    gradients,
    options,
    tiny,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2erag.retriever import log_prob_found, log_tail
from e2erag.train import OBJECTIVES, Evidence, Options, marginal, rag_sequence

# ------------------------------------------------------------------------------------------------ brute force


def by_hand(name: str, system: Tiny, i: int, k: int, o: Options) -> float:
    """The loss of question i, with loops and probabilities rather than tensors and logarithms."""
    e = system.evidence(k)
    t = int(system.length[i])
    p = [float(x) for x in e.prior_logp[i].detach().exp()]
    scale = t if o.per_token else 1
    raw = [float(x) for x in e.answer_logp[i].detach().exp()]
    read = [x ** (1 / scale) for x in raw]
    token = e.token_logp[i, :, :t].exp().tolist()
    closed = float(e.closed_book_logp[i].detach().exp()) ** (1 / scale)
    share = [x / sum(p) for x in p]
    whole = sum(a * b for a, b in zip(p, read, strict=True)) + (1 - sum(p)) * closed
    mixture = sum(a * b for a, b in zip(share, read, strict=True))
    per_token = -sum(math.log(sum(a * b[s] for a, b in zip(share, token, strict=True))) for s in range(t))

    def target(logp: list[float]) -> list[float]:
        powers = [math.exp(x / t / o.temperature) for x in logp]
        return [x / sum(powers) for x in powers]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    likely = target([math.log(x) for x in raw])  # a mean over tokens by itself
    rest = target([-math.log(sum(raw[:j] + raw[j + 1 :]) / (k - 1)) for j in range(k)])
    if name == "rb":
        terms = [a * b for a, b in zip(p, read, strict=True)] + [(1 - sum(p)) * closed]
        return -sum(x / whole * math.log(x) for x in terms if x > 0)
    if name == "contrastive":
        lengths = system.length.tolist() if o.per_token else [1] * len(system.length)
        best = [int((e.prior_logp[j] + e.answer_logp[j] / lengths[j]).argmax()) for j in range(len(lengths))]
        number = [int(e.ids[j, best[j]]) for j in range(len(best))]
        s = [float(system.questions[i].detach() @ system.passages[z].detach()) for z in number]
        same = [z for j, z in enumerate(s) if j == i or number[j] != number[i]]
        return math.log(sum(math.exp(x) for x in same)) - s[i]
    return {
        "marginal": -math.log(whole),
        "rag_sequence": -math.log(mixture),
        "reader": -math.log(mixture),
        "rag_token": per_token / scale,
        "emdr2": -2 * math.log(mixture),
        "emdr2_token": 2 * per_token / t,
        "pdist": kl(likely, share),
        "lsr": kl(share, likely),
        "loop": kl(rest, share),
        "rloo": -math.log(whole),
    }[name]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("k", [4, 7])
@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "gumbel"])
def test_the_loss_is_the_formula_written_out(name: str, k: int, per_token: bool) -> None:
    """Three questions, seven passages, answers of one to three tokens: K = 7 leaves no tail. The targets' temperature
    is one that float32 would round."""
    system, how = tiny(), replace(options(), per_token=per_token, temperature=0.3)
    loss = OBJECTIVES[name](system.evidence(k), how)
    assert loss.tolist() == pytest.approx([by_hand(name, system, i, k, how) for i in range(3)], abs=1e-9)


def test_marginal_equals_a_sum_of_three_terms() -> None:
    """Two passages of probability .5 and .3 explain the answer with .8 and .1; the other .2 explain it with .05."""
    e = Evidence(
        prior_logp=torch.tensor([[0.5, 0.3]]).log(),
        answer_logp=torch.tensor([[0.8, 0.1]]).log(),
        closed_book_logp=torch.tensor([0.05]).log(),
    )
    assert marginal(e).item() == pytest.approx(-math.log(0.5 * 0.8 + 0.3 * 0.1 + 0.2 * 0.05), rel=1e-6)
    assert rag_sequence(e).item() == pytest.approx(-math.log(0.625 * 0.8 + 0.375 * 0.1), rel=1e-6)


@pytest.mark.parametrize("k", [4, 7])
def test_the_scores_gradient_is_prior_minus_posterior(k: int) -> None:
    """d marginal/ds_z = p(z|x) − p(z|x,y) for every passage of the corpus, read or not; rb's is the same."""
    system = tiny(b=1)
    for name in ("marginal", "rb"):
        scores = (system.questions @ system.passages.T).detach().requires_grad_()
        ids = scores.topk(k).indices
        e = replace(system.evidence(k), prior_logp=scores.log_softmax(1).gather(1, ids))
        (slope,) = torch.autograd.grad(OBJECTIVES[name](e, options()).sum(), scores)
        read = torch.full_like(scores, float(system.closed.detach().sum())).scatter(1, ids, e.answer_logp.detach())
        posterior = (scores + read).softmax(1)
        torch.testing.assert_close(slope, (scores.softmax(1) - posterior).detach(), atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------ gradients


def score_function(e: Evidence, held: Evidence, o: Options) -> Tensor:
    """`rloo` of the draws that the held evidence gives: rewards and baseline are numbers."""

    def with_tail(of: Evidence) -> tuple[Tensor, Tensor]:
        unit = of.length[:, None] if o.per_token else torch.ones(len(of.length), 1)
        logp = torch.cat([of.prior_logp, log_tail(of.prior_logp)[:, None]], 1)
        return logp, torch.cat([of.answer_logp, of.closed_book_logp[:, None]], 1) / unit

    (logp, read), (known, told) = with_tail(e), with_tail(held)
    z = torch.multinomial(known.float().exp(), o.samples, replacement=True, generator=again(o))
    reward = (told.gather(1, z) - (known + told).logsumexp(1, keepdim=True)).exp()
    others = (reward.sum(1, keepdim=True) - reward) / (o.samples - 1)
    return -((reward - others) * logp.gather(1, z) + reward * read.gather(1, z)).mean(1)


def straight_through(e: Evidence, held: Evidence, o: Options) -> Tensor:
    """`gumbel` of the draws that the held evidence gives: W moves as `soft` does from what was drawn."""
    u = torch.rand(held.prior_logp.shape, generator=again(o), dtype=torch.float64)
    noise = -(-u.log()).log()
    taken = (held.prior_logp.log_softmax(1) + noise).argsort(1, descending=True)[:, : o.samples]

    def soft(of: Evidence) -> Tensor:
        left, total = of.prior_logp.log_softmax(1) + noise, torch.zeros_like(noise)
        for turn in range(o.samples):
            total = total + left.softmax(1)
            left = left.scatter(1, taken[:, turn : turn + 1], -torch.inf)
        return total

    weight = torch.zeros_like(noise).scatter(1, taken, 1.0) + soft(e) - soft(held)
    read = e.answer_logp / e.length[:, None] if o.per_token else e.answer_logp
    return -((weight * read.exp()).sum(1) / o.samples).log()


def again(o: Options) -> torch.Generator:
    """The random numbers that these options begin with."""
    return torch.Generator().manual_seed(o.noise.initial_seed())


SURROGATES: dict[str, Callable[[Evidence, Evidence, Options], Tensor]] = {
    # the same value with the stopped gradients' inputs held fixed: what finite differences must see
    "reader": lambda e, held, o: rag_sequence(replace(e, prior_logp=held.prior_logp), o),
    "emdr2": lambda e, held, o: (
        rag_sequence(replace(e, prior_logp=held.prior_logp), o)
        + rag_sequence(replace(e, answer_logp=held.answer_logp), o)
    ),
    "emdr2_token": lambda e, held, o: (
        (
            OBJECTIVES["rag_token"](replace(e, prior_logp=held.prior_logp), o)
            + OBJECTIVES["rag_token"](replace(e, token_logp=held.token_logp), o)
        )
        / e.length
    ),
    "rb": lambda e, held, o: marginal(e, o),
    "rloo": score_function,
    "gumbel": straight_through,
    **{
        name: lambda e, held, o, name=name: OBJECTIVES[name](replace(e, answer_logp=held.answer_logp), o)
        for name in ("pdist", "lsr", "loop")
    },
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name: str, per_token: bool) -> None:
    """Autograd of the objective against central differences of its value, what it stops and draws held fixed, in
    float64."""
    system = tiny(b=3, n=6)
    inputs = [system.questions, system.passages, system.tokens, system.closed]
    held = changed(system.evidence(4), lambda t: t.detach())
    o = options(per_token=per_token and name != "emdr2_token", samples=2)

    def loss(*values: Tensor) -> Tensor:
        e = Tiny(*values, system.length).evidence(4)
        return SURROGATES.get(name, lambda e, held, o: OBJECTIVES[name](e, o))(e, held, o).sum()

    analytic = torch.autograd.grad(
        OBJECTIVES[name](system.evidence(4), o).sum(), inputs, allow_unused=True, materialize_grads=True
    )
    for at, slope in enumerate(analytic):
        for place in range(0, inputs[at].numel(), 3):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [x.detach().clone() for x in inputs]
                moved[at].view(-1)[place] += step
                ends.append(float(loss(*moved)))
            assert slope.reshape(-1)[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-4)


@pytest.mark.parametrize("name", RETRIEVING)
def test_the_retrievers_gradient_changes_with_the_generator_alone(name: str) -> None:
    """Same scores, other likelihoods, another gradient (DALM's is the same to the bit). `contrastive` sees only which
    passage is best: it changes where that does, and not where all likelihoods rise alike."""
    system, o = tiny(), options(samples=2)
    before = gradients(name, system, 4, o)[0]
    other = replace(system, tokens=system.tokens.detach().flip(1).requires_grad_())
    assert not torch.allclose(before, gradients(name, other, 4, options(samples=2))[0])
    if name == "contrastive":
        sharper = replace(system, tokens=(system.tokens.detach() - 0.01).requires_grad_())
        assert torch.equal(before, gradients(name, sharper, 4)[0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_who_learns_is_who_should(name: str) -> None:
    """Both towers learn from all but `reader`, the generator from all that say so."""
    questions, passages, tokens = (g.abs().max() > 1e-6 for g in gradients(name, tiny(), 4, options(samples=3)))
    assert questions == passages == (name not in READER_ALONE)
    assert tokens == (name not in RETRIEVER_ALONE)


@pytest.mark.parametrize("name", RETRIEVING)
def test_an_answer_of_one_token_teaches_the_retriever(name: str) -> None:
    """HF RAG adds log p(z|x) at the second target position, so there the gradient is exactly zero."""
    system = tiny(b=3, t=1)
    assert all(g.abs().max() > 1e-6 for g in gradients(name, system, 4)[:2])


def explained(seed: int = 0, k: int = 4) -> Tiny:
    """One passage of the K, another for each question, explains the answer; the rest doesn't."""
    system = tiny(b=3, seed=seed, level=4.0)
    ids = system.evidence(k).ids
    rank = torch.arange(3)
    with torch.no_grad():
        system.tokens[torch.arange(3), ids[torch.arange(3), rank]] *= 0.02
    return system


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RETRIEVING)
def test_one_step_helps_the_passage_that_explains_the_answer(name: str, seed: int) -> None:
    """A small step down the mean gradient in the scores raises its p(z|x); stochastic ones on the mean of 64 draws."""
    k = 4
    system = explained(seed, k)
    ids = system.evidence(k).ids
    draws = 64 if name in STOCHASTIC else 1
    o = options(seed, samples=2)  # of the four read, not all
    slopes = [gradients(name, system, k, o)[0] for _ in range(draws)]
    slope = torch.stack(slopes).mean(0)
    moved = system.questions.detach() - 1e-3 * slope / slope.norm().clamp_min(1)  # `gumbel`'s has no bound
    best = ids[torch.arange(3), torch.arange(3)][:, None]

    def share(questions: Tensor) -> Tensor:
        found = (questions @ system.passages.detach().T).gather(1, ids).log_softmax(1)
        return found.gather(1, torch.arange(3)[:, None]).sum()

    if name == "contrastive":  # pushes a question away from the other questions' passages, not from its own others
        chosen = system.passages.detach()[best[:, 0]]
        before, after = ((q @ chosen.T).log_softmax(1).diagonal().sum() for q in (system.questions.detach(), moved))
    else:
        before, after = share(system.questions.detach()), share(moved)
    assert after > before


# ------------------------------------------------------------------------------------------------ invariances


def ordered(e: Evidence, order: Tensor) -> Evidence:
    """The K passages in another order."""
    names = ("prior_logp", "answer_logp", "token_logp", "ids", "passage_rows")
    return replace(e, **{name: getattr(e, name)[:, order] for name in names})


def padded(e: Evidence, passages: int = 2, tokens: int = 2) -> Evidence:
    """More columns for passages that don't exist, and for tokens beyond every answer's end, whatever stands there."""
    b = len(e.prior_logp)
    more = {"prior_logp": -torch.inf, "answer_logp": -torch.inf, "ids": -1}
    wide = {
        name: torch.cat([getattr(e, name), torch.full((b, passages), value).to(getattr(e, name))], 1)
        for name, value in more.items()
    }
    token = torch.cat([e.token_logp, e.token_logp.new_full((b, e.token_logp.shape[1], tokens), -3.0)], 2)
    token = torch.cat([token, token.new_full((b, passages, token.shape[2]), -torch.inf)], 1)
    rows = torch.cat([e.passage_rows, e.passage_rows[:, :1].expand(-1, passages, -1)], 1)
    return replace(e, **wide, token_logp=token, passage_rows=rows)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in ("marginal", "rb", "rloo", "contrastive")])
def test_those_that_renormalise_over_k_need_no_z(name: str) -> None:
    """Scores up to a constant of each question do: the same loss and gradients in scores and reader."""
    results = []
    for shift in (0.0, 5.0):
        system = tiny()
        e = changed(system.evidence(4), lambda t, shift=shift: t + shift, ("prior_logp",))
        loss = OBJECTIVES[name](e, options(samples=2))
        inputs = (system.questions, system.passages, system.tokens)
        slopes = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        results.append((loss.detach(), *slopes))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("name", EXACT)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_passage_order_does_not_matter(name: str, seed: int) -> None:
    """A permutation of the K passages leaves loss and gradients as they are."""
    order, results = torch.randperm(5, generator=torch.Generator().manual_seed(seed)), []
    for put in (lambda e: e, lambda e: ordered(e, order)):
        system = tiny(seed=seed)
        loss = OBJECTIVES[name](put(system.evidence(5)), options())
        inputs = (system.questions, system.passages, system.tokens)
        slopes = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        results.append((loss.detach(), *slopes))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_passage_order_does_not_matter_on_average(name: str) -> None:
    """The mean gradient over 20,000 draws is the same in either order, within four standard errors."""
    order, o, e = torch.tensor([2, 0, 3, 1]), options(samples=2), tiny().evidence(4)
    for here, there in zip(
        drawn_slopes(name, e, 20_000, o), drawn_slopes(name, ordered(e, order), 20_000, o), strict=True
    ):
        back = there[:, order.argsort()]
        assert agree(here, back.mean(0), back.std(0) / 20_000**0.5)


@pytest.mark.parametrize("name", EXACT)
def test_impossible_passages_and_padding_change_nothing(name: str) -> None:
    """Columns of log p = −∞ and tokens beyond the end leave loss and gradients as they are, and no NaN behind."""
    results = []
    for widen in (lambda e: e, padded):
        system = tiny()
        loss = OBJECTIVES[name](widen(system.evidence(4)), options())
        inputs = (system.questions, system.passages, system.tokens)
        results.append(
            (loss.detach(), *torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True))
        )
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_ragged_number_of_passages_is_each_questions_own(name: str) -> None:
    """A question for which two of four were found is as if K were two, gradients finite, beside one with all four."""
    system = tiny(b=2)
    e = system.evidence(4)
    ragged = torch.tensor([[True, True, False, False], [True, True, True, True]])
    cut = replace(
        e,
        prior_logp=e.prior_logp.masked_fill(~ragged, -torch.inf),
        answer_logp=e.answer_logp.masked_fill(~ragged, -torch.inf),
        token_logp=e.token_logp.masked_fill(~ragged[:, :, None], -torch.inf),
        ids=e.ids.masked_fill(~ragged, -1),
    )
    loss = OBJECTIVES[name](cut, options(samples=2))
    slopes = torch.autograd.grad(loss.sum(), (system.questions, system.tokens), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in slopes if g is not None)
    if name not in (*STOCHASTIC, "contrastive"):
        alone = [OBJECTIVES[name](row(e, 0, 2), options()), OBJECTIVES[name](row(e, 1, 4), options())]
        torch.testing.assert_close(loss, torch.cat(alone))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_what_is_missing_is_never_drawn(name: str) -> None:
    """One, or two, of four columns are passages, a question with all four beside: over 20,000 draws the mean gradient
    is that of K = 1 or 2, within four standard errors, and exactly 0 in what is missing."""
    draws, e = 20_000, row(tiny(level=0.7).evidence(4), 0)
    for k in (1, 2):
        ragged = padded(row(e, 0, k), 4 - k, 0)
        prior, answer = (
            torch.cat([getattr(one, part).detach().expand(draws, -1) for one in (ragged, e)]).requires_grad_()
            for part in ("prior_logp", "answer_logp")
        )
        both = Evidence(
            prior_logp=prior,
            answer_logp=answer,
            closed_book_logp=e.closed_book_logp.detach().expand(2 * draws),
            length=e.length.expand(2 * draws),
        )
        slopes = torch.autograd.grad(OBJECTIVES[name](both, options(samples=2)).sum(), (prior, answer))
        for part, slope in enumerate(slopes):
            for mine, alone, real in ((slope[:draws], row(e, 0, k), k), (slope[draws:], e, 4)):
                expected = drawn_slopes(name, alone, draws, options(1, samples=2))[part]
                assert agree(mine[:, :real], expected.mean(0), expected.std(0) / draws**0.5)
                assert not mine[:, real:].any()


def row(e: Evidence, i: int, k: int | None = None) -> Evidence:
    """Question i alone, with its first k passages."""
    values = {field.name: getattr(e, field.name) for field in fields(e)}
    one = {name: value[i : i + 1] for name, value in values.items() if value is not None}
    cut = ("prior_logp", "answer_logp", "token_logp", "ids", "passage_rows")
    return replace(e, **{name: value[:, :k] if name in cut and k else value for name, value in one.items()})


@pytest.mark.parametrize("name", [n for n in EXACT if n != "contrastive"])
def test_a_batch_of_eight_is_eight_batches_of_one(name: str) -> None:
    """Each question's loss is its own, so accumulating 1 × 8 gives the mean of 8 × 1."""
    e = tiny(b=8).evidence(4)
    alone = torch.cat([OBJECTIVES[name](row(e, i), options()) for i in range(8)])
    torch.testing.assert_close(OBJECTIVES[name](e, options()), alone)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_question_without_any_passage_spoils_no_batch(name: str) -> None:
    """Its loss is the closed book's where an objective has one, else 0; the other questions' are theirs."""
    system = tiny(b=3)
    e = system.evidence(4)
    some = torch.tensor([True, False, True])[:, None]
    ids = e.ids.masked_fill(~some, -1)
    none = replace(
        e,
        prior_logp=log_prob_found(system.questions @ system.passages.T, ids),
        answer_logp=e.answer_logp.masked_fill(~some, -torch.inf),
        token_logp=e.token_logp.masked_fill(~some[:, :, None], -torch.inf),
        ids=ids,
    )
    loss = OBJECTIVES[name](none, options(samples=2))
    slopes = torch.autograd.grad(loss.sum(), (system.questions, system.tokens), allow_unused=True)
    assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)
    expected = -e.closed_book_logp[1] if name in ("marginal", "rb", "rloo") else torch.zeros(()).double()
    torch.testing.assert_close(loss[1].detach(), expected.detach())
    if name in EXACT and name != "contrastive":
        torch.testing.assert_close(loss[[0, 2]], OBJECTIVES[name](e, options())[[0, 2]])


def test_a_near_copy_of_the_right_passage_is_no_negative() -> None:
    """Lines 9 to 12 and 8 to 11 of one document share two of four, which isn't more than half; those of another
    document share none, and another reading of a table's lines all."""
    e = tiny(b=2).evidence(1)
    e = replace(e, ids=torch.tensor([[0], [1]]))

    def loss(*second: int, third: int = 0) -> Tensor:
        spans = torch.tensor([[[0, 9, 12, 1]], [[*second, third]]])
        return OBJECTIVES["contrastive"](replace(e, spans=spans), options())

    assert (loss(0, 9, 11) == 0).all()
    assert (loss(0, 9, 12, third=2) == 0).all()
    plain = OBJECTIVES["contrastive"](e, options())
    assert (plain > 0).all()
    for apart in (loss(0, 8, 11), loss(1, 9, 12)):
        assert torch.equal(apart, plain)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_probabilities_stay_finite(name: str, kind: torch.dtype) -> None:
    """−1e4 for every token, for all but one, and a prior that is all on one passage: loss and gradients are finite."""
    for seed, spared in ((0, False), (1, True)):
        system = tiny(seed=seed)
        with torch.no_grad():
            mask = torch.ones(7).double() if not spared else (torch.arange(7) != 2).double()
            system.tokens.add_(-1e4 * mask[None, :, None] * (system.tokens < 0))
            system.closed.add_(-1e4 * (system.closed < 0))
            system.questions.mul_(1 + 30 * spared)
        loss = OBJECTIVES[name](system.evidence(4, kind), options(samples=2))
        inputs = (system.questions, system.passages, system.tokens)
        slopes = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(g).all() for g in slopes)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_draw_that_misses_the_only_likely_passage_stays_finite(name: str, seed: int) -> None:
    """Beside it the others' likelihood is e^−1e4, so that a ratio to theirs would overflow."""
    prior = torch.tensor([[0.4, 0.3, 0.2]], dtype=torch.float64).log().requires_grad_()
    read = torch.tensor([[-1e4, -1e4, -1.0]], dtype=torch.float64, requires_grad=True)
    e = Evidence(prior_logp=prior, answer_logp=read, closed_book_logp=torch.tensor([-1e4], dtype=torch.float64))
    loss = OBJECTIVES[name](e, options(seed=seed, samples=1))
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(loss.sum(), (prior, read)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_is_within_its_resolution(name: str) -> None:
    """Evidence rounded to eight bits moves a loss by a few hundredths, and its gradient by no other direction; of those
    that draw, the mean of 300 draws with the same random numbers, for a passage that was nearly drawn may be."""
    results = []
    for kind in (torch.float64, torch.bfloat16):
        system, o, draws = tiny(level=1.0), options(samples=2), 300 if name in STOCHASTIC else 1
        e = system.evidence(4, kind)
        loss = torch.stack([OBJECTIVES[name](e, o) for _ in range(draws)]).mean(0, dtype=torch.float64)
        inputs = (system.tokens,) if name in READER_ALONE else (system.questions,)
        results.append((loss, torch.autograd.grad(loss.sum(), inputs)[0]))
    (loss, slope), (rough_loss, rough_slope) = results
    torch.testing.assert_close(loss, rough_loss, atol=0.05, rtol=0.02)
    assert torch.cosine_similarity(slope.flatten(), rough_slope.flatten(), dim=0) > 0.99
