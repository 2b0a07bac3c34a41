"""Candidate passages: the spans of a document that the sum over z runs over.

Windows of several sizes overlap on purpose: how to cut a page is a latent choice, made by the same sum
that chooses what to retrieve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from e2erag.extract.document import Document, Unit


@dataclass(frozen=True, slots=True)
class Passage:
    """The lines `start … stop − 1` of a document, with the lines that name the document carried along.

    Attributes:
        document: where it comes from.
        start, stop: its own lines, indices into `document.units`.
        carried: indices of the identity lines that travel with it (none that it holds itself).
    """

    document: Document
    start: int
    stop: int
    carried: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Passage({self.document.file!r}, page {self.page}, lines {self.start}–{self.stop - 1}: {self.text!r:.60})"
        )

    @property
    def units(self) -> tuple[Unit, ...]:
        """Carried lines first, then its own: the order in which both encoders read them."""
        units = self.document.units
        return tuple(units[i] for i in self.carried) + units[self.start : self.stop]

    @property
    def text(self) -> str:
        """Its lines as they are read on: words that a line's end hyphenates are whole (`Document.texts`)."""
        texts = self.document.texts
        return "\n".join(text for i in (*self.carried, *range(self.start, self.stop)) if (text := texts[i]))

    @property
    def page(self) -> int:
        """The page its own lines begin on, from 1."""
        return self.document.units[self.start].page

    @property
    def pages(self) -> frozenset[int]:
        """All pages that its own lines (not the carried ones) stand on."""
        return frozenset(unit.page for unit in self.document.units[self.start : self.stop])


def identity(document: Document, lines: int) -> tuple[int, ...]:
    """The first `lines` lines of the document: titles and numbers that later pages don't repeat.

    Which of them deserve to travel is learned (the extractor's carry gate)."""
    return tuple(range(min(lines, len(document.units))))


def propose(
    document: Document,
    sizes: Sequence[int],
    identity_lines: int = 0,
    cuts: Bool[np.ndarray, " units"] | None = None,
) -> list[Passage]:
    """Windows of each size over every page, half overlapping, no span twice, ordered by (start, stop).

    Args:
        document: any; a page without lines gives no candidate, and every line is in at least one.
        sizes: window lengths in lines; a page shorter than a size gives one window, the page.
        identity_lines: how many first lines of the document are carried by passages that don't hold them.
        cuts: where `cuts[i]` is true no passage runs across the gap before unit i: a window is split there.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be window lengths of at least one line, got {tuple(sizes)}")
    spans: set[tuple[int, int]] = set()
    first = 0
    for page in document.pages:
        n = len(page.units)
        for size in sizes if n else ():
            stride = max(size // 2, 1)
            for start in range(0, max(n - size, 0) + stride, stride):
                start = min(start, max(n - size, 0))  # the last window ends with the page
                spans.update(_split(first + start, first + min(start + size, n), cuts))
        first += n
    named = identity(document, identity_lines)
    return [
        Passage(document, start, stop, tuple(i for i in named if not start <= i < stop))
        for start, stop in sorted(spans)
    ]


def _split(start: int, stop: int, cuts: Bool[np.ndarray, " units"] | None) -> list[tuple[int, int]]:
    if cuts is None:
        return [(start, stop)]
    inside = start + 1 + np.flatnonzero(cuts[start + 1 : stop])
    edges = [start, *inside.tolist(), stop]
    return list(pairwise(edges))
