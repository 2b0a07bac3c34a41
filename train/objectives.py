"""Objectives: pure functions from what a step has found and read (`Evidence`) to a loss per question.

Notation: z ∈ K are the passages found; p(z|x) has its Z over the whole corpus and p_K(z) = p(z|x)/P_K is renormalised
over the K found, P_K = Σ_{z∈K} p(z|x). sg[·] stops the gradient. T is the number of answer tokens, the end token
included. Passages that don't exist have log p(z|x) = −∞; a question that has none has nothing to learn from those
that renormalise over K, and loss 0.

Every objective is per question, so a batch's loss is the mean over its questions and doesn't depend on how the batch is
cut up; `contrastive` alone compares the questions of a batch, over all ranks (and `FitConfig.negatives`, drawn for a
batch, move every Z in it). Length is normalised only where an objective's text says so, or where `Options.per_token`
asks for it. Some teach the retriever alone (`pdist`, `lsr`, `loop`, `contrastive`); with `reader` beside them the
generator learns too: {"reader": 1, "pdist": 1} is Atlas' loss where the K are read together (`Reading`). Those that
compare passages (`COMPARING`) have each of them read alone as well then, without gradient.

Sources, named by author and year below, with the section or equation that has the formula where it is one of theirs as
it stands (of code: the function):
    Cappé et al. 2005, Inference in Hidden Markov Models
    Dempster et al. 1977, Maximum Likelihood from Incomplete Data via the EM Algorithm
    Guu et al. 2020, REALM: Retrieval-Augmented Language Model Pre-Training
    Izacard et al. 2022, Atlas: Few-shot Learning with Retrieval Augmented Language Models
    Jang et al. 2017, Categorical Reparameterization with Gumbel-Softmax
    Karpukhin et al. 2020, Dense Passage Retrieval for Open-Domain Question Answering
    Kool et al. 2019a, Buy 4 REINFORCE Samples, Get a Baseline for Free!
    Kool et al. 2019b, Stochastic Beams and Where to Find Them: The Gumbel-Top-k Trick
    Lewis et al. 2020, Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks
    Sachan et al. 2021, End-to-End Training of Multi-Document Reader and Retriever for Open-Domain Question Answering
    Shi et al. 2023, REPLUG: Retrieval-Augmented Black-Box Language Models
    Williams 1992, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning
    Zamani & Bendersky 2024, Stochastic RAG: End-to-End Retrieval-Augmented Generation through Expected Utility
        Maximization
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2erag.joint import Evidence
from e2erag.retriever import log_tail, repeats
from e2erag.retriever.ranks import of_all, rank


@dataclass(frozen=True)
class Options:
    """What some objectives can be asked for.

    Attributes:
        temperature: of the targets of `pdist`, `lsr` and `loop`, in nats per answer token. Atlas' default of .01 makes
            a target one-hot; the logged target entropy tells.
        samples: passages drawn by `rloo` and `gumbel`; for `gumbel` fewer than K.
        per_token: log p(y|x,·) is divided by T before anything else, and `rag_token`'s sum too; `emdr2_token` and the
            targets of `pdist`, `lsr` and `loop` are per token anyway. This changes posteriors, not only the scale
            (JSA-RAG does so): long answers count less.
        noise: random numbers of `rloo` and `gumbel`; None draws from torch's global generator.

    Raises:
        ValueError: a temperature that isn't positive, or no sample.
    """

    temperature: float = 0.1
    samples: int = 4
    per_token: bool = False
    noise: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a target's temperature must be positive, got {self.temperature}: .1 nats is the default")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}: 4 is the default")


PLAIN = Options()
Objective = Callable[[Evidence, Options], Float[Tensor, " questions"]]


# ------------------------------------------------------------------------------------------------ likelihoods


def marginal(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log[ Σ_{z∈K} p(z|x)·p(y|x,z) + (1 − P_K)·p(y|x,∅) ].

    The unread passages are taken to explain the answer as well as no passage does; where they do, the gradient is the
    full corpus' own:  d/ds_z = p(z|x) − posterior(z).  Source: REALM's sum over documents and its null document (Guu et
    al. 2020, §3.1 and §3.4), given the mass of all that wasn't found. Known trouble: the closed book can misjudge the
    unread passages, and where the gold one isn't among the K nothing read points to it: docs/gradient_audit.md.
    """
    return -joint_logp(e, o).logsumexp(1)


def rag_sequence(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log Σ_{z∈K} p_K(z)·p(y|x,z)  (Lewis et al. 2020, §2.1, RAG-Sequence; renormalised over K as in transformers'
    `RagSequenceForGeneration.get_nll`).

    Known trouble: the gradient is loud and wrong where the gold passage isn't among the K, and biased where it is,
    because the mass outside K is taken to be zero. The closed book isn't used.
    """
    return -(renormalised(e) + _read(e, o)).logsumexp(1)


def rag_token(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−Σ_t log Σ_{z∈K} p_K(z)·p(y_t|x,z,y_<t)  (Lewis et al. 2020, §2.1, RAG-Token; REALM's code, `model_fn`, takes
    the mean over its masked tokens).

    Each token may come from another passage. Known trouble: as `rag_sequence`; and a passage isn't held to what it
    said before, so the signal for it is weaker. A one-token answer is `rag_sequence`.
    """
    total = _token_mixture(e, renormalised(e), _tokens(e))
    return total / _length(e) if o.per_token else total


def reader(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log Σ_{z∈K} sg[p_K(z)]·p(y|x,z): `rag_sequence` as the reader's loss alone. Where passages are read together it
    is EMDR²'s reader term (Sachan et al. 2021, §2.3) and Atlas' (Izacard et al. 2022, §2), which read all K at once.
    Known trouble: the retriever learns nothing, where passages are read each alone; read together, each has its
    log p_K(z) in attention, and there it does.
    """
    return -(renormalised(e).detach() + _read(e, o)).logsumexp(1)


def emdr2(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log p(y|x,K) − log Σ_{z∈K} p_K(z)·sg[p(y|x,z)]  (Sachan et al. 2021, §2.3).

    Where passages are read together this is the paper's, whose first term is a reader of all K. Read one at a time, it
    is `reader`: then the gradient is `rag_sequence`'s and the value twice its. Known trouble: as there.
    """
    return reader(e, o) - (renormalised(e) + _alone(e, o).detach()).logsumexp(1)


def emdr2_token(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """(1/T)·[ −Σ_t log Σ_z sg[p_K(z)]·p(y_t|·) − Σ_t log Σ_z p_K(z)·sg[p(y_t|·)] ], p(y_t|·) = p(y_t|x,z,y_<t).

    The second term is what EMDR²'s code has in place of the paper's sum over sequences (`train_e2eqa.py`,
    `get_loss_and_retriever_utility`); the first, in its code the cross-entropy of a reader of all K, is that where
    passages are read together. The code divides by a batch's tokens, so that long answers count more; T is a
    question's own here. Known trouble: it is `rag_token`, so not the posterior over passages that the paper's text
    speaks of.
    """
    prior = renormalised(e)
    total = _token_mixture(e, prior.detach(), _tokens(e)) + _token_mixture(e, prior, _alone_tokens(e).detach())
    return total / _length(e)


# ------------------------------------------------------------------------------------------------ distillation


def pdist(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """KL( softmax_z[ log p(y|x,z) / (T·temperature) ] ‖ p_K )  (Izacard et al. 2022, §2.2, perplexity
    distillation; in its code T is `perplexity_score`'s and the temperature `kldivloss`').

    Summed over passages (`batchmean`), so it doesn't shrink with K as Atlas' element mean does. Known trouble: cold
    targets are one-hot on whatever is best among the K, also where none of them is any good. Teaches the retriever
    alone.
    """
    return _divergence(pdist_target(e, o), renormalised(e))


def lsr(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """KL( p_K ‖ softmax_z[ log p(y|x,z) / (T·temperature) ] )  (Shi et al. 2023, §4, whose target is
    softmax_z[ p(y|x,z) / temperature ]).

    `pdist` the other way round, the direction of REPLUG's text (its code has pdist's): it drops passages rather than
    covering them. On log-likelihoods, since probabilities of whole answers underflow to a uniform target. Known
    trouble: no gradient for a passage whose p_K is nearly 0, however well it explains. Teaches the retriever alone.
    """
    return _divergence(renormalised(e), pdist_target(e, o))


def loop(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """KL( softmax_z[ −log p(y|x,K∖z) / (T·temperature) ] ‖ p_K )  (Izacard et al. 2022, §2.2, leave one
    out; `loop_score` in its code).

    p(y|x,K∖z) is the plain mean of p(y|x,z') over the other passages found; Atlas leaves z out of a fusion reader,
    which doesn't know p(z|x) either. Known trouble: two passages that explain the answer equally cover for each other
    and neither is missed; with one passage there is nothing to learn. Teaches the retriever alone.
    """
    return _divergence(loop_target(e, o), renormalised(e))


def pdist_target(e: Evidence, o: Options = PLAIN) -> Float[Tensor, "questions k"]:
    """Log target of `pdist` and `lsr`, without gradient."""
    return _over(_found(e), _alone(e).detach() / _length(e)[:, None] / o.temperature)


def loop_target(e: Evidence, o: Options = PLAIN) -> Float[Tensor, "questions k"]:
    """Log target of `loop`, without gradient."""
    found, k = _found(e), e.prior_logp.shape[1]
    others = found[:, None, :] & ~torch.eye(k, dtype=torch.bool, device=found.device)
    count = others.sum(2)
    rest = _alone(e).detach()[:, None, :].expand(-1, k, -1).masked_fill(~others, -torch.inf).logsumexp(2)
    rest = torch.where(count > 0, rest - count.clamp_min(1).log(), 0.0)
    return _over(found, -rest / _length(e)[:, None] / o.temperature)


TARGETS: dict[str, Objective] = {"pdist": pdist_target, "lsr": pdist_target, "loop": loop_target}
"""Of those that have one: log target, per passage."""


# ------------------------------------------------------------------------------------------------ samples


def gumbel(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log (1/m)·Σ_z W_z·p(y|x,z),  W = hard + soft − sg[soft]: straight-through Gumbel top-m, m = `samples`.

    hard marks the m passages drawn from p_K without replacement (the largest log p_K + Gumbel noise); soft sums m
    rows, softmax of the noisy scores over those not yet taken (Gumbel top-k: Kool et al. 2019b; straight through: Jang
    et al. 2017, §2.2; both for retrieval: Zamani & Bendersky 2024, §2, whose objective is another one, the expected
    utility of what is generated from a drawn list read together; CLaRa's `differentiable_topk` has the same without
    noise).
    Known trouble: with m ≥ K all are taken, and p_K shows in slopes alone (training refuses it); biased; dL/dW_z of a
    passage that wasn't drawn is its likelihood over the drawn ones', which has no bound (held at e^30 here): clip
    gradients.
    """
    prior, read, found = renormalised(e), _read(e, o), _found(e)
    uniform = torch.rand(prior.shape, generator=o.noise, dtype=torch.float64).clamp_min(1e-300)
    noisy = prior - torch.log(-torch.log(uniform)).to(prior)
    rank = noisy.argsort(1, descending=True).argsort(1)[:, None, :]
    count = found.sum(1, keepdim=True)
    turn = torch.arange(min(o.samples, prior.shape[1]), device=prior.device)
    left = noisy[:, None, :].masked_fill(rank < torch.minimum(turn, count - 1)[:, :, None], -torch.inf)
    soft = (left.softmax(2) * (turn < count)[:, :, None]).sum(1)
    hard = (rank[:, 0] < len(turn)) & found
    some = found.any(1)
    base = torch.where(some, read.masked_fill(~hard, -torch.inf).logsumexp(1), 0.0).detach()
    ratio = (read - base[:, None]).clamp_max(30.0).exp()
    mixture = ((hard + soft - soft.detach()) * ratio).sum(1)
    return -(base + torch.where(some, mixture, 1.0).log() - hard.sum(1).clamp_min(1).log())


def rloo(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """Score function (Williams 1992) with a leave-one-out baseline (Kool et al. 2019a), z_1..z_S drawn from p(z|x):

        −(1/S)·Σ_s ( sg[r_s − mean_{s'≠s} r_s']·log p(z_s|x) + sg[r_s]·log p(y|x,z_s) ),   r_s = p(y|x,z_s) / p(y|x)

    S = `samples`; one has no baseline. The tail is one of the outcomes, read as closed book, so the gradient's
    expectation is `marginal`'s; the value reported is `marginal`'s too. Known trouble: variance. A draw finds the
    passage that explains with probability p(z|x), so S draws find it for about one question in 1/(S·p(z|x)).
    """
    logp = torch.cat([e.prior_logp, log_tail(e.prior_logp)[:, None]], 1)
    read = torch.cat([_read(e, o), _closed(e, o)[:, None]], 1)
    total = joint_logp(e, o).logsumexp(1, keepdim=True).detach()
    share = logp.detach().float().exp().cpu()
    drawn = torch.multinomial(share, o.samples, replacement=True, generator=o.noise).to(logp.device)
    chosen, answer = logp.gather(1, drawn), read.gather(1, drawn)
    reward = (answer.detach() - total).exp()
    baseline = (reward.sum(1, keepdim=True) - reward) / max(o.samples - 1, 1)
    surrogate = -((reward - baseline) * chosen + reward * answer).mean(1)
    return surrogate + (-total[:, 0] - surrogate).detach()


def rb(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−Σ_z sg[p(z|x,y)]·log p(z|x)·p(y|x,z), over the K found and the tail: the M step of EM (Dempster et al. 1977).

    `rloo` with its sample replaced by the posterior (Rao–Blackwell), which costs nothing since all K are read anyway.
    By Fisher's identity (Cappé et al. 2005, §10.1) the gradient is `marginal`'s; the value is larger by the
    posterior's entropy. Known trouble: none beside `marginal`'s, so it is here to show what sampling costs.
    """
    joint = joint_logp(e, o)
    posterior = joint.softmax(1).detach()
    return -(posterior * torch.where(posterior > 0, joint, 0.0)).sum(1)


# ------------------------------------------------------------------------------------------------ in the batch


def contrastive(e: Evidence, o: Options = PLAIN) -> Float[Tensor, " questions"]:
    """−log exp(s(x_i, z_i)) / Σ_j exp(s(x_i, z_j)): one passage z_j per question of the batch, of all ranks (Karpukhin
    et al. 2020, DPR, eq. 2).

    s is ⟨q, d⟩/τ + α·log π, without β·BM25, which learns nothing from this. z_i is the best by the posterior of the
    passages read; of those on the gold page where that is known (`Evidence.gold`; training reads one of them also
    where the retriever found none, `RAG.terms`). Passages that are also z_i, or share more than half of their lines
    with it (`Evidence.spans`), are no negatives. Every rank must have as many questions. Known trouble: the
    generator's logits only choose z_i, its gradient never arrives (as in DALM); another question's passage that
    answers this one too, as one of the same page may, is a negative; a question of whose gold page nothing is indexed
    is left out; a batch of one question has no negatives, so loss 0. Teaches the retriever alone.
    """
    if e.question_rows is None or e.passage_rows is None or e.ids is None:
        raise ValueError("contrastive compares vectors: Evidence needs question_rows, passage_rows and ids")
    allowed = _found(e) if e.gold is None else _found(e) & e.gold
    best = (e.prior_logp + _alone(e, o)).masked_fill(~allowed, -torch.inf).argmax(1)
    every = torch.arange(len(best), device=best.device)
    number = torch.where(allowed.any(1), e.ids.to(best.device)[every, best], -1)
    rows, numbers = of_all(e.passage_rows[every, best]), of_all(number)
    own = every + rank() * len(best)
    scores = e.question_rows @ rows.T
    other = torch.arange(len(rows), device=best.device) != own[:, None]
    same = numbers == number[:, None]
    if e.spans is not None:
        own_span = e.spans.to(best.device)[every, best] * torch.tensor([1, 1, 1, 0], device=best.device)  # any reading
        same = same | repeats(own_span[:, None], of_all(own_span)[None], 0.5)
    unfit = other & (same | (numbers < 0))
    loss = scores.masked_fill(unfit, -torch.inf).logsumexp(1) - scores.gather(1, own[:, None])[:, 0]
    return torch.where(number >= 0, loss, 0.0)


# ------------------------------------------------------------------------------------------------ parts


def joint_logp(e: Evidence, o: Options = PLAIN) -> Float[Tensor, "questions k1"]:
    """log p(z|x)·p(y|x,z) of the K found, and in the last column the tail's log (1 − P_K)·p(y|x,∅)."""
    return torch.cat([e.prior_logp + _read(e, o), (log_tail(e.prior_logp) + _closed(e, o))[:, None]], 1)


def _found(e: Evidence) -> Bool[Tensor, "questions k"]:
    return e.prior_logp > -torch.inf


def renormalised(e: Evidence) -> Float[Tensor, "questions k"]:
    """log p_K; even over no passage."""
    return _over(_found(e), e.prior_logp)


def _over(found: Bool[Tensor, "questions k"], score: Float[Tensor, "questions k"]) -> Float[Tensor, "questions k"]:
    """Log softmax of the scores of what was found; even, without gradient, where nothing was."""
    some = found.any(1, keepdim=True)
    return torch.where(some, score.masked_fill(~found, -torch.inf), 0.0).log_softmax(1)


def _answer(e: Evidence) -> Float[Tensor, "questions k"]:
    """log p(y|x,z), 0 where there is no passage."""
    return torch.where(_found(e), e.answer_logp, 0.0)


def _length(e: Evidence) -> Int[Tensor, " questions"]:
    if e.length is None:
        raise ValueError("a mean over tokens was asked for: Evidence needs length, the tokens of each answer")
    return e.length


def _read(e: Evidence, o: Options) -> Float[Tensor, "questions k"]:
    return _answer(e) / _length(e)[:, None] if o.per_token else _answer(e)


def _alone(e: Evidence, o: Options = PLAIN) -> Float[Tensor, "questions k"]:
    """log p(y|x,z) of each passage read by itself."""
    return _read(e if e.alone_logp is None else replace(e, answer_logp=e.alone_logp.sum(2)), o)


def _alone_tokens(e: Evidence) -> Float[Tensor, "questions k tokens"]:
    return _tokens(e if e.alone_logp is None else replace(e, token_logp=e.alone_logp))


def _closed(e: Evidence, o: Options) -> Float[Tensor, " questions"]:
    return e.closed_book_logp / _length(e) if o.per_token else e.closed_book_logp


def _tokens(e: Evidence) -> Float[Tensor, "questions k tokens"]:
    if e.token_logp is None:
        raise ValueError("a token objective needs Evidence.token_logp: log p(y_t|x,z,y_<t) of every token and passage")
    return torch.where(_found(e)[:, :, None], e.token_logp, 0.0)


def _token_mixture(
    e: Evidence, prior: Float[Tensor, "questions k"], tokens: Float[Tensor, "questions k tokens"]
) -> Float[Tensor, " questions"]:
    """−Σ_t log Σ_z p(z)·p(y_t|x,z,y_<t)."""
    mixture = (prior[:, :, None] + tokens).logsumexp(1)
    real = torch.arange(mixture.shape[1], device=mixture.device) < _length(e)[:, None]
    return -mixture.masked_fill(~real, 0.0).sum(1)


def _divergence(p: Float[Tensor, "questions k"], q: Float[Tensor, "questions k"]) -> Float[Tensor, " questions"]:
    """KL(p ‖ q) of log-probabilities, summed over passages."""
    return (p.exp() * (p - q).masked_fill(p == -torch.inf, 0.0)).sum(1)


OBJECTIVES: dict[str, Objective] = {
    f.__name__: f
    for f in (
        marginal, rag_sequence, rag_token, reader, emdr2, emdr2_token, pdist, lsr, loop, gumbel, rloo, rb, contrastive,
    )
}  # fmt: skip
"""By the name that a configuration uses."""
RETRIEVER_ALONE = frozenset(("pdist", "lsr", "loop", "contrastive"))
"""Those that teach the reader nothing."""
_WITH_TAIL, _FOUND = frozenset(("marginal", "rb")), frozenset(("rag_sequence", "reader", "emdr2"))
"""Those whose slope in log p(y|x,z) is a passage's share of p(z|x)·p(y|x,z): among K and tail, or among the K."""
_CLOSED_BOOK = _WITH_TAIL | {"rloo"}
"""Those that learn from reading no passage; all others but `contrastive` compare the K with each other alone."""
COMPARING = frozenset(("emdr2", "emdr2_token")) | RETRIEVER_ALONE
"""Those that compare passages by what each says alone."""
TOGETHER = tuple(name for name in OBJECTIVES if name not in ("gumbel", "rloo"))
"""Those that can train where passages are read together: which don't draw among likelihoods that are all the same."""


def untaught(names: Iterable[str], read: int = 2, together: bool = False) -> tuple[str, ...]:
    """The stages that none of these objectives teaches.

    Args:
        read: passages per question.
        together: whether they are read at once (`Reading`), with p_K in attention."""
    given = set(names)
    alone = given == {"reader"} and not together
    single = read == 1 and not given & (_CLOSED_BOOK | {"contrastive"})
    return ("generator",) * (given <= RETRIEVER_ALONE) + ("retriever",) * (alone or single)


def negligible(names: Iterable[str], share: float, options: Options = PLAIN) -> tuple[float, bool]:
    """`negligible` and `tail` of a `Step` with which the reader learns from these as from every passage read.

    0 where a passage's slope isn't its share: of a single token it can be all of one that has next to none of the
    answer, samples follow p(z|x) alone, and `per_token` flattens shares. 1 where none of these teaches the reader."""
    teaching = set(names) - RETRIEVER_ALONE
    if not teaching:
        return 1.0, False
    tail = bool(teaching & _CLOSED_BOOK)
    return share if not options.per_token and teaching <= (_WITH_TAIL if tail else _FOUND) else 0.0, tail


def weights_of(named: Any) -> dict[str, float]:
    """A name, or names with weights, checked.

    Raises:
        ValueError: neither; a name that isn't in `OBJECTIVES`, answered with the nearest one; a weight that isn't a
            positive number.
    """
    weights = {named: 1.0} if isinstance(named, str) else named
    try:
        weights = {name: float(weight) for name, weight in weights.items()}
    except (AttributeError, TypeError, ValueError):
        example = '{"marginal": 1, "pdist": 0.5}'
        raise ValueError(f"an objective is a name, or names with weights ({example}), got {named!r}") from None
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            near = get_close_matches(str(name), OBJECTIVES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OBJECTIVES)}"
            raise ValueError(f"there is no objective {name!r}: {hint}")
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"an objective's weight must be positive, got {weight} for {name}: leave it out instead")
    if not weights:
        raise ValueError(f"objective names none: take one or several of {', '.join(OBJECTIVES)}")
    return weights


def weighted(
    named: str | Mapping[str, float | int], e: Evidence, o: Options = PLAIN
) -> dict[str, Float[Tensor, " questions"]]:
    """Each objective's loss per question times its weight; their sum is the whole loss."""
    return {name: weight * OBJECTIVES[name](e, o) for name, weight in weights_of(named).items()}
