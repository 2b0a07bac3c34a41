"""A page as the extractor sees it: per line its gates and the cut before it, per candidate its prior."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from e2erag.corpus import Gates
from e2erag.extract import READINGS, Document, Extractor, Page, Reading
from e2erag.rag import RAG

Gate = Literal["read", "retrieve", "carry"]
"""What the generator sees of a line, what the passage vectors hold of it, whether it travels with other passages."""
GATES: dict[str, str] = {"read": "reading", "retrieve": "finding", "carry": "carrying"}
"""In words."""


class Span(NamedTuple):
    """A candidate on a page, or the part of it there.

    Attributes:
        start, stop: its lines, counted on the page; below 0 and beyond the page's lines where it begins or goes on on
            another one.
        prior: log π.
        reading: how it puts its lines (`READINGS`).
    """

    start: int
    stop: int
    prior: float
    reading: Reading


class PageView(NamedTuple):
    """What the extractor says of a page's lines, as numbers in [0, 1].

    Attributes:
        document: that the page is of.
        page: itself.
        gates: of each line its soft gate, by name (`Gate`): 1 where gates start. See `kept_above`.
        cut: of the gap before each line.
        kept: whether hard mode keeps the line for finding or for reading it.
        taken: whether hard mode cuts before it.
        spans: the candidates that have lines on the page; of a page without lines none.
    """

    document: Document
    page: Page
    gates: dict[str, Float[np.ndarray, " lines"]]
    cut: Float[np.ndarray, " lines"]
    kept: np.ndarray
    taken: np.ndarray
    spans: list[Span]


@torch.no_grad()
def kept_above(extractor: Extractor, gate: str) -> float:
    """The soft gate beyond which hard mode keeps a line: where σ(logit) is the threshold. Soft gates are stretched to 1
    where they start (`Extractor.log_gates`), so it is .61 where the threshold is .5."""
    c = extractor.config
    if c.chunk is not None:
        return 0.0
    threshold = c.carry_threshold if gate == "carry" else c.threshold
    logit = torch.logit(torch.tensor([threshold], device=extractor.temperature.device))
    return float(extractor.log_gates(logit, "soft").exp())


@torch.no_grad()
def look_at(rag: RAG, file: str, page: int, every: Gates | None = None) -> PageView:
    """The extractor's view of a page of an indexed document.

    Args:
        file: a document's name or path, as it was indexed.
        page: from 1.
        every: the soft gates of the whole corpus, where several pages are looked at; computed where not given.

    Raises:
        RuntimeError: nothing is indexed.
        ValueError: no such document or page.
    """
    if rag.corpus is None:
        raise RuntimeError("nothing is indexed yet: call index(files) first")
    corpus, extractor = rag.corpus, rag.model.extractor
    paths = [document.file for document in corpus.documents]
    names = [document.name for document in corpus.documents]
    if file not in paths and Path(file).name not in names:
        raise ValueError(f"{file} is not indexed; there are {', '.join(names)}")
    j = paths.index(file) if file in paths else names.index(Path(file).name)
    document = corpus.documents[j]
    if not 1 <= page <= len(document.pages):
        raise ValueError(f"{file} has pages 1 to {len(document.pages)}, got {page}")
    sheet = document.pages[page - 1]
    first = int(corpus.first_line[j]) + sum(len(p.units) for p in document.pages[: page - 1])
    here = slice(first, first + len(sheet.units))
    every = every or rag.model.gates(corpus, "soft")
    out = every.extraction
    gates = {name: extractor.log_gates(getattr(out, name)[here], "soft").exp().cpu().numpy() for name in GATES}
    hard = [extractor.log_gates(getattr(out, name)[here], "hard").cpu().numpy() == 0 for name in ("read", "retrieve")]
    cut, taken = torch.sigmoid(out.cut[here]).cpu().numpy(), extractor.taken(out.cut[here]).cpu().numpy()
    prior = rag.model.log_prior(corpus, every)
    table = corpus.spans.spans
    on = (table[:, 1] < here.stop) & (table[:, 2] > here.start) & bool(sheet.units)
    spans = [
        Span(start - first, stop - first, float(prior[i]), READINGS[reading])
        for i, (_, start, stop, reading) in zip(on.nonzero()[:, 0].tolist(), table[on].tolist(), strict=True)
    ]
    return PageView(document, sheet, gates, cut, np.logical_or(*hard), taken, spans)
