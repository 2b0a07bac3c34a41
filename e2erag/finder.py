"""What finds passages: extractor and retriever, and with them all that an index depends on."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from e2erag.corpus import Corpus, Gates, Lines
from e2erag.drawing import among
from e2erag.extract import CLOSED, Extractor, GateMode
from e2erag.precision import Precision, autocast
from e2erag.retriever import LineSums, Retriever
from e2erag.slopes import competing


class Finder(nn.Module):
    """Extractor and retriever: gates of lines, log π and rows of passages."""

    def __init__(self, extractor: Extractor, retriever: Retriever, precision: Precision = "auto") -> None:
        super().__init__()
        self.extractor, self.retriever = extractor, retriever
        self.precision: Precision = precision

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.extractor.gates.weight.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which it computes; see `e2erag.precision`."""
        return autocast(self.device, self.precision)

    def gates(
        self,
        corpus: Corpus,
        mode: GateMode,
        noise: torch.Generator | None = None,
        lines: Int[Tensor, " lines"] | None = None,
    ) -> Gates:
        """What the extractor says of every line; or of these lines alone, all of their pages and in order (the others'
        gates are shut, and the extraction is of these). Some ten thousand multiplications a line."""
        weight = self.extractor.gates.weight
        seen = [corpus.layout, corpus.text, corpus.page]
        layout, text, page = seen if lines is None else (each[lines.to(each.device)] for each in seen)
        out = self.extractor(
            layout.to(weight.device, weight.dtype), text.to(weight.device, weight.dtype), page.to(weight.device)
        )
        found = self.extractor.all_log_gates(out, mode, noise)
        if mode != "hard":
            found[1] = self.extractor.explored(found[1], noise)
        if lines is not None:
            found = [each.new_full((len(corpus),), CLOSED).index_copy(0, lines.to(each.device), each) for each in found]
        retrieve, read, carry = found
        return Gates(torch.cat([retrieve, carry]), torch.cat([read, carry + read]), out)

    def log_prior(
        self,
        corpus: Corpus,
        gates: Gates,
        passages: Int[Tensor, " passages"] | None = None,
        lines: Int[Tensor, " lines"] | None = None,
    ) -> Float[Tensor, " passages"]:
        """log π(z) of every candidate; or of these, where the extraction is of `lines`, on which they stand."""
        spans = corpus.spans.spans[:, 1:]
        if passages is not None and lines is not None:
            spans = among(spans[passages], lines)
        return self.extractor.log_prior(gates.extraction, spans.to(gates.read.device))

    def encode(
        self,
        corpus: Corpus,
        passages: Int[Tensor, " passages"],
        gates: Gates,
        log_prior: Float[Tensor, " corpus"],
        mode: GateMode,
        slope_limit: float = 0.0,
    ) -> Float[Tensor, "passages row"]:
        """Index rows of these passages; in hard mode the shut lines are gone, else they are turned down.

        Where gates act on pooling alone, a shut line is left out of the pooling, and the others have still seen it.

        Args:
            log_prior: log π of every candidate, from `log_prior`.
            slope_limit: see `Step`."""
        with self.autocast():
            if mode == "hard" and self.retriever.config.gates != "pool":
                lines = [corpus.lines(i) for i in passages.tolist()]
                kept = [gates.kept(gates.retrieve, *passage) for passage in lines]
                texts = [corpus.texts(*passage) for passage in zip(passages.tolist(), kept, strict=True)]
                vectors = self.retriever.encode_passages(corpus.retriever_lines, texts)
            else:
                texts, slots = self.gated_lines(corpus, passages, gates)
                retrieve, own = competing(gates.retrieve, slots, slope_limit)
                vectors = self.retriever.encode_passages(corpus.retriever_lines, texts, retrieve, own)
        return self.retriever.passage_rows(vectors, log_prior[passages])

    def gated_lines(
        self, corpus: Corpus, passages: Int[Tensor, " passages"], gates: Gates
    ) -> tuple[list[Lines], list[Lines]]:
        """Per passage all of its lines, as the texts they are read as, and the slots of their gates."""
        lines = [corpus.lines(i) for i in passages.tolist()]
        texts = [corpus.texts(i, own) for i, (own, _) in zip(passages.tolist(), lines, strict=True)]
        return texts, [gates.slots(*passage) for passage in lines]

    def line_sums(self, corpus: Corpus, passages: Int[Tensor, " passages"], gates: Gates) -> LineSums:
        """These passages' lines, encoded once for any gates; `gates` only say where each line's stands."""
        texts, slots = self.gated_lines(corpus, passages, gates)
        with self.autocast():
            return self.retriever.passage.line_sums(corpus.retriever_lines, texts, slots)
