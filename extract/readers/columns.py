"""Two columns of prose that were drawn line by line across both: split at the gutter, the left column read first.

Most programs draw a column after the other, and `lines.join` keeps that order. Where a page was drawn from top to
bottom instead, every line runs through both columns. A table is drawn so too and must stay rows, so this asks for
much: many lines at one pitch with a gap at one place, and on both sides of it sentences that go on from line to line.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

from e2erag.extract.readers.lines import Line, clean

LINES = 6  # that have the gap at the same place, one after the other
WORDS = 4.0  # on a side of a line, on average
LETTERS = 20.0
GOES_ON = 0.5  # share of a side's lines that begin in lower case
LIKE_TABLE = 0.15  # share of a side's characters that are digits, or of its lines that end with a colon


def unwoven(lines: Sequence[Line]) -> list[Line]:
    """The lines, in reading order."""
    if sum(bool(line.starts) for line in lines) < LINES:
        return list(lines)
    out: list[Line] = []
    at = 0
    while at < len(lines):
        halves = _band(lines, at)
        if len(halves) >= LINES and _is_prose(halves):
            out += [left for left, _ in halves if left]
            out += unwoven([right for _, right in halves if right])
            at += len(halves)
        else:
            rows = len(halves) if len(halves) >= LINES else 1  # a table, if it is that long
            out += lines[at : at + rows]
            at += rows
    return out


def _band(lines: Sequence[Line], at: int) -> list[tuple[Line | None, Line | None]]:
    """What stands left and right of one gutter, from line `at` on, as far as it reaches."""
    first = lines[at]
    if not first.starts:
        return []
    last, begin = first.runs[first.starts[0] - 1], first.runs[first.starts[0]]
    if last.ux < 0.99:  # set along another direction
        return []
    gutter = last.end_x, begin.x
    halves: list[tuple[Line | None, Line | None]] = [_cut(first, 0)]
    for above, line in pairwise(lines[at:]):
        size, drop = above.runs[0].size, line.runs[0].y - above.runs[0].y
        if not 0.5 * size < drop < 2.5 * size or abs(line.runs[0].size - size) > 0.1 * size:
            break
        places = [(line.runs[k - 1].end_x, line.runs[k].x) for k in line.starts]
        narrowed = [(max(gutter[0], a), min(gutter[1], b)) for a, b in places]
        fitting = [i for i, (a, b) in enumerate(narrowed) if b - a > 0.5 * size]
        if fitting:
            gutter = narrowed[fitting[0]]
            halves.append(_cut(line, fitting[0]))
        elif line.runs[-1].end_x <= gutter[1] - 0.5 * size:
            gutter = max(gutter[0], line.runs[-1].end_x), gutter[1]
            halves.append((line, None))
        elif line.runs[0].x >= gutter[0] + 0.5 * size:
            gutter = gutter[0], min(gutter[1], line.runs[0].x)
            halves.append((None, line))
        else:
            break
    return halves


def _cut(line: Line, start: int) -> tuple[Line, Line]:
    """The line before and after its gap number `start`."""
    k = line.starts[start]
    parts, starts = [line.parts[k].lstrip(), *line.parts[k + 1 :]], [later - k for later in line.starts[start + 1 :]]
    return Line(line.runs[:k], line.parts[:k], line.starts[:start]), Line(line.runs[k:], parts, starts)


def _is_prose(halves: Sequence[tuple[Line | None, Line | None]]) -> bool:
    """Whether both sides are running text at one pitch, rather than cells."""
    whole = [(left, right) for left, right in halves if left and right]
    if len(whole) < max(LINES, 0.6 * len(halves)):
        return False
    tops = [(left or right).runs[0].y for left, right in halves]  # type: ignore[union-attr]
    drops = [below - above for above, below in pairwise(tops)]
    pitch = median(drops)
    if sum(abs(drop - pitch) < 0.1 * pitch for drop in drops) < 0.7 * len(drops):
        return False
    return all(_runs_on([clean(line.text) for line in side]) for side in zip(*whole, strict=True))


def _runs_on(texts: Sequence[str]) -> bool:
    letters = max(sum(map(len, texts)), 1)
    return (
        fmean(len(text.split()) for text in texts) >= WORDS
        and fmean(map(len, texts)) >= LETTERS
        and fmean(text[:1].islower() for text in texts) >= GOES_ON
        and sum(c.isdigit() for text in texts for c in text) < LIKE_TABLE * letters
        and fmean(text.endswith(":") for text in texts) < LIKE_TABLE
    )
