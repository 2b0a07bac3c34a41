"""Shown strings → lines: what a reader of a file format does last. Nothing here knows PDF.

A run goes on a line while it stands on the line's baseline, to the right of its end. So two columns of prose stay in
the order in which they were written, and a table that was written row by row becomes one line per row.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from e2erag.extract.document import Box, Cell, Unit
from e2erag.extract.readers.tex import composed

# All in ems: in units of the font size.
SPACE = 0.13  # a wider gap between glyphs is a space; kerning stays below 0.1, TeX's thin space is 0.17
CELL = 1.6  # a wider gap begins a new cell
BACK = 0.6  # how far a run may step back on its own line (kerning, accents set over a letter)
RAISED = 0.45  # how far a baseline may be off on one line (sub- and superscripts)

RECENT = 4  # how many lines back a run may go on: a table cell of so many lines may stand before the row's next cell

# NFKC opens ligatures (ﬁ), but it would also put spaces into words (´ becomes a space and a combining accent)
# and change numbers (7½ becomes 71⁄2, 10² becomes 102): these characters stay.
_KEPT = re.compile(r"([´¨¯¸˘-˝²³¹⁰-₟¼-¾⅐-⅟]+)")
# TeX sets an accent and then, over or under it, its letter; NFKC composes what `clean` makes of the two.
_COMBINING = {
    "´": "\u0301", "¨": "\u0308", "¯": "\u0304", "ˆ": "\u0302", "ˇ": "\u030c",
    "˘": "\u0306", "˙": "\u0307", "˚": "\u030a", "˜": "\u0303", "˝": "\u030b",
}  # fmt: skip
ACCENTS = frozenset(["¸", *_COMBINING])
_DOTLESS = {"ı": "i", "ȷ": "j"}
# ... but not where ´ is an apostrophe ("it´s", "п´ять"). In formulas Greek letters have some, and a dot over ∪ says
# that it is of disjoint sets.
_LATIN, _FORMULA = "A-Za-zıȷ", "Α-Ωα-ω∪"
_ACCENT = re.compile(
    f"([{''.join(_COMBINING)}])(?!(?:s|t|d|m|ll|re|ve)\\b|[{_FORMULA}])([{_LATIN}])|([¯ˆˇ˘˙˜])([{_FORMULA}])"
)
_UNDER_ACCENT = re.compile(f"[{_LATIN}{_FORMULA}]")
_CEDILLA = re.compile("([CcSsTt])¸")
# "Introduction ........ 5": what leads the eye is no word.
_LEADER = re.compile(r"(?:[.·․‥…]\s?){5,}")
# Codes that mean something in one font only: bullets, logos.
PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010fffd]")
# Characters beyond 16 bits come as two halves from PDFium. A font's table may name one half, which no encoding takes.
HALVES = re.compile("[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")
_CONTROL = dict.fromkeys([*range(9), *range(14, 32), *range(127, 160), 0xFEFF, 0xFFFE])
# Adobe has codes of its own for old-style digits and ȷ.
_INSTEAD = _CONTROL | {0xAD: "-", 0xF6BE: "ȷ"} | {0xF730 + i: str(i) for i in range(10)}


class Face(NamedTuple):
    """How a font looks: how far its letters reach above and below the baseline, in ems, and whether it is bold."""

    ascent: float
    descent: float  # negative
    bold: bool


@dataclass(slots=True)
class Run:
    """A string shown without wide gaps; points and vectors are in the page's displayed coordinates.

    `x, y` is where its first visible glyph begins on the baseline, `end_x, end_y` where its last one ends. A run of
    spaces only says that a space was drawn.
    """

    text: str
    x: float
    y: float
    end_x: float
    end_y: float
    ux: float  # the unit vector along the baseline
    uy: float
    up_x: float  # from the baseline to one em above it
    up_y: float
    em: float  # along the baseline, in points
    size: float  # across it, in points
    face: Face
    gaps: tuple[tuple[int, float, float], ...] = ()
    """Of white between words: which character comes after it, and points from the run's beginning to its ends."""

    def box(self) -> Box:
        above_x, below_x = self.face.ascent * self.up_x, self.face.descent * self.up_x
        above_y, below_y = self.face.ascent * self.up_y, self.face.descent * self.up_y
        return Box(
            min(self.x, self.end_x) + min(above_x, below_x),
            min(self.y, self.end_y) + min(above_y, below_y),
            max(self.x, self.end_x) + max(above_x, below_x),
            max(self.y, self.end_y) + max(above_y, below_y),
        )


def on_the_baseline_of(first: Run, run: Run) -> bool:
    """Whether `run` stands on the same baseline, of one direction and to a tenth of an em."""
    _, above = along(first, run.x, run.y)
    return first.ux * run.ux + first.uy * run.uy > 0.98 and abs(above) < 0.1 * first.size


def along(first: Run, x: float, y: float) -> tuple[float, float]:
    """How far a point is along and across a run's baseline from where it starts."""
    dx, dy = x - first.x, y - first.y
    return dx * first.ux + dy * first.uy, dy * first.ux - dx * first.uy


def repeated(last: Run, run: Run) -> bool:
    """Whether `run` is the last run drawn again, a little aside: how some programs make bold."""
    near = 0.1 * last.size
    return last.text == run.text and abs(last.x - run.x) < near and abs(last.y - run.y) < near


@dataclass(slots=True)
class Line:
    """Runs on one baseline, and the words they make."""

    runs: list[Run]
    parts: list[str]
    starts: list[int] = field(default_factory=list)  # which runs begin another cell than the first

    def gap(self, run: Run) -> float | None:
        """Ems from the end of the line to `run`, or None if it stands on another baseline or further back.

        A letter may begin further back, under the accent that was drawn for it."""
        last = self.runs[-1]
        if last.ux * run.ux + last.uy * run.uy < 0.98:
            return None
        dx, dy = run.x - last.end_x, run.y - last.end_y
        large, small = max(last.size, run.size), min(last.size, run.size)
        if abs(dy * last.ux - dx * last.uy) > RAISED * (large if large < 2 * small else small):
            return None
        gap = (dx * last.ux + dy * last.uy) / (min(last.em, run.em) or 1.0)
        return gap if gap > -BACK or self.overlaid(run) else None

    def overlaid(self, run: Run) -> bool:
        """Whether the line ends with an accent over or under the first letter of `run`, or with a part of TeX's ©."""
        last = self.runs[-1]
        text = last.text.strip() if len(last.text) <= 2 else ""
        if not (text in ACCENTS or (text == "©" and run.text[0] == "c") or (text == "c" and run.text[0] == "©")):
            return False
        middle = (last.x + last.end_x) / 2 - run.x, (last.y + last.end_y) / 2 - run.y
        return 0 <= middle[0] * run.ux + middle[1] * run.uy <= run.em

    def add(self, run: Run, gap: float, blank: bool, edge: bool = False) -> None:
        """Adds a run so many ems behind the last one; with a `blank` or the `edge` of a cell between them."""
        if edge or gap > CELL:
            self.starts.append(len(self.runs))
        spaced = blank or edge or gap > SPACE or _is_mark(self.runs[-1], run)
        if not spaced and len(self.runs) > 1 and self.overlaid(run):  # it is the letter that stands apart, or not
            before = self.runs[-2]
            if (run.x - before.end_x) * run.ux + (run.y - before.end_y) * run.uy <= SPACE * run.em:
                self.parts[-1] = self.parts[-1].lstrip()
        self.runs.append(run)
        self.parts.append(" " + run.text if spaced else run.text)

    @property
    def text(self) -> str:
        return clean("".join(self.parts))

    def unit(self, page: int, number: int) -> Unit:
        """Line `number` of page `page`; both are counted from 1."""
        box = _around(self.runs)
        bold = sum(len(run.text.strip()) * (1 if run.face.bold else -1) for run in self.runs) > 0
        size = round(max(run.size for run in self.runs), 2)
        text, cells = (self.text, ()) if not self.starts else self.split()
        return Unit(text, page, number, box, size, bold, cells)

    def split(self) -> tuple[str, tuple[Cell, ...]]:
        """The line's text and its cells; a cell without a word is none."""
        texts, cells, at = [], [], 0
        for start, stop in pairwise([0, *self.starts, len(self.runs)]):
            if text := clean("".join(self.parts[start:stop])):
                box = _around(self.runs[start:stop])
                texts.append(text)
                cells.append(Cell(at, at + len(text), box.x0, box.x1))
                at += len(text) + 1
        return " ".join(texts), tuple(cells) if len(cells) > 1 else ()


def _around(runs: list[Run]) -> Box:
    x0s, y0s, x1s, y1s = zip(*[run.box() for run in runs], strict=True)
    return Box(round(min(x0s), 2), round(min(y0s), 2), round(max(x1s), 2), round(max(y1s), 2))


def join(runs: Iterable[Run], parted: Callable[[Run, Run], bool] = lambda run, other: False) -> list[Line]:
    """Runs joined into lines: one baseline, moving right. `parted` says whether a cell ends between two of them.

    A run that doesn't go on the current line may go on one of the few before it, with a word gap: the next cell of a
    table row after a cell of several lines. A column of prose starts further up than that.
    """
    lines: list[Line] = []
    current: Line | None = None
    blank = False
    for run in runs:
        if run.text.isspace():
            blank = True
            continue
        if current is not None and repeated(current.runs[-1], run):
            continue
        line, gap = _goes_on(run, current, lines)
        if line is None:
            line = Line([run], [run.text])
            lines.append(line)
        else:
            line.add(run, gap, blank, parted(line.runs[-1], run))
        current, blank = line, False
    return lines


def _goes_on(run: Run, current: Line | None, lines: list[Line]) -> tuple[Line | None, float]:
    if current is not None and (gap := current.gap(run)) is not None:
        return current, gap
    for line in reversed(lines[-RECENT:]):
        if line is not current and (gap := line.gap(run)) is not None and gap > SPACE:
            return line, gap
    return None, 0.0


def _is_mark(last: Run, run: Run) -> bool:
    """Whether a raised small number or sign begins or ends here: "2009⁶" is a year and a footnote, "1ˢᵗ" one word."""
    rise = (run.x - last.end_x) * run.uy - (run.y - last.end_y) * run.ux
    small, large, rise = (run, last, rise) if run.size < last.size else (last, run, -rise)
    return small.size < 0.85 * large.size and rise > 0.15 * large.size and not small.text[0].isalpha()


def takes_accent(char: str) -> bool:
    """Whether `clean` puts an accent that stands before it over this character."""
    return _UNDER_ACCENT.match(char) is not None


def _composed_accent(found: re.Match[str]) -> str:
    accent, letter = found[1] or found[3], found[2] or found[4]
    return _DOTLESS.get(letter, letter) + _COMBINING[accent]


def clean(text: str) -> str:
    """The text single-spaced, with ligatures opened, accents composed, dot leaders, control characters and half
    characters gone."""
    if not text.isprintable():
        if HALVES.search(text):
            text = _HALF.sub(" ", text).encode("utf-16", "surrogatepass").decode("utf-16")  # two halves are one
        text = PRIVATE.sub(" ", text.translate(_INSTEAD))
    if not text.isascii():
        text = _ACCENT.sub(_composed_accent, text)
        text = _CEDILLA.sub("\\1\u0327", text)
        text = "".join(p if i % 2 else unicodedata.normalize("NFKC", p) for i, p in enumerate(_KEPT.split(text)))
        text = composed(text)
    if "..." in text or ". . ." in text or "…" in text or "···" in text:
        text = _LEADER.sub(" ", text)
    return " ".join(text.split())
