"""Candidate passages: the spans of a document that the sum over z runs over.

Windows of several sizes, blocks, sections, pages and tables overlap on purpose: how to cut a page, and how to read a
table, is a latent choice, made by the same sum that chooses what to retrieve.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from e2erag.extract.document import Document, Page, Unit

Reading = Literal["lines", "rows", "sentences"]
READINGS: tuple[Reading, ...] = ("lines", "rows", "sentences")
"""How a passage's own lines are put: as printed, or (tables) as "cell | cell", or as "header: value" sentences."""

Kind = Literal["block", "section", "page", "table"]
KINDS: tuple[Kind, ...] = ("block", "section", "page", "table")
"""What is proposed beside windows."""
PROPOSAL_VERSION = 4
"""Of what is proposed: goes up when the same lines and settings may give other candidates, or other texts of them."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The lines `start … stop − 1` of a document, with the lines that name the document carried along.

    Attributes:
        document: where it comes from.
        start, stop: its own lines, indices into `document.units`.
        carried: indices of the identity lines that travel with it (none that it holds itself).
        reading: how its own lines are put; see `READINGS`.
    """

    document: Document
    start: int
    stop: int
    carried: tuple[int, ...] = ()
    reading: Reading = "lines"

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
        """All of its lines, a line per unit, whatever gates say of them: words that a line's end hyphenates are whole
        (`Document.texts`)."""
        texts = self.document.texts
        own = texts if self.reading == "lines" else table_texts(self.document, self.reading)
        rows = [texts[i] for i in self.carried] + [own[i] for i in range(self.start, self.stop)]
        return "\n".join(row for row in rows if row)

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

    Which of them deserve to travel is learned (the extractor's carry gate). They are a quarter of the document at most:
    were all of a short one's to travel, its passages would be alike to whoever looks for one."""
    return tuple(range(min(lines, len(document.units) // 4)))


def table_texts(document: Document, reading: Reading) -> dict[int, str]:
    """The text of every unit that stands in a table, as `reading` ("rows" or "sentences") puts it."""
    from e2erag.extract.tables import as_rows, as_sentences

    put = as_rows if reading == "rows" else as_sentences
    return {first + i: text for first, table in document.tables for i, text in enumerate(put(table))}


def propose(
    document: Document,
    sizes: Sequence[int],
    identity_lines: int = 0,
    cuts: Bool[np.ndarray, " units"] | None = None,
    kinds: Sequence[Kind] = (),
    tokens: Int[np.ndarray, "*readings units"] | None = None,
    max_tokens: int | None = None,
    max_per_page: int | None = None,
    kept: Bool[np.ndarray, " units"] | None = None,
) -> list[Passage]:
    """Overlapping spans of a document, none twice, ordered by (start, stop, reading); every line is in at least one.

    Args:
        document: any; a page without lines gives no candidate.
        sizes: window lengths in lines, each half overlapping; a page shorter than a size gives one window, the page.
        identity_lines: how many first lines of the document, of a quarter at most, are carried by passages that don't
            hold them.
        cuts: where `cuts[i]` is true no passage runs across the gap before unit i: windows begin anew there, and
            what else would run across is split.
        kinds: what to propose beside windows; "table" gives two readings of each table, besides its lines.
        tokens: tokens of each line, or of each in each of `READINGS`, for the bound; without them four characters count
            as one.
        max_tokens: of a passage, what it carries included. A longer window, block or table is split at lines, a
            longer section or page isn't proposed; a single longer line stays.
        max_per_page: of candidates that begin on a page: where there are more, its smallest windows are thinned.
        kept: lines that are not dropped. Only they count: a window of eight lines spans eight of them, however many
            dropped ones stand between, and a line that is dropped needn't be in any passage.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be window lengths of at least one line, got {tuple(sizes)}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds are {', '.join(KINDS)}, got {', '.join(unknown)}")
    named = identity(document, identity_lines)
    texts = document.texts
    if tokens is None:
        tokens = _estimated(document, "table" in kinds)
    tokens = np.broadcast_to(tokens, (len(READINGS), len(document)))
    counted = tokens if kept is None else np.where(kept, tokens, 0)
    totals = np.pad(np.cumsum(counted, 1), ((0, 0), (1, 0)))
    bound = None if max_tokens is None else max(max_tokens - int(tokens[0, list(named)].sum()), max_tokens // 2)
    spans: set[tuple[int, int, int]] = set()
    for whole, reading, start, stop in _spans(document, sizes, cuts, kinds, kept):
        total = totals[reading]
        if whole and bound is not None and total[stop] - total[start] > bound:
            continue
        for a, b in _split(start, stop, cuts):
            spans.update((x, y, reading) for x, y in _fitted(a, b, total, bound) if any(texts[x:y]))
    chosen = sorted(spans) if max_per_page is None else _thinned(sorted(spans), document, max_per_page)
    return [passage_at(document, start, stop, reading, identity_lines) for start, stop, reading in chosen]


def _estimated(document: Document, tables: bool) -> Int[np.ndarray, "readings units"]:
    """Four characters are a token."""
    sizes = np.tile([-(-len(text) // 4) for text in document.texts], (len(READINGS), 1)).astype(np.int64)
    for number, reading in enumerate(READINGS[1:] if tables else (), 1):
        for i, text in table_texts(document, reading).items():
            sizes[number, i] = -(-len(text) // 4)
    return sizes


def passage_at(document: Document, start: int, stop: int, reading: int, identity_lines: int) -> Passage:
    """A span as a passage, with the identity lines that it doesn't hold itself; `reading` is a number in `READINGS`."""
    carried = tuple(i for i in identity(document, identity_lines) if not start <= i < stop)
    return Passage(document, start, stop, carried, READINGS[reading])


def distinct(passages: Sequence[Passage], left: Sequence[Sequence[tuple[int, ...]]]) -> list[bool]:
    """Which passages stay once lines are dropped: of those left with the same lines in one reading the first, and none
    of which nothing is left to find, whatever there is to read.

    Args:
        left: per passage, the numbers of its own lines that are left for finding it and for reading it.
    """
    keys = [(*lines, passage.reading) for lines, passage in zip(left, passages, strict=True)]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    return [bool(lines[0]) and first[key] == i for i, (lines, key) in enumerate(zip(left, keys, strict=True))]


def check_chunk(size: int, overlap: int) -> None:
    """Raises TypeError or ValueError where no chunks can be made so."""
    for name, value in (("size", size), ("overlap", overlap)):
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"a chunk's {name} is a whole number of tokens, got {value!r}")
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"a chunk has at least one token and overlaps by less than itself, got {size} and {overlap}")


def chunks(document: Document, size: int, overlap: int, tokens: Int[np.ndarray, " units"] | None) -> list[Passage]:
    """The ordinary fixed chunker: whole lines up to `size` tokens, over page ends, `overlap` tokens in common."""
    check_chunk(size, overlap)
    n = len(document)
    if tokens is None:
        tokens = _estimated(document, tables=False)[0]
    total = np.concatenate([[0], np.cumsum(tokens)])
    passages, start = [], 0
    while start < n:
        stop = max(int(np.searchsorted(total, total[start] + size, side="right")) - 1, start + 1)
        passages.append(Passage(document, start, stop))
        if stop == n:
            break
        start = max(int(np.searchsorted(total, total[stop] - overlap, side="left")), start + 1)
    return passages


def _pages(document: Document) -> Iterator[tuple[int, Page]]:
    """Pages with lines, and the number of their first unit in the document."""
    first = 0
    for page in document.pages:
        if page.units:
            yield first, page
        first += len(page.units)


def _spans(
    document: Document,
    sizes: Sequence[int],
    cuts: Bool[np.ndarray, " units"] | None,
    kinds: Sequence[Kind],
    kept: Bool[np.ndarray, " units"] | None,
) -> Iterator[tuple[bool, int, int, int]]:
    """Whether it counts only as a whole, the reading's number, start and stop."""
    heads: list[int] = []
    for first, page in _pages(document):
        n = len(page.units)
        for start, stop in _split(first, first + n, cuts):  # windows begin anew at a cut
            here = np.arange(start, stop) if kept is None else start + np.flatnonzero(kept[start:stop])
            for size in sizes if len(here) else ():
                yield from ((False, 0, int(here[a]), int(here[b - 1]) + 1) for a, b in _windows(len(here), size))
        starts = [first + i for i in block_starts(page)]
        if "block" in kinds:
            yield from ((False, 0, a, b) for a, b in pairwise([*starts, first + n]))
        if "page" in kinds:
            yield True, 0, first, first + n
        heads += [i for i in starts if _is_heading(document, i)]
    if "table" in kinds:
        for first, table in document.tables:
            yield from ((False, r, first, first + table.stop - table.start) for r in range(len(READINGS)))
    if "section" in kinds and heads:
        yield from ((True, 0, a, b) for a, b in pairwise([*heads, len(document)]))


def _windows(lines: int, size: int) -> Iterator[tuple[int, int]]:
    last = max(lines - size, 0)
    stride = max(size // 2, 1)
    for at in range(0, last + stride, stride):
        at = min(at, last)  # the last window ends with the page
        yield at, min(at + size, lines)


def block_starts(page: Page) -> list[int]:
    """Where the blocks of a page begin: after a wider gap than usual, in another size, or in another column."""
    units = page.units
    if not units:
        return []
    gaps = [below.box.y0 - above.box.y1 for above, below in pairwise(units)]
    usual = float(np.median([gap for gap in gaps if gap > -units[0].font_size] or [0.0]))
    starts = [0]
    for i, (gap, (above, below)) in enumerate(zip(gaps, pairwise(units), strict=True), 1):
        size = max(below.font_size, above.font_size) or 1.0
        apart = gap > usual + 0.3 * size or gap < -1.5 * size
        if apart or abs(below.font_size - above.font_size) > 0.15 * size or below.heading != above.heading:
            starts.append(i)
    return starts


def _is_heading(document: Document, i: int) -> bool:
    """Whether a section begins at a block: the format says so, or a short line is larger or bolder than the next."""
    units = document.units
    if units[i].heading:
        return True
    if i + 1 >= len(units) or len(units[i].text) > 100 or units[i].cells:
        return False
    here, after = units[i], units[i + 1]
    return here.font_size > 1.1 * after.font_size or (here.bold and not after.bold)


def _split(start: int, stop: int, cuts: Bool[np.ndarray, " units"] | None) -> list[tuple[int, int]]:
    if cuts is None:
        return [(start, stop)]
    inside = start + 1 + np.flatnonzero(cuts[start + 1 : stop])
    edges = [start, *inside.tolist(), stop]
    return list(pairwise(edges))


def _fitted(start: int, stop: int, total: Int[np.ndarray, " n"], bound: int | None) -> Iterator[tuple[int, int]]:
    """The span in pieces of at most `bound` tokens."""
    while bound is not None and total[stop] - total[start] > bound and stop - start > 1:
        end = max(int(np.searchsorted(total, total[start] + bound, side="right")) - 1, start + 1)
        yield start, end
        start = end
    yield start, stop


def _thinned(spans: list[tuple[int, int, int]], document: Document, limit: int) -> list[tuple[int, int, int]]:
    """About `limit` spans that begin on a page: the shortest go first, and of one length every other one.

    A span that alone holds a line stays: coverage comes before the bound."""
    units = document.units
    by_page: dict[int, list[tuple[int, int, int]]] = {}
    for span in spans:
        by_page.setdefault(units[span[0]].page, []).append(span)
    kept: list[tuple[int, int, int]] = []
    for here in by_page.values():
        low, high = here[0][0], max(stop for _, stop, _ in here)
        held = np.zeros(high - low, np.int64)
        for start, stop, _ in here:
            held[start - low : stop - low] += 1
        gone: set[tuple[int, int, int]] = set()
        for _, _, span in sorted((b - a, i % 2 == 0, (a, b, r)) for i, (a, b, r) in enumerate(here)):
            if len(here) - len(gone) <= limit:
                break
            own = slice(span[0] - low, span[1] - low)
            if (held[own] > 1).all():
                held[own] -= 1
                gone.add(span)
        kept += [span for span in here if span not in gone]
    return kept
