"""The joint model: p(y | x) = Σ_z p(z | x) · p(y | x, z), one graph from the answer back to the page.

    extractor φ   lines → gates, cuts, log π(z)
    retriever η   s_z = ⟨q(x), d(z; w^R)⟩/τ + α·log π(z),   p(z|x) = exp(s_z)/Z over the corpus
    generator θ   p(y | x, z; w^G)  and  p(y | x, ∅)

This is where the stages meet; what to make of the terms is an objective's business (`e2erag.train`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.corpus import Corpus, Gates, Lines
from e2erag.drawing import Judgement, judge
from e2erag.extract import Extractor, GateMode
from e2erag.finder import Finder
from e2erag.generator import Generator, Row
from e2erag.precision import Precision
from e2erag.retriever import OVERFETCH, Hits, Index, Retriever, Softmax, log_tail
from e2erag.slopes import competing
from e2erag.step import Step

SURE = 5
"""A passage with so many times the share of p(z|x) that is negligible is read with gradient at once, not twice."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an objective needs, per question and passage found.

    Attributes:
        prior_logp: log p(z|x) with Z over the whole corpus; −∞ where fewer than K were found.
        answer_logp: log p(y|x,z), summed over the answer's tokens; the same for all z where they are read together.
        closed_book_logp: log p(y|x,∅).
        token_logp: log p(y_t|x,z,y_<t), 0 beyond an answer's end token.
        alone_logp: the same of each passage read alone, where `token_logp` is of all read together; None: it is that.
        length: tokens of each answer, its end token included.
        ids: the passages' numbers, −1 where there was none.
        question_rows, passage_rows: vectors whose inner product is s_z without β·BM25.
        spans: (document, start, stop, reading) of each passage, lines as `Spans` has them.
        gold: which of the passages may be taken for the right one: those on the page that a question names, all of
            them where it names none. None: all of every question.
    """

    prior_logp: Float[Tensor, "questions k"]
    answer_logp: Float[Tensor, "questions k"]
    closed_book_logp: Float[Tensor, " questions"]
    token_logp: Float[Tensor, "questions k tokens"] | None = None
    alone_logp: Float[Tensor, "questions k tokens"] | None = None
    length: Int[Tensor, " questions"] | None = None
    ids: Int[Tensor, "questions k"] | None = None
    question_rows: Float[Tensor, "questions row"] | None = None
    passage_rows: Float[Tensor, "questions k row"] | None = None
    spans: Int[Tensor, "questions k 4"] | None = None
    gold: Bool[Tensor, "questions k"] | None = None


@dataclass(frozen=True, kw_only=True)
class Terms(Evidence):
    """What the joint model has found and read: all of `Evidence`, and besides

    Attributes:
        gates: of every line of the corpus; or of those found, and `gates.extraction` of those drawn (`Step.judged`).
        tokens_kept: share of the tokens that reading gates let through: Σ tokens·w / Σ tokens, over the lines of
            `gates.extraction`.
        staleness: 1 − cosine of the stored vectors and the fresh ones, mean over the passages found.
    """

    ids: Int[Tensor, "questions k"]
    gates: Gates
    tokens_kept: Float[Tensor, ""]
    staleness: Float[Tensor, ""]


Reading = Literal["marginal", "concat", "parallel", "fid"]
"""How K passages are read: "marginal", each alone; "concat", one after the other as one text; "parallel", beside each
other in one row of a causal model, none seeing another and all at the same positions, the question seeing all (parallel
context windows, Ratner et al. 2023); "fid", each encoded with the question, and the decoder of an encoder–decoder
attends to all (Fusion-in-Decoder, Izacard & Grave 2021)."""


class Joint(Finder):
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
        super().__init__(extractor, retriever, precision)
        if reading == "fid" and not generator.model.config.is_encoder_decoder:
            raise ValueError(
                f'reading "fid" wants an encoder–decoder (T5, BART), and {type(generator.model).__name__} is a causal '
                'model: read with "parallel" or "concat", or take another generator'
            )
        if reading == "parallel" and generator.model.config.is_encoder_decoder:
            raise ValueError(
                f'reading "parallel" wants a causal model, and {type(generator.model).__name__} is an '
                'encoder–decoder: read with "fid"'
            )
        if reading == "parallel" and getattr(generator.model.config.get_text_config(), "sliding_window", None):
            raise ValueError(
                'reading "parallel" wants a model whose tokens see all that is before them, and '
                f'{type(generator.model).__name__} has a sliding window: read with "concat" or "marginal"'
            )
        self.generator = generator
        self.read_carried = read_carried
        self.reading: Reading = reading

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
        asked, given, reserve = self._prompted(questions, answers)
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

    def _prompted(
        self, questions: Sequence[str], answers: Sequence[str] | None
    ) -> tuple[list[Any], Sequence[Any], int]:
        """Tokens of questions and of answers (None each where there are none), and of room left to generate one."""
        asked = self.generator.prompt.questions(questions)
        if answers is None:
            return asked, [None] * len(asked), self.generator.config.max_new_tokens
        return asked, self.generator.prompt.answers(answers), 0

    def fused_rows(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str] | None,
        ids: Int[Tensor, "questions k"],
        prior_logp: Float[Tensor, "questions k"],
        gates: Gates,
        mode: GateMode,
        slope_limit: float = 0.0,
    ) -> tuple[list[Row], Float[Tensor, " slots"], list[Lines]]:
        """The reader's rows where passages are read together, one per question; log w of their lines; its slots.

        log p_K(z|x) + log K (p_K: p(z|x) renormalised over the K found) is added to the logits on a passage's keys, as
        if to log w of its lines: the reader attends to passages as the retriever ranks them; an even ranking changes
        nothing. So the answer's gradient tells one passage from another (MARGE, Lewis et al. 2020, adds relevance to
        the decoder's attention over documents). With "fid" it stands on the question's copies too, so the encoder,
        which sees one passage, is not moved by it. Known trouble: what is ranked far below is hardly read, so it can't
        show that it would help."""
        assert self.reading != "marginal"  # which reads each alone
        prompt, fid = self.generator.prompt, self.reading == "fid"
        asked, given, reserve = self._prompted(questions, answers)
        rows: list[Row] = []
        biases: list[Tensor] = []
        for question, answer, hits, prior in zip(asked, given, ids, prior_logp, strict=True):
            found = hits[hits >= 0].tolist()
            read = [self.reading_lines(corpus, i, gates, mode) for i in found]
            passages = [corpus.texts(i, lines) for i, (lines, _) in zip(found, read, strict=True)]
            rows.append(prompt.fused(corpus.generator_lines, passages, question, answer, reserve, self.reading))
            share = prior[: len(found)].log_softmax(0) + math.log(max(len(found), 1))
            bias = share.repeat_interleave(torch.tensor([len(lines) for lines in passages], device=share.device))
            if mode != "hard" and found:
                log_w, at = competing(gates.read, [slot for _, slot in read if slot is not None], slope_limit)
                bias = bias + log_w[torch.from_numpy(np.concatenate(at)).to(bias.device)]
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
        step: Step,
        noise: torch.Generator | None = None,
        gold: Sequence[Sequence[int]] | None = None,
    ) -> Terms:
        """Search, re-encode what was found with gradient, and read it.

        Args:
            index: of the same corpus; its vectors may be stale, the K found are scored afresh.
            noise: random numbers of gates, of pages judged and of negatives.
            gold: per question, passages of which one is to be read (`Corpus.with_one_of`), beside all others.
        """
        mode = step.mode
        with self.autocast():
            q = self.retriever.encode_questions(list(questions))
        said = judge(self, corpus, index, step.judged, mode, noise)
        sparse = None if self.retriever.beta is None else corpus.bm25.scores(questions)
        added = self.retriever.with_bm25(said.prior, sparse)
        found = index.search(q, max(OVERFETCH * step.k, 2 * step.rerank), added)
        hits = corpus.spans.distinct(found, max(step.k, step.rerank)).ids
        if step.rerank:
            hits = self._reranked(corpus, hits, q, said, sparse, step)
        if step.mined:
            hits = self.mine(corpus, questions, answers, hits, step.mined)
        if gold is not None:
            hits = corpus.with_one_of(gold, [f"{x} {y}" for x, y in zip(questions, answers, strict=True)], hits)
        unique = hits[hits >= 0].unique()
        softmax = Softmax(index, q, found, hits, corpus.spans, unique, added, shared=step.negatives > 0)
        rest = softmax.draw(step.negatives, noise)
        encoded = torch.cat([unique, rest.rows])
        gates, log_prior = said.of(encoded)
        fresh_rows = self.encode(corpus, encoded, gates, log_prior, mode, step.slope_limit)
        passages, others = fresh_rows.split([len(unique), len(rest.rows)])
        fresh = self.retriever.with_bm25(q @ passages.T, None if sparse is None else sparse[:, unique])
        prior = softmax.log_prob(fresh, rest.slope(q, others))
        tokens, length = self.read(corpus, questions, answers, hits, gates, prior, step)
        logp = tokens.sum(2)
        single = None
        if step.alone and self.reading != "marginal":
            each = self.rows(corpus, questions, answers, hits, gates, mode, closed_book=False)
            single = self._read_alone(*each, None if mode == "hard" else gates.read, hits)
        place = torch.searchsorted(unique, hits.clamp_min(0)).clamp_max(len(unique) - 1).to(q.device)
        stored_vectors = index.vectors[unique, :-1].to(passages)
        return Terms(
            prior_logp=prior,
            answer_logp=logp[:, :-1],
            closed_book_logp=logp[:, -1],
            token_logp=tokens[:, :-1],
            alone_logp=single,
            length=length,
            ids=hits,
            spans=corpus.spans.spans[hits.clamp_min(0)],
            question_rows=q,
            passage_rows=passages[place],
            gates=gates,
            tokens_kept=said.tokens_kept,
            staleness=1 - F.cosine_similarity(stored_vectors, passages.detach()[:, :-1]).mean(),
        )

    @torch.no_grad()
    def _reranked(
        self,
        corpus: Corpus,
        hits: Int[Tensor, "questions candidates"],
        q: Float[Tensor, "questions row"],
        said: Judgement,
        sparse: Float[Tensor, "questions corpus"] | None,
        step: Step,
    ) -> Int[Tensor, "questions {step.k}"]:
        """Of the passages found the K best by fresh scores, per question."""
        unique = hits[hits >= 0].unique()
        rows = self.encode(corpus, unique, *said.of(unique), step.mode)
        fresh = self.retriever.with_bm25(q @ rows.T, None if sparse is None else sparse[:, unique])
        return _best(fresh, unique, hits, step.k)

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
        prior_logp: Float[Tensor, "questions k"],
        step: Step,
    ) -> tuple[Float[Tensor, "questions k1 tokens"], Int[Tensor, " questions"]]:
        """log p of every answer token after every passage found and, last, after none, in one batched pass; and the
        answers' lengths in tokens.

        Passages read together are one event of probability P_K = Σ_{z∈K} p(z|x), so each is given log p(y|x,z_1…z_K):
        Σ_z p(z|x)·p(y|x,z_1…z_K) = P_K·p(y|x,z_1…z_K)."""
        mode, negligible, tail = step.mode, step.negligible, step.tail
        if self.reading != "marginal":
            with torch.set_grad_enabled(torch.is_grad_enabled() and negligible < 1):
                return self._read_together(corpus, questions, answers, ids, gates, prior_logp, step)
        rows, slots = self.rows(corpus, questions, answers, ids, gates, mode)
        bias = None
        if mode != "hard":
            bias, slots = competing(gates.read, slots, step.slope_limit)
        seat = F.pad(ids >= 0, (0, 1), value=True).to(prior_logp.device)  # last column: closed book
        some = partial(self._read_rows, rows, slots, bias)
        if 0 < negligible < 1 and torch.is_grad_enabled():
            rest = log_tail(prior_logp.detach()) if tail else prior_logp.new_full((len(ids),), -torch.inf)
            prior = torch.cat([prior_logp.detach(), rest[:, None]], 1)
            likely = (prior.softmax(1) >= SURE * negligible)[seat]
            with torch.no_grad():
                logp = some(~likely)
            logp = logp + some(likely)
            shares = (prior + _seated(logp.detach(), seat).sum(2)).softmax(1)
            small = (shares < negligible) & (shares < shares.max(1, keepdim=True).values)  # NaN is not small
            again = (~small)[seat] & ~likely
            held = sum(row.size for row, there in zip(rows, likely.tolist(), strict=True) if there)
            logp = torch.where(again[:, None], some(again, held), logp)
        else:
            learns = F.pad(torch.full_like(seat[:, 1:], negligible < 1), (0, 1), value=tail and negligible < 1)[seat]
            with torch.no_grad():
                logp = some(~learns)
            logp = logp + some(learns)
        last = seat.sum(1).cumsum(0) - 1  # a question's last row is the closed book
        return _seated(logp, seat), _lengths(rows).to(seat.device)[last]

    def _read_rows(
        self,
        rows: Sequence[Row],
        slots: Sequence[Lines | None],
        bias: Tensor | None,
        chosen: Bool[Tensor, " rows"],
        held: int = 0,
    ) -> Float[Tensor, "rows tokens"]:
        """log p of the answer tokens of these rows; 0 in the others, which aren't read."""
        where = chosen.nonzero()[:, 0]
        with self.autocast():
            logp = self.generator.token_log_likelihood(
                [rows[i] for i in where.tolist()], bias, [slots[i] for i in where.tolist()], held
            )
        table = logp.new_zeros(len(rows), max(len(row.ids) - row.prompt for row in rows))
        return table.index_put((where[:, None], torch.arange(logp.shape[1], device=where.device)), logp)

    @torch.no_grad()
    def _read_alone(
        self, rows: Sequence[Row], slots: Sequence[Lines | None], bias: Tensor | None, ids: Int[Tensor, "questions k"]
    ) -> Float[Tensor, "questions k tokens"]:
        """log p of every answer token after every passage found, each read by itself."""
        seat = (ids >= 0).to(self.device)
        return _seated(self._read_rows(rows, slots, bias, torch.ones_like(seat[seat])), seat)

    def _read_together(
        self,
        corpus: Corpus,
        questions: Sequence[str],
        answers: Sequence[str],
        ids: Int[Tensor, "questions k"],
        gates: Gates,
        prior_logp: Float[Tensor, "questions k"],
        step: Step,
    ) -> tuple[Float[Tensor, "questions k1 tokens"], Int[Tensor, " questions"]]:
        mode, limit = step.mode, step.slope_limit
        rows, bias, slots = self.fused_rows(corpus, questions, answers, ids, prior_logp, gates, mode, limit)
        closed, _ = self.rows(corpus, questions, answers, ids[:, :0], gates, mode)
        with self.autocast():
            logp = self.generator.token_log_likelihood(rows + closed, bias, [*slots, *[None] * len(closed)])
        fused, closed_logp = logp.chunk(2)
        together = fused[:, None].expand(-1, ids.shape[1], -1)
        missing = (ids < 0).to(fused.device)[:, :, None]
        tokens = torch.cat([together.masked_fill(missing, -torch.inf), closed_logp[:, None]], 1)
        return tokens, _lengths(closed).to(fused.device)


def _best(
    fresh: Float[Tensor, "questions found"],
    rows: Int[Tensor, " found"],
    hits: Int[Tensor, "questions candidates"],
    k: int,
) -> Int[Tensor, "questions k"]:
    """Each question's k best of its candidates by fresh scores; `fresh` has a column per row, ascending."""
    column = torch.searchsorted(rows, hits.clamp_min(0)).clamp_max(len(rows) - 1)
    score = fresh.cpu().gather(1, column).masked_fill(hits < 0, -torch.inf)
    return hits.gather(1, score.argsort(dim=1, descending=True, stable=True)[:, :k])


def _lengths(rows: Sequence[Row]) -> Int[Tensor, " rows"]:
    """Tokens of each row's answer."""
    return torch.tensor([len(row.ids) - row.prompt for row in rows])


def _seated(
    logp: Float[Tensor, "rows tokens"], seat: Bool[Tensor, "questions k1"]
) -> Float[Tensor, "questions k1 tokens"]:
    """Rows back in the table of questions and passages, −∞ where no passage was found."""
    table = logp.new_full((*seat.shape, logp.shape[1]), -torch.inf)
    return table.masked_scatter(seat[:, :, None], logp)
