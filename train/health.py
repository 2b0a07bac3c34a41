"""What shows that training is healthy, or that it collapses or starves: figures of one step."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from e2erag.citation import stands_in
from e2erag.extract import Extractor
from e2erag.joint import Terms
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import log_tail
from e2erag.train.objectives import TARGETS, Options, joint_logp, renormalised

FIGURES = {
    "loss": "the objective, nats per question",
    "answer_found": "questions whose answer stands in the K found",
    "utility": "log p(y|x) − log p(y|x,∅), nats: what the K found are worth",
    "entropy": "entropy of p(z|x), K found and tail, nats",
    "posterior_entropy": "entropy of p(z|x,y), nats; of K read together it says how much is the tail's",
    "effective": "effective passages, exp of the entropy over the K",
    "mass": "P_K, probability of the K found",
    "posterior_found": "posterior of the K found; the rest is closed book",
    "spread": "standard deviation of s over the K",
    "distinct": "different passages in a step's batches, share",
    "staleness": "1 − cosine of stored and fresh vectors",
    "drift": "the same over the corpus, when last looked at",
    "index_age": "steps since the index' weights",
    "gate_retrieve": "gate for finding, mean",
    "gate_read": "gate for reading, mean",
    "gate_carry": "gate of carried lines, mean",
    "gate_gap": "|soft − hard| gate for reading, mean",
    "gate_gap_retrieve": "|soft − hard| gate for finding, mean",
    "cut": "cut, mean",
    "divergence": "KL of gates' and cuts' means to their rates, nats",
    "tokens_kept": "tokens that reading gates let through, share",
    "gradient_extractor": "gradient norm, extractor",
    "gradient_retriever": "gradient norm, retriever",
    "gradient_generator": "gradient norm, generator",
}
"""What a run logs per step, in the order in which to look at it."""
BY_OBJECTIVE = {
    "loss_": "its part of the loss, weighted",
    "target_entropy_": "entropy of its target over the passages read, nats; 0 is one-hot",
}
"""And for each objective of several, or that has a target: these, and behind them its name."""


def figures(history: Sequence[dict[str, float]]) -> dict[str, str]:
    """What a run has logged, and what each is: the loss and its parts, targets, then the others of `FIGURES`."""
    logged = dict.fromkeys(name for row in history for name in row)
    own = {name: text for start, text in BY_OBJECTIVE.items() for name in logged if name.startswith(start)}
    every = {"loss": FIGURES["loss"], **own, **FIGURES}
    return {name: text for name, text in every.items() if name in logged}


@torch.no_grad()
def health(terms: Terms, extractor: Extractor, k: int) -> dict[str, Tensor | float]:
    """Figures of one step, means over its questions (gates: over all lines); `FIGURES` says what each is.

    Args:
        k: passages that were found; behind them may stand some that were mined or named, which don't count."""
    terms = replace(
        terms, prior_logp=terms.prior_logp[:, :k], answer_logp=terms.answer_logp[:, :k], ids=terms.ids[:, :k],
        token_logp=None, alone_logp=None, passage_rows=None, spans=None, gold=None,
    )  # fmt: skip
    prior = terms.prior_logp
    tail = log_tail(prior)[:, None]
    joint = joint_logp(terms)
    posterior = joint.log_softmax(1)
    found = prior > -torch.inf
    several = found.sum(1).clamp_min(1)
    score = prior.masked_fill(~found, 0.0)  # up to log Z, which is common to the K
    mean = score.sum(1, keepdim=True) / several[:, None]
    out = terms.gates.extraction
    gap = {}
    for name, logits in (("gate_gap", out.read), ("gate_gap_retrieve", out.retrieve)):
        soft, hard = (extractor.log_gates(logits, mode).exp() for mode in ("soft", "hard"))
        gap[name] = (soft - hard).abs().mean()
    return {
        "entropy": _entropy(torch.cat([prior, tail], 1)).mean(),
        "posterior_entropy": _entropy(posterior).mean(),
        "effective": (_entropy(renormalised(terms)).exp() * found.any(1)).mean(),
        "mass": prior.exp().sum(1).mean(),
        "posterior_found": 1 - posterior[:, -1].exp().mean(),
        "spread": ((score - mean).square() * found).sum(1).div(several).sqrt().mean(),
        "utility": (joint.logsumexp(1) - terms.closed_book_logp).mean(),
        "staleness": terms.staleness,
        "gate_retrieve": torch.sigmoid(out.retrieve).mean(),
        "gate_read": torch.sigmoid(out.read).mean(),
        "gate_carry": torch.sigmoid(out.carry).mean(),
        "cut": torch.sigmoid(out.cut).mean(),
        **gap,
    }


@torch.no_grad()
def target_entropy(terms: Terms, names: Iterable[str], options: Options) -> dict[str, Tensor]:
    """Mean entropy in nats of the targets that the objectives of these names have; 0 is one-hot."""
    return {f"target_entropy_{n}": _entropy(TARGETS[n](terms, options)).mean() for n in names if n in TARGETS}


def answer_found(rag: RAG, questions: Sequence[Question], ids: Int[Tensor, "questions k"]) -> float:
    """Share of the questions of which an answer occurs, word for word but for case, in a passage found."""
    corpus, _ = rag._ready()
    hits = 0
    for question, found in zip(questions, ids.tolist(), strict=True):
        hits += any(stands_in(question.answers, corpus.text_at(i)) for i in found if i >= 0)
    return hits / len(questions)


def distinct(ids: Int[Tensor, " found"]) -> float:
    """Share of what was found that is different."""
    ids = ids[ids >= 0]
    return ids.unique().numel() / max(ids.numel(), 1)


def _entropy(logp: Tensor) -> Tensor:
    """−Σ p log p over the last axis, in nats."""
    return -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)
