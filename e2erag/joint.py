"""The joint model: p(y | x) = Σ_z p(z | x) · p(y | x, z), one graph from the answer back to the page.

    extractor φ   lines → gates, cuts, log π(z)
    retriever η   s_z = ⟨q(x), d(z; w^R)⟩/τ + α·log π(z),   p(z|x) = exp(s_z)/Z over the corpus
    generator θ   p(y | x, z; w^G)  and  p(y | x, ∅)

This is where the stages meet; what to make of the terms is an objective's business (`e2erag.train`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.corpus import Corpus, Gates, Lines
from e2erag.extract import Extractor, GateMode
from e2erag.generator import Generator, Row
from e2erag.precision import Precision, autocast
from e2erag.retriever import OVERFETCH, Hits, Index, LineSums, Retriever, log_prob_found, log_tail


class Terms(NamedTuple):
    """Everything an objective needs, per question and passage found.

    Attributes:
        prior_logp: log p(z|x) with Z over the whole corpus; −∞ where fewer than K were found.
        answer_logp: log p(y|x,z), summed over the answer's tokens.
        closed_book_logp: log p(y|x,∅).
        ids: the passages' numbers, −1 where there was none.
        gates: of every line of the corpus.
        staleness: 1 − cosine of the stored vectors and the fresh ones, mean over the passages found.
    """

    prior_logp: Float[Tensor, "questions k"]
    answer_logp: Float[Tensor, "questions k"]
    closed_book_logp: Float[Tensor, " questions"]
    ids: Int[Tensor, "questions k"]
    gates: Gates
    staleness: Float[Tensor, ""]


class Joint(nn.Module):
    """Extractor, retriever and generator as one model."""

    def __init__(
        self,
        extractor: Extractor,
        retriever: Retriever,
        generator: Generator,
        precision: Precision = "auto",
        read_carried: bool = False,
    ) -> None:
        super().__init__()
        self.extractor, self.retriever, self.generator = extractor, retriever, generator
        self.precision: Precision = precision
        self.read_carried = read_carried

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which both encoders compute; see `e2erag.precision`."""
        return autocast(self.device, self.precision)

    def gates(self, corpus: Corpus, mode: GateMode, noise: torch.Generator | None = None) -> Gates:
        """What the extractor says of every line. A few thousand multiplications a line: fresh in every step."""
        device = self.extractor.gates.weight.device
        kind = self.extractor.gates.weight.dtype
        out = self.extractor(corpus.layout.to(device, kind), corpus.text.to(device, kind), corpus.page.to(device))
        retrieve, read, carry = (
            self.extractor.log_gates(logits, mode, noise) for logits in (out.retrieve, out.read, out.carry)
        )
        return Gates(torch.cat([retrieve, carry]), torch.cat([read, carry + read]), out)

    def log_prior(self, corpus: Corpus, gates: Gates) -> Float[Tensor, " passages"]:
        """log π(z) of every candidate."""
        return self.extractor.log_prior(gates.extraction, corpus.spans.spans[:, 1:].to(gates.read.device))

    def encode(
        self,
        corpus: Corpus,
        passages: Int[Tensor, " passages"],
        gates: Gates,
        log_prior: Float[Tensor, " corpus"],
        mode: GateMode,
    ) -> Float[Tensor, "passages row"]:
        """Index rows of these passages; in hard mode the shut lines are gone, else they are turned down.

        Where gates act on pooling alone, a shut line is left out of the pooling, and the others have still seen it.

        Args:
            log_prior: log π of every candidate, from `log_prior`."""
        with self.autocast():
            if mode == "hard" and self.retriever.config.gates == "attend":
                lines = [corpus.lines(i) for i in passages.tolist()]
                kept = [gates.kept(gates.retrieve, *passage) for passage in lines]
                texts = [corpus.texts(*passage) for passage in zip(passages.tolist(), kept, strict=True)]
                vectors = self.retriever.encode_passages(corpus.retriever_lines, texts)
            else:
                texts, slots = self.gated_lines(corpus, passages, gates)
                vectors = self.retriever.encode_passages(corpus.retriever_lines, texts, gates.retrieve, slots)
        return self.retriever.passage_rows(vectors, log_prior[passages])

    def gated_lines(
        self, corpus: Corpus, passages: Int[Tensor, " passages"], gates: Gates
    ) -> tuple[list[Lines], list[Lines]]:
        """Per passage all of its lines, as the texts they are read as, and the slots of their gates."""
        lines = [corpus.lines(i) for i in passages.tolist()]
        texts = [corpus.texts(i, own) for i, (own, _) in zip(passages.tolist(), lines, strict=True)]
        return texts, [gates.slots(*passage) for passage in lines]

    def line_sums(self, corpus: Corpus, gates: Gates) -> LineSums:
        """Every passage's lines, encoded once for any gates; `gates` only say where each line's stands."""
        texts, slots = self.gated_lines(corpus, torch.arange(len(corpus.passages)), gates)
        with self.autocast():
            return self.retriever.passage.line_sums(corpus.retriever_lines, texts, slots)

    def reading_lines(self, corpus: Corpus, passage: int, gates: Gates, mode: GateMode) -> tuple[Lines, Lines | None]:
        """The lines of a passage that the reader is given, and the slots of their gates (None: hard, no gates)."""
        lines, carried = corpus.lines(passage)
        if not self.read_carried:
            lines, carried = lines[carried:], 0
        if mode == "hard":
            return gates.kept(gates.read, lines, carried), None
        return lines, gates.slots(lines, carried)

    def rows(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str] | None,
        ids: Int[Tensor, "questions k"],
        gates: Gates,
        mode: GateMode,
        closed_book: bool = True,
    ) -> tuple[list[Row], list[Lines | None]]:
        """The reader's rows, question by question: one per passage found, then (closed book) one without any.

        Returns the rows and, per row, the slots of its lines; None where no gate applies."""
        prompt = self.generator.prompt
        asked = prompt.questions(questions)
        given = [None] * len(asked) if answers is None else prompt.answers(answers)
        reserve = self.generator.config.max_new_tokens if answers is None else 0
        rows: list[Row] = []
        slots: list[Lines | None] = []
        for question, answer, found in zip(asked, given, ids.tolist(), strict=True):
            for i in found:
                if i < 0:
                    continue
                lines, slot = self.reading_lines(corpus, i, gates, mode)
                slots.append(slot)
                rows.append(prompt.row(corpus.generator_lines, corpus.texts(i, lines), question, answer, reserve))
            if closed_book:
                rows.append(prompt.row(None, None, question, answer, reserve))
                slots.append(None)
        return rows, slots

    def forward(
        self,
        corpus: Corpus,
        index: Index,
        questions: Sequence[str],
        answers: Sequence[str],
        k: int,
        mode: GateMode = "sample",
        noise: torch.Generator | None = None,
        negligible: float = 0.0,
        mined: int = 0,
    ) -> Terms:
        """Search, re-encode what was found with gradient, and read it.

        Args:
            index: of the same corpus; its vectors may be stale, the K found are scored afresh.
            k: passages read per question.
            noise: random numbers of the gates in "sample" mode.
            negligible: a passage whose share of p(z|x)·p(y|x,z) is below this is read without gradient. All paths
                into retriever and extractor's prior stay exact; the reader loses at most this share per passage.
            mined: passages read beside the K found, those with the best BM25 of question and answer together. p(z|x)
                is over the whole corpus, so whichever passages are read, the sum is the same sum.
        """
        with self.autocast():
            q = self.retriever.encode_questions(list(questions))
        gates = self.gates(corpus, mode, noise)
        # The prior is fresh for every passage: raising it only where passages are re-encoded would seem to pay.
        log_prior = self.log_prior(corpus, gates)
        stored = self.retriever.with_prior(index.scores(q), index.vectors, log_prior)
        sparse = None if self.retriever.beta is None else corpus.bm25.scores(questions).to(stored.device)
        stored = self.retriever.with_bm25(stored, sparse)
        hits = index.found(stored.detach(), corpus.spans, k)
        if mined:
            hits = self.mine(corpus, questions, answers, hits, mined)
        unique = hits[hits >= 0].unique()
        passages = self.encode(corpus, unique, gates, log_prior, mode)
        # What is encoded afresh for one question serves the others too: their Z gets its fresh scores and gradient.
        fresh = self.retriever.with_bm25(q @ passages.T, None if sparse is None else sparse[:, unique.to(q.device)])
        scores = stored.index_copy(1, unique.to(q.device), fresh)
        prior = log_prob_found(scores, hits, corpus.spans.nested(hits))
        answer, closed = self.read(corpus, questions, answers, hits, gates, mode, prior, negligible)
        stored_vectors = index.vectors[unique, :-1].to(passages)
        stale = 1 - F.cosine_similarity(stored_vectors, passages.detach()[:, :-1]).mean()
        return Terms(prior, answer, closed, hits, gates, stale)

    @staticmethod
    def mine(
        corpus: Corpus, questions: Sequence[str], answers: Sequence[str], hits: Int[Tensor, "questions k"], mined: int
    ) -> Int[Tensor, "questions more"]:
        """The passages found and, behind them, those that BM25 finds with the answer's help; none repeats another."""
        k = hits.shape[1]
        asked = [f"{question} {answer}" for question, answer in zip(questions, answers, strict=True)]
        best = corpus.bm25.search(asked, OVERFETCH * (k + mined)).ids
        known = (best[:, :, None] == hits[:, None]).any(2)
        ids = torch.cat([hits, best.masked_fill(known, -1)], 1)
        return corpus.spans.distinct(Hits(ids, torch.zeros(ids.shape)), k + mined).ids

    def read(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str],
        ids: Int[Tensor, "questions k"],
        gates: Gates,
        mode: GateMode,
        prior_logp: Float[Tensor, "questions k"],
        negligible: float,
    ) -> tuple[Float[Tensor, "questions k"], Float[Tensor, " questions"]]:
        """log p(y|x,z) of every passage found and log p(y|x,∅), in one batched pass."""
        rows, slots = self.rows(corpus, questions, answers, ids, gates, mode)
        bias = None if mode == "hard" else gates.read
        seat = F.pad(ids >= 0, (0, 1), value=True).to(prior_logp.device)  # last column: closed book
        if negligible > 0 and torch.is_grad_enabled():
            with torch.no_grad(), self.autocast():
                logp = self.generator.log_likelihood(rows, None if bias is None else bias.detach(), slots)
            tail = log_tail(prior_logp.detach())[:, None]
            shares = (torch.cat([prior_logp.detach(), tail], 1) + _seated(logp, seat)).softmax(1)
            small = (shares < negligible) & (shares < shares.max(1, keepdim=True).values)  # NaN is not small
            wanted = (~small)[seat].nonzero()[:, 0]
            with self.autocast():
                some = self.generator.log_likelihood(
                    [rows[i] for i in wanted.tolist()], bias, [slots[i] for i in wanted.tolist()]
                )
            logp = logp.index_put((wanted,), some)
        else:
            with self.autocast():
                logp = self.generator.log_likelihood(rows, bias, slots)
        table = _seated(logp, seat)
        return table[:, :-1], table[:, -1]


def _seated(logp: Float[Tensor, " rows"], seat: Bool[Tensor, "questions k1"]) -> Float[Tensor, "questions k1"]:
    """Rows back in the table of questions and passages, −∞ where no passage was found."""
    return torch.full(seat.shape, -torch.inf, dtype=logp.dtype, device=logp.device).masked_scatter(seat, logp)
