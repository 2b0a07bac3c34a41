"""Objectives against sums written out by hand, on a tiny corpus in float64: every claim for every name there is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2erag.retriever import log_tail
from e2erag.train import OBJECTIVES, Evidence, Options, marginal, rag_sequence
from e2erag.train.objectives import TARGETS, weighted, weights_of

STOCHASTIC = ("gumbel", "rloo")
RETRIEVER_ALONE = ("pdist", "lsr", "loop", "contrastive")
READER_ALONE = ("reader",)
RETRIEVING = [name for name in OBJECTIVES if name not in READER_ALONE]
EXACT = [name for name in OBJECTIVES if name not in STOCHASTIC]


@dataclass
class Tiny:
    """Questions and passages as vectors, log p of each token of each answer after each passage and after none."""

    questions: Tensor  # b d
    passages: Tensor  # n d
    tokens: Tensor  # b n t
    closed: Tensor  # b t
    length: Tensor  # b

    def evidence(self, k: int, dtype: torch.dtype = torch.float64) -> Evidence:
        """The K best of all passages, Z over all."""
        scores = self.questions @ self.passages.T
        ids = scores.detach().topk(k).indices
        tokens = self.tokens.gather(1, ids[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        every = Evidence(
            prior_logp=scores.log_softmax(1).gather(1, ids),
            answer_logp=tokens.sum(2),
            closed_book_logp=self.closed.sum(1),
            token_logp=tokens,
            length=self.length,
            ids=ids,
            question_rows=self.questions,
            passage_rows=self.passages[ids],
        )
        return changed(every, lambda t: t.to(dtype))


def tiny(b: int = 3, n: int = 7, t: int = 4, seed: int = 0, level: float = 2.0) -> Tiny:
    """Random, with gradient; answers of 1 … t tokens, each token about `level` nats."""
    g = torch.Generator().manual_seed(seed)
    length = torch.arange(b) % t + 1
    real = (torch.arange(t) < length[:, None]).double()
    made = [torch.randn(b, 3, generator=g).double(), torch.randn(n, 3, generator=g).double()]
    tokens = -2 * level * torch.rand(b, n, t, generator=g).double() * real[:, None]
    closed = -2 * level * torch.rand(b, t, generator=g).double() * real
    return Tiny(*(x.requires_grad_() for x in (*made, tokens, closed)), length)


def changed(e: Evidence, how: Callable[[Tensor], Tensor], only: tuple[str, ...] | None = None) -> Evidence:
    """Its float tensors (or the named ones) put through a function."""
    values = {field.name: getattr(e, field.name) for field in fields(e)}
    chosen = {
        n: v for n, v in values.items() if v is not None and (only is None or n in only) and v.is_floating_point()
    }
    return replace(e, **{name: how(value) for name, value in chosen.items()})


def options(seed: int = 0, **changes: object) -> Options:
    return Options(**{"temperature": 0.5, "noise": torch.Generator().manual_seed(seed), **changes})


def gradients(name: str, system: Tiny, k: int, o: Options | None = None) -> list[Tensor]:
    """Of the summed loss in questions, passages and tokens; zero where nothing arrives."""
    loss = OBJECTIVES[name](system.evidence(k), o or options()).sum()
    inputs = (system.questions, system.passages, system.tokens)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


# ------------------------------------------------------------------------------------------------ brute force


def by_hand(name: str, system: Tiny, i: int, k: int, o: Options) -> float:
    """The loss of question i, with loops and probabilities rather than tensors and logarithms."""
    e = system.evidence(k)
    t = int(system.length[i])
    p = [float(x) for x in e.prior_logp[i].detach().exp()]
    read = [float(x) for x in e.answer_logp[i].detach().exp()]
    token = e.token_logp[i, :, :t].exp().tolist()
    closed = float(e.closed_book_logp[i].detach().exp())
    share = [x / sum(p) for x in p]
    whole = sum(a * b for a, b in zip(p, read, strict=True)) + (1 - sum(p)) * closed
    mixture = sum(a * b for a, b in zip(share, read, strict=True))
    per_token = -sum(math.log(sum(a * b[s] for a, b in zip(share, token, strict=True))) for s in range(t))

    def target(logp: list[float]) -> list[float]:
        powers = [math.exp(x / t / o.temperature) for x in logp]
        return [x / sum(powers) for x in powers]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    likely = target([math.log(x) for x in read])
    rest = target([-math.log(sum(read[:j] + read[j + 1 :]) / (k - 1)) for j in range(k)])
    if name == "rb":
        terms = [a * b for a, b in zip(p, read, strict=True)] + [(1 - sum(p)) * closed]
        return -sum(x / whole * math.log(x) for x in terms if x > 0)
    if name == "contrastive":
        best = [int((e.prior_logp[j] + e.answer_logp[j]).argmax()) for j in range(len(system.length))]
        number = [int(e.ids[j, best[j]]) for j in range(len(best))]
        s = [float(system.questions[i].detach() @ system.passages[z].detach()) for z in number]
        same = [z for j, z in enumerate(s) if j == i or number[j] != number[i]]
        return math.log(sum(math.exp(x) for x in same)) - s[i]
    return {
        "marginal": -math.log(whole),
        "rag_sequence": -math.log(mixture),
        "reader": -math.log(mixture),
        "rag_token": per_token,
        "emdr2": -2 * math.log(mixture),
        "emdr2_token": 2 * per_token / t,
        "pdist": kl(likely, share),
        "lsr": kl(share, likely),
        "loop": kl(rest, share),
        "rloo": -math.log(whole),
    }[name]


@pytest.mark.parametrize("k", [4, 7])
@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "gumbel"])
def test_the_loss_is_the_formula_written_out(name: str, k: int) -> None:
    """Three questions, seven passages, answers of one to three tokens: K = 7 leaves no tail."""
    system = tiny()
    loss = OBJECTIVES[name](system.evidence(k), options())
    assert loss.tolist() == pytest.approx([by_hand(name, system, i, k, options()) for i in range(3)], abs=1e-9)


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
    **{
        name: lambda e, held, o, name=name: OBJECTIVES[name](replace(e, answer_logp=held.answer_logp), o)
        for name in ("pdist", "lsr", "loop")
    },
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_gradients_equal_finite_differences(name: str, per_token: bool) -> None:
    """Autograd of the objective against central differences of its value, what it stops held fixed, in float64."""
    system = tiny(b=3, n=6)
    inputs = [system.questions, system.passages, system.tokens, system.closed]
    held = changed(system.evidence(4), lambda t: t.detach())
    o = options(per_token=per_token and name != "emdr2_token")

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
    system = tiny()
    before = gradients(name, system, 4)[0]
    other = replace(system, tokens=system.tokens.detach().flip(1).requires_grad_())
    assert not torch.allclose(before, gradients(name, other, 4)[0])
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
    o = options(seed)
    slopes = [gradients(name, system, k, o)[0] for _ in range(draws)]
    moved = system.questions.detach() - 1e-3 * torch.stack(slopes).mean(0)
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
    """More columns for passages that don't exist, and for tokens beyond every answer's end."""
    b = len(e.prior_logp)
    more = {"prior_logp": -torch.inf, "answer_logp": -torch.inf, "ids": -1}
    wide = {
        name: torch.cat([getattr(e, name), torch.full((b, passages), value).to(getattr(e, name))], 1)
        for name, value in more.items()
    }
    token = torch.cat([e.token_logp, e.token_logp.new_zeros(b, e.token_logp.shape[1], tokens)], 2)
    token = torch.cat([token, token.new_full((b, passages, token.shape[2]), -torch.inf)], 1)
    rows = torch.cat([e.passage_rows, e.passage_rows[:, :1].expand(-1, passages, -1)], 1)
    return replace(e, **wide, token_logp=token, passage_rows=rows)


@pytest.mark.parametrize("name", EXACT)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_passage_order_does_not_matter(name: str, seed: int) -> None:
    """A permutation of the K passages leaves the loss as it is."""
    e = tiny(seed=seed).evidence(5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(OBJECTIVES[name](e, options()), OBJECTIVES[name](ordered(e, order), options()))


def drawn_slopes(name: str, e: Evidence, draws: int, o: Options) -> tuple[Tensor, Tensor]:
    """Gradient in log p(z|x) and log p(y|x,z) of question 0, a row per draw."""
    prior, answer = (x[:1].detach().expand(draws, -1).clone().requires_grad_() for x in (e.prior_logp, e.answer_logp))
    closed, length = e.closed_book_logp[:1].detach().expand(draws), e.length[:1].expand(draws)
    many = Evidence(prior_logp=prior, answer_logp=answer, closed_book_logp=closed, length=length)
    return torch.autograd.grad(OBJECTIVES[name](many, o).sum(), (prior, answer))


def agree(drawn: Tensor, expected: Tensor, error: Tensor | float = 0.0) -> bool:
    """Whether a mean over draws is what is expected, within four standard errors."""
    spread = (drawn.var(0) / len(drawn) + error**2) ** 0.5
    return bool(((drawn.mean(0) - expected).abs() < 4 * spread + 1e-9).all())


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
    loss = OBJECTIVES[name](cut, options())
    slopes = torch.autograd.grad(loss.sum(), (system.questions, system.tokens), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in slopes if g is not None)
    if name not in (*STOCHASTIC, "contrastive"):
        alone = [OBJECTIVES[name](row(e, 0, 2), options()), OBJECTIVES[name](row(e, 1, 4), options())]
        torch.testing.assert_close(loss, torch.cat(alone))


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
        loss = OBJECTIVES[name](system.evidence(4, kind), options())
        inputs = (system.questions, system.passages, system.tokens)
        slopes = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(g).all() for g in slopes)


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16_is_within_its_resolution(name: str) -> None:
    """Evidence rounded to eight bits moves a loss by a few hundredths, and its gradient by no other direction."""
    results = []
    for kind in (torch.float64, torch.bfloat16):
        system = tiny(level=1.0)
        loss = OBJECTIVES[name](system.evidence(4, kind), options())
        inputs = (system.tokens,) if name in READER_ALONE else (system.questions,)
        results.append((loss.double(), torch.autograd.grad(loss.sum(), inputs)[0]))
    (loss, slope), (rough_loss, rough_slope) = results
    torch.testing.assert_close(loss, rough_loss, atol=0.05, rtol=0.02)
    assert torch.cosine_similarity(slope.flatten(), rough_slope.flatten(), dim=0) > 0.99


# ------------------------------------------------------------------------------------------------ samples


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


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_generator_makes_draws_repeatable(name: str) -> None:
    """The same seed, the same gradient; another seed, another."""
    a, b, c = (gradients(name, tiny(), 4, options(seed, samples=2))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# ------------------------------------------------------------------------------------------------ the rest


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
