"""τ from answers, before anything is trained: how sharply similarity and BM25 rank passages."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.corpus import Gates
from e2erag.joint import Evidence
from e2erag.questions import Question, read_questions
from e2erag.rag import RAG
from e2erag.step import Step
from e2erag.train.objectives import marginal

STEPS = range(-10, 11)
"""τ is tried at 2^(n/2) times what it is: from a thirty-second of it to thirty-two times."""

AT_ONCE = 32
"""Questions that are searched for and read at a time."""

ALIKE = 1e-4
"""Nats within which two τ are as good as each other; the one nearer to what τ was is taken."""


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


def calibrate(rag: RAG, questions: str | Path | Sequence[Any], k: int | None = None) -> Calibration:
    """Give the retriever the τ at which these questions' answers are likeliest, by −log p(y|x) of `marginal`.

    A similarity model's own scale says how it was trained, among the negatives of a batch. Over a corpus of many alike
    passages p(z|x) is too flat at it, and the K passages read have next to none of it: then what training does first is
    to raise P_K. (One number fitted to likelihood: temperature scaling, Guo et al. 2017, §4.2.)

    In the gate mode and with the index that the system has. BM25's weight β goes along (`Retriever.set_temperature`),
    so how the two are mixed stays. Every passage that some τ finds is read once; with a prior the K differ by τ. A τ
    costs a search, and nothing that is stored depends on it.

    Args:
        questions: a question file, or rows with `question` and `answers`; some dozens are enough for one number.
        k: passages read per question; as many as the system reads, if not given.

    Raises:
        QuestionError: rows without their columns, or none.
        ValueError: passages are read together, so that their likelihood depends on τ itself.
        RuntimeError: nothing is indexed, or a likelihood isn't a number.
    """
    check_reading(rag)
    return fitted(rag, tried(rag, read_questions(questions), rag.config.k if k is None else k))


def check_reading(rag: RAG) -> None:
    """Refuse a reader of several passages at once."""
    if rag.model.reading != "marginal":
        raise ValueError(
            f'τ is fitted where passages are read each alone, and with reading="{rag.model.reading}" the reader sees '
            "them as τ ranks them: let it learn (RetrieverConfig(learn_temperature=True)), and leave FitConfig's "
            "calibrate at 0"
        )


@torch.no_grad()
def tried(rag: RAG, questions: Sequence[Question], k: int) -> dict[float, float]:
    """−log p(y|x), mean over the questions, by τ."""
    now = float(rag.model.retriever.temperature)
    gates = rag.model.gates(rag._ready()[0], rag.config.mode)
    parts = [_losses(rag, gates, questions[at : at + AT_ONCE], k) for at in range(0, len(questions), AT_ONCE)]
    means = torch.cat(parts, 1).mean(1).tolist()
    return {now * 2 ** (step / 2): loss for step, loss in zip(STEPS, means, strict=True)}


def fitted(rag: RAG, losses: Mapping[float, float], sharper: bool = False) -> Calibration:
    """The best of these τ becomes the system's; with `sharper` one below the one that it has, or that one."""
    if not all(map(math.isfinite, losses.values())):
        raise RuntimeError(
            f"τ can't be fitted, for −log p(y|x) is no number at {dict(losses)}: does the reader diverge?"
        )
    with torch.no_grad():
        now = float(rag.model.retriever.temperature)
    open_to = {temperature: loss for temperature, loss in losses.items() if not sharper or temperature <= now * 1.01}
    good = [temperature for temperature, loss in open_to.items() if loss <= min(open_to.values()) + ALIKE]
    best = min(good, key=lambda temperature: abs(math.log(temperature / now)))
    if best in (min(losses), max(losses)):
        flat = "; what is found doesn't help the reader, or it can't tell which" if best == max(losses) else ""
        warnings.warn(
            f"τ = {best:.3g} is the last that was tried, so a better one may lie beyond{flat}: begin there "
            "(RetrieverConfig(temperature=…)), or calibrate once more",
            stacklevel=4,
        )
    rag.model.retriever.set_temperature(best)
    return Calibration(best, dict(losses))


def _losses(rag: RAG, gates: Gates, questions: Sequence[Question], k: int) -> Float[Tensor, "temperatures questions"]:
    """−log p(y|x) by τ."""
    corpus, _ = rag._ready()
    retriever, asked = rag.model.retriever, [question.question for question in questions]
    with rag.model.autocast():
        q = retriever.encode_questions(asked)
    sparse = None if retriever.beta is None else corpus.bm25.scores(asked)
    found = []
    with torch.random.fork_rng(devices=[]):
        for step in STEPS:
            torch.manual_seed(0)  # where log Z is an estimate, every τ has it from the same passages
            scaled = torch.cat([q[:, :-1] / 2 ** (step / 2), q[:, -1:]], 1)
            found.append(rag.search_rows(scaled, None if sparse is None else sparse / 2 ** (step / 2), k))
    ids = _each_once(torch.cat([each.ids for each in found], 1))
    answers = [question.answers[0] for question in questions]
    even = torch.zeros(ids.shape, device=rag.model.device)
    tokens, _ = rag.model.read(corpus, asked, answers, ids, gates, even, Step(k=k, mode=rag.config.mode))
    logp = tokens.sum(2).float().cpu()
    losses = []
    for each in found:
        place = (each.ids[:, :, None] == ids[:, None]).int().argmax(2)
        read = logp.gather(1, place).masked_fill(each.ids < 0, -torch.inf)
        losses.append(marginal(Evidence(prior_logp=each.prior_logp, answer_logp=read, closed_book_logp=logp[:, -1])))
    return torch.stack(losses)


def _each_once(ids: Int[Tensor, "questions found"]) -> Int[Tensor, "questions once"]:
    """A question's passages, each once and −1 behind them."""
    ids = ids.sort(dim=1, descending=True).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(again, -1).sort(dim=1, descending=True).values
    return ids[:, : max(int((ids >= 0).sum(1).max()), 1)]
