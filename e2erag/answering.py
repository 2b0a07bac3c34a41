"""From passages found to answers: generated, weighed against one another, and cited."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.citation import Citation, cite, holds
from e2erag.corpus import Corpus, Gates
from e2erag.extract import GateMode, Passage
from e2erag.generator import Row
from e2erag.joint import Joint


@dataclass(frozen=True)
class Answer:
    """An answer and where it stands.

    Attributes:
        text: the answer.
        score: its probability among the answers that the passages read gave; where they are read together,
            p(y|x,z_1…z_K).
        citations: the lines it rests on, best first.
        passages: those read, best first by p(z|x).
        tokens_read: tokens of passages that the reader saw for it.
    """

    text: str
    score: float
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    tokens_read: int


def answers(
    model: Joint,
    corpus: Corpus,
    questions: Sequence[str],
    ids: Int[Tensor, "questions k"],
    prior_logp: Float[Tensor, "questions k"],
    gates: Gates,
    mode: GateMode,
    citations: bool = True,
) -> list[Answer]:
    """An answer to each question from the passages found for it, as `model.reading` says.

    Args:
        ids: the passages' numbers, best first, −1 where there was none.
        prior_logp: their log p(z|x).
        citations: whether to say where the answers stand, at the price of a pass per answer.
    """
    reading = _Reading(model, corpus, gates, mode, citations)
    read = reading.apart if model.reading == "marginal" else reading.together
    return read(questions, ids, prior_logp)


@dataclass(frozen=True)
class _Reading:
    """What all answers of one call have in common."""

    model: Joint
    corpus: Corpus
    gates: Gates
    mode: GateMode
    citations: bool

    @property
    def bias(self) -> Float[Tensor, " slots"] | None:
        """log w of the lines read; None where shut ones are gone."""
        return None if self.mode == "hard" else self.gates.read

    def apart(
        self,
        questions: Sequence[str],
        ids: Int[Tensor, "questions k"],
        prior_logp: Float[Tensor, "questions k"],
    ) -> list[Answer]:
        """Every passage gives an answer; the same words from several count together, the best joint wins.

        log p(y) ≥ logsumexp over the z that gave y."""
        model = self.model
        rows, slots = model.rows(self.corpus, questions, None, ids, self.gates, self.mode, closed_book=False)
        with model.autocast():
            generated = model.generator.generate(rows, self.bias, slots)
        given, start = [], 0
        for question, found, prior in zip(questions, ids, prior_logp, strict=True):
            here = int((found >= 0).sum())
            rank = slice(start, start + here)
            start += here
            texts = [model.generator.text(tokens) for tokens in generated.ids[rank]]
            joint = prior[:here] + generated.logp[rank]
            total = {text: float(joint[[t == text for t in texts]].logsumexp(0)) for text in dict.fromkeys(texts)}
            best = max(total, key=total.__getitem__)  # the first, so the better passage's, where two are equal
            share = joint.softmax(0)
            givers = [i for i in share.argsort(descending=True).tolist() if texts[i] == best]
            score = float(np.exp(total[best] - float(joint.logsumexp(0))))
            given.append(self.answer(question, best, score, found[:here], share, givers, rows[rank]))
        return given

    def together(
        self,
        questions: Sequence[str],
        ids: Int[Tensor, "questions k"],
        prior_logp: Float[Tensor, "questions k"],
    ) -> list[Answer]:
        """All passages give one answer. Cited are those in which its words stand, or else the one that alone explains
        it best; for their scores each is read once more by itself."""
        model, corpus, gates, mode = self.model, self.corpus, self.gates, self.mode
        joint = prior = prior_logp.to(model.device)
        rows, bias, slots = model.fused_rows(corpus, questions, None, ids, prior, gates, mode)
        with model.autocast():
            generated = model.generator.generate(rows, bias, slots)
        texts = [model.generator.text(tokens) for tokens in generated.ids]
        if self.citations:
            alone, own = model.rows(corpus, questions, texts, ids, gates, mode, closed_book=False)
            with model.autocast():
                logp = model.generator.log_likelihood(alone, self.bias, own)
            joint = prior + torch.zeros_like(prior).masked_scatter((ids >= 0).to(prior.device), logp.to(prior))
        given = []
        for n, (question, text, found) in enumerate(zip(questions, texts, ids, strict=True)):
            found = found[found >= 0]
            share = joint[n, : len(found)].softmax(0)
            order = share.argsort(descending=True).tolist()
            holding = [i for i in order if holds(model, corpus, text, int(found[i]), gates, mode)]
            score = float(generated.logp[n].exp())
            given.append(self.answer(question, text, score, found, share, holding or order[:1], rows[n : n + 1]))
        return given

    def answer(
        self,
        question: str,
        text: str,
        score: float,
        ids: Int[Tensor, " k"],
        share: Float[Tensor, " k"],
        cited: Sequence[int],
        rows: Sequence[Row],
    ) -> Answer:
        """With the passages read, `share` of the evidence each, of which `cited` are cited."""
        citations = tuple(
            cite(self.model, self.corpus, question, text, int(ids[i]), float(share[i]), self.gates, self.mode)
            for i in (cited if self.citations else ())
        )
        passages = tuple(self.corpus.passages[i] for i in ids.tolist())
        return Answer(text, score, citations, passages, sum(int((row.owner >= 0).sum()) for row in rows))
