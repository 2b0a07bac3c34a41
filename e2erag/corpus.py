"""Documents laid out for the three stages: lines numbered through, tokenised once for each encoder."""

from collections.abc import Sequence
from copy import copy
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2erag.extract import (
    READINGS,
    Document,
    Extraction,
    Extractor,
    LineTokens,
    Passage,
    distinct,
    layout_features,
    passage_at,
    table_texts,
)
from e2erag.generator import Generator
from e2erag.retriever import BM25, Retriever, Source, Spans

Lines = Int[np.ndarray, " _"]  # line numbers, as many as there are


class Corpus:
    """The lines of all documents, and the candidate passages over them.

    Line numbers run through the corpus: line i of document j is `first_line[j] + i`. What is tokenised are *texts*:
    those of the lines under the lines' own numbers, and behind them those of table lines in their other readings. Of
    what is trained, only the text features depend (until `look_up`), and the candidates where cuts are taken.
    """

    def __init__(self, documents: Sequence[Document], retriever: Retriever, generator: Generator | None = None) -> None:
        """Without a generator nothing is laid out to be read."""
        self.documents = list(documents)
        units = [unit for document in self.documents for unit in document.units]
        texts = [text for document in self.documents for text in document.texts]
        self.first_line = np.cumsum([0, *(len(document) for document in self.documents)])
        self.text_of: Int[np.ndarray, "readings lines"] = np.tile(np.arange(len(texts)), (len(READINGS), 1))
        for number, reading in enumerate(READINGS[1:], 1):
            for first, document in zip(self.first_line, self.documents, strict=False):
                put = table_texts(document, reading)
                self.text_of[number, first + np.fromiter(put, np.int64)] = len(texts) + np.arange(len(put))
                texts += put.values()
        self.strings = texts
        self.retriever_lines = retriever.passage.lines(texts)
        self.generator_lines = LineTokens(None, []) if generator is None else generator.prompt.lines(texts)
        self.tokenizer = retriever.passage.token_fingerprint()
        self.layout: Float[Tensor, "lines features"] = torch.from_numpy(
            np.concatenate([layout_features(document) for document in self.documents])
        )
        owner = np.repeat(np.arange(len(self.documents)), np.diff(self.first_line))
        page = np.asarray([unit.page for unit in units])
        self.page: Int[Tensor, " lines"] = torch.from_numpy(
            np.cumsum(np.diff(page, prepend=page[:1]).astype(bool) | np.diff(owner, prepend=owner[:1]).astype(bool))
        )
        self._candidates([], torch.zeros(0, 4, dtype=torch.long), 1.0)
        self.look_up(retriever)

    def look_up(self, retriever: Retriever) -> None:
        """Take the extractor's text features from the retriever's present word embeddings.

        They stay until the next call, so that a step and the index it searches judge lines by the same features."""
        self.text: Float[Tensor, "lines dim"] = retriever.passage.line_features(self.retriever_lines, len(self))

    def __len__(self) -> int:
        """Number of lines."""
        return int(self.first_line[-1])

    def joined(self, other: "Corpus") -> "Corpus":
        """The documents of both, each with the candidates it has, those of `other` behind."""
        new = copy(self)
        own, theirs = len(self), len(other)
        new.documents = self.documents + other.documents
        new.first_line = np.concatenate([self.first_line, own + other.first_line[1:]])
        # Lines first, then the other readings of table lines.
        new.text_of = np.concatenate(
            [
                self.text_of + theirs * (self.text_of >= own),
                other.text_of + np.where(other.text_of >= theirs, len(self.strings), own),
            ],
            axis=1,
        )
        new.strings = [*self.strings[:own], *other.strings[:theirs], *self.strings[own:], *other.strings[theirs:]]
        new.retriever_lines, new.generator_lines = (
            LineTokens.joined([(a, slice(own)), (b, slice(theirs)), (a, slice(own, None)), (b, slice(theirs, None))])
            for a, b in (
                (self.retriever_lines, other.retriever_lines),
                (self.generator_lines, other.generator_lines),
            )
        )
        new.layout = torch.cat([self.layout, other.layout])
        new.text = torch.cat([self.text, other.text.to(self.text.device)])
        new.page = torch.cat([self.page, other.page + self.page.max() + 1])
        behind = torch.tensor([len(self.documents), own, own, 0])
        spans = torch.cat([self.spans.spans, other.spans.spans + behind])
        new._candidates(self.passages + other.passages, spans, self.spans.overlap)
        return new

    def only(self, documents: Bool[np.ndarray, " documents"]) -> "Corpus":
        """These of its documents, each with the candidates it has."""
        new = copy(self)
        number = np.cumsum(documents) - 1
        sizes = np.diff(self.first_line)
        lines = np.repeat(documents, sizes)
        new.documents = [document for document, stays in zip(self.documents, documents, strict=True) if stays]
        new.first_line = np.cumsum([0, *sizes[documents]])
        texts = np.zeros(len(self.strings), bool)
        texts[self.text_of[:, lines]] = True
        new.text_of = (np.cumsum(texts) - 1)[self.text_of[:, lines]]
        new.strings = [text for text, stays in zip(self.strings, texts, strict=True) if stays]
        new.retriever_lines, new.generator_lines = (
            LineTokens.joined([(tokens, texts)]) for tokens in (self.retriever_lines, self.generator_lines)
        )
        here = torch.from_numpy(lines)
        new.layout, new.text = self.layout[here], self.text[here.to(self.text.device)]
        new.page = self.page[here].unique_consecutive(return_inverse=True)[1]
        owner = self.spans.spans[:, 0].numpy()
        moved = new.first_line[number] - self.first_line[:-1]  # of a document's lines
        shift = np.stack([number - np.arange(len(number)), moved, moved, 0 * moved], 1)[owner]
        stay = documents[owner]
        passages = [passage for passage, stays in zip(self.passages, stay, strict=True) if stays]
        spans = (self.spans.spans + torch.from_numpy(shift))[torch.from_numpy(stay)]
        new._candidates(passages, spans, self.spans.overlap)
        return new

    def _candidates(self, passages: list[Passage], spans: Int[Tensor, "passages 4"], overlap: float) -> None:
        """Take these in place of those before, and forget what was derived from those."""
        self.passages, self.spans = passages, Spans(spans, overlap)
        self._bm25: BM25 | None = None
        self._called: dict[str, list[int]] | None = None
        self._sources: list[Source] | None = None
        self._entries: tuple[Lines, Lines] | None = None

    def propose(
        self,
        extractor: Extractor,
        overlap: float,
        cuts: Bool[np.ndarray, " lines"] | None = None,
        kept: Bool[np.ndarray, " lines"] | None = None,
    ) -> None:
        """(Re)build the candidate passages, ordered by document and start."""
        passages, spans = [], []
        tokens = self.retriever_lines.sizes[self.text_of]
        for j, document in enumerate(self.documents):
            first = int(self.first_line[j])
            here = slice(first, first + len(document))
            own = [None if mask is None else mask[here] for mask in (cuts, kept)]
            for passage in extractor.propose(document, own[0], tokens[:, here], own[1]):
                passages.append(passage)
                spans.append((j, first + passage.start, first + passage.stop, READINGS.index(passage.reading)))
        self._candidates(passages, torch.tensor(spans, dtype=torch.long).reshape(-1, 4), overlap)

    def take(self, spans: Int[Tensor, "passages 4"], extractor: Extractor, overlap: float) -> None:
        """Candidates as they were proposed once, of which spans are all that is kept (`Spans`)."""
        passages = []
        for j, start, stop, reading in spans.tolist():
            first = int(self.first_line[j])
            carried = extractor.config.identity_lines
            passages.append(passage_at(self.documents[j], start - first, stop - first, reading, carried))
        self._candidates(passages, spans, overlap)

    def drop_repeated(self, left: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Drop the candidates that aren't `distinct` once lines are dropped."""
        keep = distinct(self.passages, left)
        passages = [passage for passage, kept in zip(self.passages, keep, strict=True) if kept]
        self._candidates(passages, self.spans.spans[torch.tensor(keep, dtype=torch.bool)], self.spans.overlap)

    def sources(self) -> list[Source]:
        """Documents with candidates as an index knows them: by a hash of the file; and by a hash of that, of its lines
        as the retriever reads them, and of its candidates. Worked out once for the same candidates."""
        if self._sources is not None:
            return self._sources
        spans, found = self.spans.spans.numpy(), []
        ends = np.searchsorted(spans[:, 0], np.arange(len(self.documents) + 1))
        for j, document in enumerate(self.documents):
            own = spans[ends[j] : ends[j + 1]] - [j, self.first_line[j], self.first_line[j], 0]
            if not len(own):
                continue
            texts = np.unique(self.text_of[:, self.first_line[j] : self.first_line[j + 1]])
            digest = blake2b(document.sha256.encode(), digest_size=16)
            for values in (*self.retriever_lines.gather(texts), own):
                digest.update(np.ascontiguousarray(values).data)
            found.append(Source(document.sha256, digest.hexdigest(), len(own)))
        self._sources = found
        return found

    @property
    def entries(self) -> tuple[Int[np.ndarray, " entries"], Int[np.ndarray, " ends"]]:
        """Candidates as `LineSums` has them: the slot of every line's gate, −1 behind each candidate's; and where each
        one's begin, behind them where the last one's end. Worked out once for the same candidates."""
        if self._entries is None:
            lines = map(self.lines, range(len(self.passages)))
            slots = [np.append(_slots(*each, len(self)), -1) for each in lines]
            self._entries = np.concatenate([np.zeros(0, np.int64), *slots]), np.cumsum([0, *map(len, slots)])
        return self._entries

    @property
    def bm25(self) -> BM25:
        """Over the candidates' texts as they are printed, gates left aside; built when it is first asked for."""
        if self._bm25 is None:
            self._bm25 = BM25([self.text_at(passage) for passage in range(len(self.passages))])
        return self._bm25

    def on_page(self, file: str, page: int) -> list[int]:
        """The passages with lines of their own on a page (from 1) of a file, named as in `is_called`."""
        if self._called is None:
            self._called = {}
            for number, document in enumerate(self.documents):
                for name in {document.name, document.file}:
                    self._called.setdefault(name, []).append(number)
        spans, on = self.spans.spans, torch.zeros(len(self.passages), dtype=torch.bool)
        for number in self._called.get(file, ()):
            units, first = self.documents[number].units, int(self.first_line[number])
            lines = [line for line, unit in enumerate(units, first) if unit.page == page]
            if lines:
                on |= (spans[:, 1] <= lines[-1]) & (spans[:, 2] > lines[0])
        return on.nonzero()[:, 0].tolist()

    def with_one_of(
        self, wanted: Sequence[Sequence[int]], asked: Sequence[str], hits: Int[Tensor, "questions k"]
    ) -> Int[Tensor, "questions k1"]:
        """The passages found and, behind them, the best by BM25 of those wanted, where none of these was found and it
        repeats none that was; else −1."""
        column = torch.full((len(hits), 1), -1)
        missed = [i for i, each in enumerate(wanted) if each and not set(each) & set(hits[i].tolist())]
        scores = self.bm25.scores([asked[i] for i in missed]) if missed else None
        for row, i in enumerate(missed):
            assert scores is not None
            ids = torch.tensor(wanted[i])
            ids = ids[scores[row, ids].argsort(descending=True, stable=True)]
            found = hits[i][hits[i] >= 0]
            own, others = self.spans.spans[ids], self.spans.spans[found]
            clash = self.spans.repeats(*torch.broadcast_tensors(own[:, None], others))
            fit = ids[~clash.any(1)]
            column[i] = fit[0] if len(fit) else -1
        return torch.cat([hits, column], 1)

    def lines(self, passage: int) -> tuple[Lines, int]:
        """A passage's line numbers (carried lines first), and how many of them are carried."""
        document, start, stop, _ = self.spans.spans[passage].tolist()
        carried = np.asarray(self.passages[passage].carried, np.int64) + self.first_line[document]
        return np.concatenate([carried, np.arange(start, stop)]), len(carried)

    def tokens_kept(self, gates: "Gates", lines: Int[Tensor, " lines"] | None = None) -> Float[Tensor, ""]:
        """The share of these lines' tokens (of all) that reading gates let through: Σ tokens·w / Σ tokens."""
        tokens = torch.from_numpy(self.generator_lines.sizes[: len(self)]).to(gates.read)
        read = gates.read[: len(self)]
        if lines is not None:
            tokens, read = tokens[lines.to(tokens.device)], read[lines.to(read.device)]
        return tokens @ read.exp() / tokens.sum()

    def texts(self, passage: int, lines: Lines) -> Lines:
        """The texts that these lines of a passage are read as: another than the line's own in a table's readings."""
        _, start, stop, reading = self.spans.spans[passage].tolist()
        if not reading:
            return lines
        return np.where((lines >= start) & (lines < stop), self.text_of[reading, lines], lines)

    def text_at(self, passage: int) -> str:
        """`Passage.text`, which would put a document's tables into words once more for every passage of one."""
        lines, _ = self.lines(passage)
        rows = [self.strings[text] for text in self.texts(passage, lines).tolist()]
        return "\n".join(row for row in rows if row)


def is_called(document: Document, file: str) -> bool:
    """Whether a bare name is a document's name, or a path its very path."""
    return file == (document.name if file == Path(file).name else document.file)


class Gates(NamedTuple):
    """log w of every line of the corpus, twice: first as a passage's own line, then as a line carried along."""

    retrieve: Float[Tensor, " slots"]
    read: Float[Tensor, " slots"]
    extraction: Extraction

    def slots(self, lines: Lines, carried: int) -> Lines:
        """Where the gates of a passage's lines stand, of which the first `carried` are carried."""
        return _slots(lines, carried, len(self.retrieve) // 2)

    def kept(self, gates: Float[Tensor, " slots"], lines: Lines, carried: int) -> Lines:
        """The lines whose gate is open: what is left of a passage in hard mode."""
        slots = torch.from_numpy(self.slots(lines, carried)).to(gates.device)
        return lines[(gates.detach()[slots] == 0).cpu().numpy()]


def _slots(lines: Lines, carried: int, count: int) -> Lines:
    """Of a corpus of so many lines."""
    return lines + count * (np.arange(len(lines)) < carried)
