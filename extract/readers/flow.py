"""Sets what has no pages on nominal pages: headings, paragraphs, lists and tables become lines with boxes.

The sheet is Letter, 612 × 792 points, in 12-point type with a line every 14 points; all inside the margins where
running headers would stand. A reader of a format gives its blocks in order, everything about looks is decided here.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from e2erag.extract.document import Box, Cell, Document, Page, ReadError, Unit
from e2erag.extract.readers.lines import clean

WIDTH, HEIGHT = 612.0, 792.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 558.0, 56.0, 736.0
SIZE = 12.0
LEADING = 14 / 12  # from baseline to baseline, in ems
ADVANCE = 0.46  # width of a letter in ems: 91 letters a line
INDENT = 18.0
HEADINGS = (24.0, 20.0, 17.0, 15.0, 13.0, 12.0)  # font sizes by level
DEEPEST = 12  # levels of indentation that are shown

SHORT = 120  # characters: a preformatted line so long stays one line
LONGEST = 900  # characters: what is longer is no word and may be broken anywhere
BLANK = re.compile(r" {3,}")  # in a preformatted line: a new cell

CELL_GAP = 2.0  # ems between columns
CELL_WIDE = 60  # characters: a longer cell is wrapped in its column
MOST = 200  # columns of a table; what stands further right goes into the last one
RULES = 2000  # lines drawn on a page
CELL_LINES = 12  # lines that a row may be high
SMALLEST = 6.0  # points: a wide table is set smaller, but not below that

_WIDE = (
    "\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
    "\U00020000-\U0003ffff"
)
_AFTER = "、。，．：；！？）］｝」』】〉》〕’”)\\]}.,:;!?%"  # never begin a line
_TOKEN = re.compile(rf" ?(?:[{_WIDE}][{_AFTER}]*|[^ {_WIDE}]{{1,{LONGEST}}})")
_HIDDEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


@dataclass(frozen=True, slots=True)
class Text:
    """A heading, a paragraph, a list item or a part of one, to be wrapped.

    Attributes:
        text: may hold any white space, which counts as one space.
        heading: its level, 1 to 6; 0 if it is none.
        indent: how many levels to the right it stands.
        marker: what hangs to the left of it ("•", "3."), for the first part of a list item.
        bold: whether most of it is.
        tight: no blank line above it.
    """

    text: str
    heading: int = 0
    indent: int = 0
    marker: str = ""
    bold: bool = False
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Pre:
    """Lines that stay lines, with their indentation; three spaces or a tab begin a new cell. An empty one is a gap.

    `code` is whether the format says so, rather than that a file of plain text has lines.
    """

    lines: tuple[str, ...]
    indent: int = 0
    code: bool = False


class Spot(NamedTuple):
    """A cell of a table row over so many columns."""

    text: str
    span: int = 1
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells from the left; a row becomes one line, columns are as wide as their cells.

    Attributes:
        rows: from top to bottom.
        ruled: whether lines are drawn around the cells.
    """

    rows: tuple[tuple[Spot, ...], ...]
    ruled: bool = True


@dataclass(frozen=True, slots=True)
class Break:
    """A new page."""


Block = Text | Pre | Table | Break
Place = tuple[float, float]  # from where to where a column reaches


def document(
    path: str | Path, data: bytes, blocks: Iterable[Block], reader: str, title: str = "", nothing: str = "has no text"
) -> Document:
    """The blocks set on pages.

    Raises:
        ReadError: there is not one word in them; `nothing` says so, with the way out.
    """
    pages = set_on_pages(blocks)
    if not any(page.units for page in pages):
        raise ReadError(path, nothing)
    return Document(str(path), hashlib.sha256(data).hexdigest(), pages, tidy(title), reader)


def set_on_pages(blocks: Iterable[Block]) -> tuple[Page, ...]:
    """Pages with the words of the blocks, all of them and in order. Pages are numbered from 1; none is empty."""
    sheet = _Sheet()
    for block in blocks:
        if isinstance(block, Text):
            sheet.text(block)
        elif isinstance(block, Pre):
            sheet.pre(block)
        elif isinstance(block, Table):
            sheet.table(block)
        else:
            sheet.turn()
    sheet.turn()
    return tuple(sheet.pages)


def tidy(text: str) -> str:
    """The text single-spaced, as lines of a PDF are; without the marks where a word may be broken."""
    return clean(text.translate(_HIDDEN))


def columns(text: str) -> int:
    """How many letters wide the text is: a Chinese character is two."""
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrap(text: str, room: int) -> list[str]:
    """Lines of at most `room` letters, broken at spaces and between Chinese characters, never within a word.

    A longer word stands alone. No line ends in a hyphen, which would read as a broken word.
    """
    if len(text) * 2 <= room:
        return [text]
    lines: list[str] = []
    line, used = "", 0
    for token in _TOKEN.findall(text):
        wide = columns(token)
        if line and used + wide > room and not line.endswith("-"):
            lines.append(line)
            line, used = token.lstrip(" "), columns(token.lstrip(" "))
        else:
            line, used = line + token, used + wide
    return [*lines, line] if line else lines


class _Sheet:
    """Where the pen is, and the pages so far."""

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.units: list[Unit] = []
        self.rules: list[Box] = []
        self.y = TOP  # of the next line's top

    def turn(self) -> None:
        """A new page, unless nothing stands on this one."""
        if self.units:
            self.pages.append(Page(len(self.pages) + 1, WIDTH, HEIGHT, tuple(self.units), tuple(self.rules)))
        self.units, self.rules, self.y = [], [], TOP

    def gap(self) -> None:
        if self.units and self.y > TOP:
            self.y += SIZE * LEADING

    def room(self, height: float) -> None:
        """Turns the page where `height` points don't fit on it."""
        if self.y + height > BOTTOM:
            self.turn()

    def line(self, text: str, x: float, x1: float, size: float = SIZE, bold: bool = False, heading: int = 0) -> None:
        """A line of text at the pen, from `x` to `x1` or the margin."""
        self.room(size)
        box = Box(*(round(v, 2) for v in (x, self.y, max(min(x1, RIGHT), x + 1), self.y + size)))
        self.put(Unit(text, 0, 0, box, size, bold, (), heading))
        self.y += size * LEADING

    def put(self, unit: Unit) -> None:
        self.units.append(unit._replace(page=len(self.pages) + 1, line=len(self.units) + 1))

    def rule(self, box: Box) -> None:
        """A ruling line, which goes on in the one that ends where it begins."""
        box = Box(*(round(v, 2) for v in box))
        for i in range(len(self.rules) - 1, max(len(self.rules) - 2 * MOST, 0) - 1, -1):
            above = self.rules[i]
            if (above.x0, above.x1) == (box.x0, box.x1) and abs(box.y0 - above.y0) < 0.6:
                return  # the bottom of the row above
            if (above.x0, above.x1) == (box.x0, box.x1) and box.y1 - box.y0 > 1 and abs(above.y1 - box.y0) < 0.6:
                self.rules[i] = above.union(box)
                return
        if len(self.rules) < RULES:
            self.rules.append(box)

    def text(self, block: Text) -> None:
        text = tidy(block.text)
        if not text:
            return
        if not block.tight:
            self.gap()
        size = HEADINGS[min(block.heading, 6) - 1] if block.heading else SIZE
        bold = block.bold or block.heading > 0
        x = LEFT + INDENT * min(block.indent, DEEPEST)
        letter = ADVANCE * size
        hang = f"{tidy(block.marker)} " if block.marker else ""
        for i, line in enumerate(wrap(hang + text, int((RIGHT - x) / letter))):
            at = max(x - INDENT, LEFT) if hang and not i else x
            self.line(line, at, at + columns(line) * letter, size, bold, min(block.heading, 6))

    def pre(self, block: Pre) -> None:
        lines = [line.expandtabs(8).replace("\xa0", " ").rstrip() for line in block.lines]
        x = LEFT + INDENT * min(block.indent, DEEPEST)
        longest = max((columns(line) for line in lines if len(line) <= SHORT), default=0)
        letter = min(ADVANCE * SIZE, (RIGHT - x) / max(longest, 1))
        self.gap()
        blank = True
        for line in lines:
            if not tidy(line):
                if not blank:
                    self.gap()
                blank = True
                continue
            blank = False
            if len(line) > SHORT:
                room = int((RIGHT - x) / (ADVANCE * SIZE))
                for part in wrap(tidy(line), room):
                    self.line(part, x, x + columns(part) * ADVANCE * SIZE)
                    self.units[-1] = self.units[-1]._replace(code=block.code)
            else:
                text, cells, start = _cells(line, x, letter)
                self.line(text, start, x + columns(line) * letter)
                self.units[-1] = self.units[-1]._replace(cells=cells, code=block.code)

    def table(self, table: Table) -> None:
        texts = [[(tidy(spot.text), spot) for spot in row] for row in table.rows]
        rows = [row for row in texts if any(text for text, _ in row)]
        if not rows:
            return
        self.gap()
        places, size = _columns(rows)
        pad = CELL_GAP * size / 2
        edges = [places[0][0] - pad, *((a[1] + b[0]) / 2 for a, b in pairwise(places)), places[-1][1] + pad]
        for row in rows:
            self.row(row, places, edges if table.ruled else [], size)

    def row(self, row: Sequence[tuple[str, Spot]], places: list[Place], edges: list[float], size: float) -> None:
        """A table row as one line of text, as high as its highest cell would be."""
        parts: list[str] = []
        cells: list[Cell] = []
        walls = {0, len(places)}
        at = column = strong = 0
        high = 1
        for text, spot in row:
            stop = min(column + spot.span, len(places))
            walls |= {min(column, stop), stop}
            if text:
                x0, x1 = places[min(column, len(places) - 1)][0], places[stop - 1][1]
                wide = columns(text) * ADVANCE * size
                high = max(high, math.ceil(wide / max(x1 - x0, 1.0) - 0.01))
                cells.append(Cell(at, at + len(text), round(x0, 2), round(min(x1, x0 + wide), 2)))
                parts.append(text)
                at += len(text) + 1
                strong += len(text) * (1 if spot.bold else -1)
            column = stop
        height = (min(high, CELL_LINES) - 1) * size * LEADING + size
        self.room(height + size * LEADING / 2)
        top = self.y - size * (LEADING - 1) / 2
        x0, x1 = cells[0].x0, cells[-1].x1
        box = Box(x0, round(self.y, 2), x1, round(self.y + height, 2))
        kept = tuple(cells) if len(cells) > 1 else ()
        self.put(Unit(" ".join(parts), 0, 0, box, size, strong > 0, kept))
        self.y += height + size * (LEADING - 1) + 0.25 * size * bool(edges)
        below = self.y - size * (LEADING - 1) / 2
        if edges:
            for y in (top, below):
                self.rule(Box(edges[0], y - 0.25, edges[-1], y + 0.25))
            for wall in sorted(walls):
                self.rule(Box(edges[wall] - 0.25, top, edges[wall] + 0.25, below))


def _cells(line: str, x: float, letter: float) -> tuple[str, tuple[Cell, ...], float]:
    """A preformatted line's text, its cells if it has several, and where it begins."""
    parts: list[tuple[str, int, int]] = []  # text, and the columns from where to where
    at = 0
    for piece in BLANK.split(line):
        begin = line.index(piece, at)
        at = begin + len(piece)
        if text := tidy(piece):
            first = columns(line[:begin]) + len(piece) - len(piece.lstrip())
            parts.append((text, first, columns(line[:at])))
    start = x + parts[0][1] * letter
    cells: list[Cell] = []
    used = 0
    for text, first, last in parts:
        cells.append(Cell(used, used + len(text), round(x + first * letter, 2), round(x + last * letter, 2)))
        used += len(text) + 1
    return " ".join(text for text, _, _ in parts), tuple(cells) if len(cells) > 1 else (), start


def _columns(rows: Sequence[Sequence[tuple[str, Spot]]]) -> tuple[list[Place], float]:
    """From where to where each column reaches, and the font size at which they fit on the sheet."""
    count = min(max(sum(spot.span for _, spot in row) for row in rows), MOST)
    wide = [2] * count
    for row in rows:
        column = 0
        for text, spot in row:
            if spot.span == 1:
                at = min(column, count - 1)
                wide[at] = max(wide[at], min(columns(text), CELL_WIDE))
            column += spot.span
    for row in rows:  # a cell over several columns makes its last one wider
        column = 0
        for text, spot in row:
            lacks = min(columns(text), CELL_WIDE) - sum(wide[column : column + spot.span])
            column += spot.span
            wide[min(column, count) - 1] += max(lacks, 0) if spot.span > 1 else 0
    ems = ADVANCE * sum(wide) + CELL_GAP * (count - 1)
    size = max(SMALLEST, min(SIZE, (RIGHT - LEFT) / ems))
    scale = min(size, (RIGHT - LEFT) / ems)  # below `size`, the columns are narrower than what is in them
    places, x = [], LEFT
    for letters in wide:
        places.append((x, x + letters * ADVANCE * scale))
        x += (letters * ADVANCE + CELL_GAP) * scale
    return places, round(size, 2)
