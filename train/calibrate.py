"""τ from the questions, before anything is trained: how sharply similarity ranks passages."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.corpus import Corpus
from e2erag.joint import Evidence
from e2erag.questions import Question, read_questions
from e2erag.rag import RAG, Found
from e2erag.train.objectives import marginal

STEPS = range(-10, 11)
"""τ is tried at 2^(n/2) times what it is: from a thirty-second of it to thirty-two times."""

AT_ONCE = 8
"""Questions that are read at a time."""


class Calibration(NamedTuple):
    """What was tried, and what came of it.

    Attributes:
        temperature: the best τ, at which the system is now.
        losses: −log p(y|x), mean over the questions, by each τ that was tried.
    """

    temperature: float
    losses: dict[float, float]

    def __str__(self) -> str:
        return f"τ = {self.temperature:.3g}: " + ", ".join(f"{t:.3g} → {loss:.2f}" for t, loss in self.losses.items())


@torch.no_grad()
def calibrate(rag: RAG, questions: str | Path | Sequence[Any], k: int | None = None) -> Calibration:
    """Give the retriever the τ at which these questions' answers are likeliest, by −log p(y|x) of `marginal`.

    A similarity model's own scale says how it was trained, among the negatives of a batch. Over a corpus of many alike
    passages p(z|x) is too flat at it, and the K passages read have next to none of it: then what training does first is
    to raise P_K. (One number fitted to held-out likelihood: temperature scaling, Guo et al. 2017, §4.2.)

    K passages are read once per question, those that another τ finds besides (with a prior or BM25 it can) once more;
    a τ costs a search. Nothing that is stored depends on τ.

    Args:
        questions: a question file, or rows with `question` and `answers`; some dozens are enough for one number.
        k: passages read per question; as many as the system reads, if not given.

    Raises:
        QuestionError: rows without their columns, or none.
        ValueError: passages are read together, so that their likelihood depends on τ itself.
    """
    if rag.model.reading != "marginal":
        raise ValueError(
            f'τ is fitted where passages are read each alone, and with reading="{rag.model.reading}" the reader sees '
            "them as τ ranks them: leave calibrate at 0, or set RetrieverConfig(learn_temperature=True)"
        )
    rows, retriever, (corpus, _) = read_questions(questions), rag.model.retriever, rag._ready()
    k = rag.config.k if k is None else k
    asked = [row.question for row in rows]
    with rag.model.autocast():
        q = retriever.encode_questions(asked)
    sparse = None if retriever.beta is None else corpus.bm25.scores(asked)
    tried: dict[float, Found] = {}
    for step in STEPS:
        times = 2 ** (step / 2)
        sharper = torch.cat([q[:, :-1] / times, q[:, -1:]], 1)
        tried[float(retriever.temperature) * times] = rag.search_rows(sharper, sparse, k)
    ids = _each_once(torch.cat([found.ids for found in tried.values()], 1))
    answer, closed = _read(rag, corpus, rows, ids)
    losses = {}
    for temperature, found in tried.items():
        place = (found.ids[:, :, None] == ids[:, None]).int().argmax(2)
        read = Evidence(
            prior_logp=found.prior_logp,
            answer_logp=answer.gather(1, place).masked_fill(found.ids < 0, -torch.inf),
            closed_book_logp=closed,
        )
        losses[temperature] = marginal(read).mean().item()
    best = min(losses, key=lambda temperature: losses[temperature])
    if best in (min(losses), max(losses)):
        warnings.warn(
            f"τ = {best:.3g} is the last that was tried, so a better one may lie beyond: calibrate again, from there. "
            "Where answers are likeliest with p(z|x) flat, what is found doesn't help the reader",
            stacklevel=2,
        )
    retriever.set_temperature(best)
    return Calibration(best, losses)


def _each_once(ids: Int[Tensor, "questions found"]) -> Int[Tensor, "questions once"]:
    """A question's passages without repetition, best numbers first, −1 behind them."""
    ids = ids.sort(dim=1, descending=True).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(again, -1).sort(dim=1, descending=True).values
    return ids[:, : max(int((ids >= 0).sum(1).max()), 1)]


def _read(
    rag: RAG, corpus: Corpus, questions: Sequence[Question], ids: Int[Tensor, "questions found"]
) -> tuple[Float[Tensor, "questions found"], Float[Tensor, " questions"]]:
    """log p(y|x,z) of every passage, and log p(y|x,∅)."""
    mode = rag.config.mode
    gates = rag.model.gates(corpus, mode)
    parts = []
    for start in range(0, len(questions), AT_ONCE):
        some, found = questions[start : start + AT_ONCE], ids[start : start + AT_ONCE]
        asked, answers = [q.question for q in some], [q.answers[0] for q in some]
        even = torch.zeros(found.shape)
        tokens, _ = rag.model.read(corpus, asked, answers, found, gates, mode, even, negligible=0.0)
        parts.append(tokens.sum(2).float().cpu())
    table = torch.cat(parts)
    return table[:, :-1], table[:, -1]
