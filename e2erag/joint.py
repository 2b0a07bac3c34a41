"""The joint model: p(y | x) = Σ_z p(z | x) · p(y | x, z), one graph from the answer back to the page.

    extractor φ   lines → gates, cuts, log π(z)
    retriever η   s_z = ⟨q(x), d(z; w^R)⟩/τ + α·log π(z),   p(z|x) = exp(s_z)/Z over the corpus
    generator θ   p(y | x, z; w^G)  and  p(y | x, ∅)

This is where the stages meet; what to make of the terms is an objective's business (`e2erag.train`).
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.corpus import Corpus, Gates, Lines
from e2erag.extract import Extractor, GateMode
from e2erag.generator import Generator, Row
from e2erag.precision import Precision, autocast
from e2erag.retriever import Index, Retriever, log_prob_found, log_tail


class Terms(NamedTuple):
    """Everything an objective needs, per question and passage found.

    Attributes:
        prior_logp: log p(z|x) with Z over the whole corpus; −∞ where fewer than K were found.
        answer_logp: log p(y|x,z), summed over the answer's tokens; the same for all z where they are read together.
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


Reading = Literal["marginal", "concat", "fid"]
"""How K passages are read: "marginal", each alone; "concat", one after the other as one text; "fid", each encoded with
the question, and the decoder of an encoder–decoder attends to all (Fusion-in-Decoder, Izacard & Grave 2021)."""


class Joint(nn.Module):
    """Extractor, retriever and generator as one model."""

    def __init__(
        self,
        extractor: Extractor,
        retriever: Retriever,
        generator: Generator,
        precision: Precision = "auto",
        read_carried: bool = False,
        reading: Reading = "marginal",
    ) -> None:
        super().__init__()
        if reading == "fid" and not generator.model.config.is_encoder_decoder:
            raise ValueError(
                f'reading "fid" wants an encoder–decoder (T5, BART), and {type(generator.model).__name__} is a causal '
                'model: read with "concat", or take another generator'
            )
        self.extractor, self.retriever, self.generator = extractor, retriever, generator
        self.precision: Precision = precision
        self.read_carried = read_carried
        self.reading: Reading = reading

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

        Args:
            log_prior: log π of every candidate, from `log_prior`."""
        lines = [corpus.lines(i) for i in passages.tolist()]
        with self.autocast():
            if mode == "hard":
                kept = [gates.kept(gates.retrieve, *passage) for passage in lines]
                texts = [corpus.texts(*passage) for passage in zip(passages.tolist(), kept, strict=True)]
                vectors = self.retriever.passage.encode_lines(corpus.retriever_lines, texts)
            else:
                slots = [gates.slots(*passage) for passage in lines]
                texts = [corpus.texts(i, own) for i, (own, _) in zip(passages.tolist(), lines, strict=True)]
                vectors = self.retriever.passage.encode_lines(corpus.retriever_lines, texts, gates.retrieve, slots)
        return self.retriever.passage_rows(vectors, log_prior[passages])

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

    def fused_rows(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str] | None,
        ids: Int[Tensor, "questions k"],
        prior_logp: Float[Tensor, "questions k"],
        gates: Gates,
        mode: GateMode,
    ) -> tuple[list[Row], Float[Tensor, " slots"], list[Lines]]:
        """The reader's rows where passages are read together, one per question; log w of their lines; its slots.

        log p_K(z|x) + log K (p_K: p(z|x) renormalised over the K found) is added to the logits on a passage's keys, as
        if to log w of its lines: the reader attends to passages as the retriever ranks them; an even ranking changes
        nothing. So the answer's gradient tells one passage from another (MARGE, Lewis et al. 2020, adds relevance to
        the decoder's attention over documents). With "fid" it stands on the question's copies too, so the encoder,
        which sees one passage, is not moved by it. Known trouble: what is ranked far below is hardly read, so it can't
        show that it would help."""
        prompt, fid = self.generator.prompt, self.reading == "fid"
        asked = prompt.questions(questions)
        given = [None] * len(asked) if answers is None else prompt.answers(answers)
        reserve = self.generator.config.max_new_tokens if answers is None else 0
        rows: list[Row] = []
        biases: list[Tensor] = []
        for question, answer, hits, prior in zip(asked, given, ids, prior_logp, strict=True):
            found = hits[hits >= 0].tolist()
            read = [self.reading_lines(corpus, i, gates, mode) for i in found]
            passages = [corpus.texts(i, lines) for i, (lines, _) in zip(found, read, strict=True)]
            rows.append(prompt.fused(corpus.generator_lines, passages, question, answer, reserve, apart=fid))
            share = prior[: len(found)].log_softmax(0) + math.log(max(len(found), 1))
            bias = share.repeat_interleave(torch.tensor([len(lines) for lines in passages], device=share.device))
            if mode != "hard" and found:
                bias = bias + gates.read[torch.from_numpy(np.concatenate([slot for _, slot in read])).to(bias.device)]
            biases.append(torch.cat([bias, share.flip(0)]) if fid else bias)
        ends = np.cumsum([len(bias) for bias in biases])
        slots = [np.arange(end - len(bias), end) for end, bias in zip(ends, biases, strict=True)]
        return rows, torch.cat(biases), slots

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
    ) -> Terms:
        """Search, re-encode what was found with gradient, and read it.

        Args:
            index: of the same corpus; its vectors may be stale, the K found are scored afresh.
            k: passages read per question.
            noise: random numbers of the gates in "sample" mode.
            negligible: a passage whose share of p(z|x)·p(y|x,z) is below this is read without gradient. All paths
                into retriever and extractor's prior stay exact; the reader loses at most this share per passage.
        """
        with self.autocast():
            q = self.retriever.encode_questions(list(questions))
        gates = self.gates(corpus, mode, noise)
        # The prior is fresh for every passage: raising it only where passages are re-encoded would seem to pay.
        log_prior = self.log_prior(corpus, gates)
        stored = self.retriever.with_prior(index.scores(q), index.vectors, log_prior)
        hits = index.found(stored.detach(), corpus.spans, k)
        unique = hits[hits >= 0].unique()
        passages = self.encode(corpus, unique, gates, log_prior, mode)
        # What is encoded afresh for one question serves the others too: their Z gets its fresh scores and gradient.
        scores = stored.index_copy(1, unique.to(q.device), q @ passages.T)
        prior = log_prob_found(scores, hits, corpus.spans.nested(hits))
        answer, closed = self.read(corpus, questions, answers, hits, gates, mode, prior, negligible)
        stored_vectors = index.vectors[unique, :-1].to(passages)
        stale = 1 - F.cosine_similarity(stored_vectors, passages.detach()[:, :-1]).mean()
        return Terms(prior, answer, closed, hits, gates, stale)

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
        """log p(y|x,z) of every passage found and log p(y|x,∅), in one batched pass.

        Passages read together are one event of probability P_K = Σ_{z∈K} p(z|x), so each is given log p(y|x,z_1…z_K):
        Σ_z p(z|x)·p(y|x,z_1…z_K) = P_K·p(y|x,z_1…z_K)."""
        if self.reading != "marginal":
            return self._read_together(corpus, questions, answers, ids, gates, mode, prior_logp)
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

    def _read_together(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str],
        ids: Int[Tensor, "questions k"],
        gates: Gates,
        mode: GateMode,
        prior_logp: Float[Tensor, "questions k"],
    ) -> tuple[Float[Tensor, "questions k"], Float[Tensor, " questions"]]:
        rows, bias, slots = self.fused_rows(corpus, questions, answers, ids, prior_logp, gates, mode)
        closed, _ = self.rows(corpus, questions, answers, ids[:, :0], gates, mode)
        with self.autocast():
            logp = self.generator.log_likelihood(rows + closed, bias, [*slots, *[None] * len(closed)])
        fused, closed_logp = logp.chunk(2)
        return fused[:, None].expand(ids.shape).masked_fill(ids.to(fused.device) < 0, -torch.inf), closed_logp


def _seated(logp: Float[Tensor, " rows"], seat: Bool[Tensor, "questions k1"]) -> Float[Tensor, "questions k1"]:
    """Rows back in the table of questions and passages, −∞ where no passage was found."""
    return torch.full(seat.shape, -torch.inf, dtype=logp.dtype, device=logp.device).masked_scatter(seat, logp)
