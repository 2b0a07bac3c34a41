"""Objectives: pure functions from log-probabilities to a loss per question.

Notation: prior_logp = log p(z|x) of the K passages found, with Z over the whole corpus; answer_logp = log p(y|x,z);
closed_book_logp = log p(y|x,∅). Passages that don't exist have prior_logp = −∞.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from e2erag.retriever import log_tail

Objective = Callable[
    [Float[Tensor, "questions k"], Float[Tensor, "questions k"], Float[Tensor, " questions"]],
    Float[Tensor, " questions"],
]


def marginal(
    prior_logp: Float[Tensor, "questions k"],
    answer_logp: Float[Tensor, "questions k"],
    closed_book_logp: Float[Tensor, " questions"],
) -> Float[Tensor, " questions"]:
    """−log[ Σ_{z∈K} p(z|x)·p(y|x,z) + (1 − P_K)·p(y|x,∅) ],  P_K = Σ_{z∈K} p(z|x).

    The unread passages are taken to explain the answer as well as no passage does. With that, the gradient is the
    full corpus' own:  d/ds_z = p(z|x) − posterior(z).  Where the gold passage isn't among the K it is small rather
    than wrong; the retriever then learns little from that question.
    """
    return -torch.logsumexp(joint_logp(prior_logp, answer_logp, closed_book_logp), 1)


def rag_sequence(
    prior_logp: Float[Tensor, "questions k"],
    answer_logp: Float[Tensor, "questions k"],
    closed_book_logp: Float[Tensor, " questions"],
) -> Float[Tensor, " questions"]:
    """−log Σ_{z∈K} p_K(z|x)·p(y|x,z) with p_K renormalised over the K found (Lewis et al. 2020, RAG-Sequence).

    Known trouble: the gradient is loud and wrong where the gold passage isn't among the K, and biased where it is,
    because the mass outside K is taken to be zero. The closed book isn't used.
    """
    found = prior_logp > -torch.inf
    prior = prior_logp.masked_fill(~found, -torch.inf).log_softmax(1)
    terms = torch.where(found, prior + torch.where(found, answer_logp, 0.0), -torch.inf)
    return -torch.logsumexp(terms, 1)


def joint_logp(
    prior_logp: Float[Tensor, "questions k"],
    answer_logp: Float[Tensor, "questions k"],
    closed_book_logp: Float[Tensor, " questions"],
) -> Float[Tensor, "questions k+1"]:
    """log p(z|x)·p(y|x,z) of the K found, and in the last column the tail's log (1 − P_K)·p(y|x,∅)."""
    found = prior_logp > -torch.inf
    read = torch.where(found, prior_logp, -torch.inf) + torch.where(found, answer_logp, 0.0)
    return torch.cat([read, (log_tail(prior_logp) + closed_book_logp)[:, None]], 1)


OBJECTIVES: dict[str, Objective] = {"marginal": marginal, "rag_sequence": rag_sequence}
"""By the name that a configuration uses."""
