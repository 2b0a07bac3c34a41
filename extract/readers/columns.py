"""Two columns of prose that were drawn line by line across both: split at the gutter, the left column read first.

Most programs draw a column after the other, and `lines.join` keeps that order. Where a page was drawn from top to
bottom instead, every line runs through both columns, or stands in one and the next in the other. A table is drawn so
too and must stay rows, so this asks for much: many lines at one pitch with a gap at one place, and on both sides of it
sentences that go on from line to line.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import NamedTuple

from e2erag.extract.readers.lines import CELL, GUTTER, Line, clean

LINES = 6  # that have the gap at the same place, one after the other
FEW = 4  # … where the gap is wide, and nearly every line goes on
WORDS = 4.0  # on a side of a line, on average
LETTERS = 20.0
GOES_ON = 0.5  # share of a side's lines that begin in lower case
MOSTLY = 0.75  # … of a side with few lines
CAPITALS = 0.9  # share of a side's letters where it is set in capitals, and no line can begin in lower case
FULL = 0.8  # of the longest line, and the share of such a side's lines that reach so far
LIKE_TABLE = 0.15  # share of a side's characters that are digits, or of its lines that end with a colon

Halves = list[tuple[Line | None, Line | None]]


class Band(NamedTuple):
    """What stands left and right of one gutter, and how wide it is, in ems."""

    halves: Halves
    gutter: float

    @property
    def whole(self) -> list[tuple[Line, Line]]:
        """The lines that run through both sides."""
        return [(left, right) for left, right in self.halves if left and right]


def unwoven(lines: Sequence[Line]) -> list[Line]:
    """The lines, in reading order."""
    out: list[Line] = []
    at = 0
    while at < len(lines):
        halves, rows = _columns(lines, at)
        out += [left for left, _ in halves if left]
        out += unwoven([right for _, right in halves if right])
        out += lines[at : at + rows] if not halves else []
        at += len(halves) or rows
    return out


def _columns(lines: Sequence[Line], at: int) -> tuple[Halves, int]:
    """Two columns of prose from line `at` on; else none, and how many lines are no such columns."""
    first = lines[at]
    if first.runs[0].ux < 0.99 or len(lines) - at < FEW:  # set along another direction
        return [], 1
    letters = [0, *accumulate(len(run.text) for run in first.runs)]
    for k in _gaps(first):
        wide = first.starts[:1] == [k]
        if not wide and min(letters[k], letters[-1] - letters[k]) < LETTERS / 2:
            continue
        band = _band(lines, at, k)
        if _is_prose(band):
            return band.halves, 1
        if wide and len(band.halves) >= LINES:  # a table, if it is that long
            return [], len(band.halves)
    return _staggered(lines, at), 1


def _gaps(line: Line) -> Iterator[int]:
    """The runs of a line that stand behind a gap as wide as a gutter."""
    for k, (last, run) in enumerate(pairwise(line.runs), 1):
        if run.x - last.end_x > GUTTER * min(last.em, run.em):
            yield k


def _band(lines: Sequence[Line], at: int, k: int) -> Band:
    """Both sides of the gutter before run `k` of line `at`, from there on as far as it reaches."""
    first = lines[at]
    gutter = first.runs[k - 1].end_x, first.runs[k].x
    halves: Halves = [_cut(first, k)]
    for above, line in pairwise(lines[at:]):
        size, drop = above.runs[0].size, line.runs[0].y - above.runs[0].y
        if not 0.5 * size < drop < 2.5 * size or abs(line.runs[0].size - size) > 0.1 * size:
            break
        places = [(k, max(gutter[0], line.runs[k - 1].end_x), min(gutter[1], line.runs[k].x)) for k in _gaps(line)]
        fitting = [place for place in places if place[2] - place[1] > 0.5 * size]
        if fitting:
            gutter = fitting[0][1:]
            halves.append(_cut(line, fitting[0][0]))
            continue
        side = _side(line, gutter)
        if side is None:
            break
        gutter = _narrowed(line, gutter, side)
        halves.append((None, line) if side else (line, None))
    return Band(halves, (gutter[1] - gutter[0]) / (first.runs[0].em or 1.0))


def _side(line: Line, gutter: tuple[float, float]) -> int | None:
    """0 for a line that stands left of the gutter, 1 for one to the right of it."""
    half = 0.5 * line.runs[0].size
    if line.runs[-1].end_x <= gutter[1] - half:
        return 0
    return 1 if line.runs[0].x >= gutter[0] + half else None


def _narrowed(line: Line, gutter: tuple[float, float], side: int) -> tuple[float, float]:
    if side:
        return gutter[0], min(gutter[1], line.runs[0].x)
    return max(gutter[0], line.runs[-1].end_x), gutter[1]


def _cut(line: Line, k: int) -> tuple[Line, Line]:
    """The line before its run `k`, and from it on."""
    parts = [line.parts[k].lstrip(), *line.parts[k + 1 :]]
    left = Line(line.runs[:k], line.parts[:k], [start for start in line.starts if start < k])
    return left, Line(line.runs[k:], parts, [start - k for start in line.starts if start > k])


def _is_prose(band: Band) -> bool:
    """Whether both sides are running text at one pitch, rather than cells."""
    whole, wide = band.whole, band.gutter > CELL
    if len(whole) < max(FEW if wide else LINES, 0.6 * len(band.halves)):
        return False
    if not _at_one_pitch([left or right for left, right in band.halves]):  # type: ignore[misc]
        return False
    if not wide:  # a narrow gap in every line by chance has no edge
        edge = min(right.runs[0].x for _, right in whole)
        if fmean(right.runs[0].x - edge < 0.3 * right.runs[0].size for _, right in whole) < MOSTLY:
            return False
    return all(_runs_on(side) for side in zip(*whole, strict=True))


def _staggered(lines: Sequence[Line], at: int) -> Halves:
    """Columns of prose whose lines stand at other heights, drawn from top to bottom: one side and the other in turn.

    Nothing where there are none."""
    left, right = lines[at], lines[at + 1]
    if left.runs[0].x > right.runs[0].x:
        left, right = right, left
    gutter = left.runs[-1].end_x, right.runs[0].x
    if gutter[1] - gutter[0] < 0.5 * left.runs[0].size:
        return []
    sides: tuple[list[Line], list[Line]] = ([], [])
    order: list[int] = []
    for above, line in pairwise([lines[at], *lines[at:]]):
        size, drop, side = above.runs[0].size, line.runs[0].y - above.runs[0].y, _side(line, gutter)
        if side is None or not (0 < drop < 1.5 * size or not order) or abs(line.runs[0].size - size) > 0.1 * size:
            break
        gutter = _narrowed(line, gutter, side)
        sides[side].append(line)
        order.append(side)
    turns = sum(a != b for a, b in pairwise(order))
    if min(map(len, sides)) < FEW or turns < 0.6 * len(order):
        return []
    if not all(_at_one_pitch(side) and _runs_on(side) for side in sides):
        return []
    return [(None, line) if side else (line, None) for side, line in zip(order, lines[at:], strict=False)]


def _at_one_pitch(lines: Sequence[Line]) -> bool:
    drops = [below.runs[0].y - above.runs[0].y for above, below in pairwise(lines)]
    pitch = median(drops)
    return sum(abs(drop - pitch) < 0.1 * pitch for drop in drops) >= 0.7 * len(drops)


def _runs_on(side: Sequence[Line]) -> bool:
    """Whether lines one below the other are sentences."""
    texts = [clean(line.text) for line in side]
    letters = max(sum(map(len, texts)), 1)
    return (
        fmean(len(text.split()) for text in texts) >= WORDS
        and fmean(map(len, texts)) >= LETTERS
        and _goes_on(side, texts)
        and sum(c.isdigit() for text in texts for c in text) < LIKE_TABLE * letters
        and fmean(text.endswith(":") for text in texts) < LIKE_TABLE
    )


def _goes_on(side: Sequence[Line], texts: Sequence[str]) -> bool:
    """Whether lines begin in mid-sentence; of those in capitals, whether they fill a column."""
    if fmean(text[:1].islower() for text in texts) >= (MOSTLY if len(texts) < LINES else GOES_ON):
        return True
    cased = [c.isupper() for text in texts for c in text if c.isupper() or c.islower()]
    if len(texts) < LINES or not cased or fmean(cased) < CAPITALS:
        return False
    widths = [line.runs[-1].end_x - line.runs[0].x for line in side]
    return fmean(width >= FULL * max(widths) for width in widths) >= FULL
