"""Pieces of text that stand somewhere on a page, in no order → lines in reading order. Nothing here knows OCR.

Pieces side by side on a baseline are a line, a table's row or two columns of prose. Columns of prose are told by what
runs down between them: white, past several lines with many words on both sides.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from e2erag.extract.readers.lines import Face, Line, Run

PROSE = 22  # letters that the pieces of a column of prose have on average
DEEP = 3  # rows with pieces on both sides that make columns
GUTTER = 0.5  # ems of white between columns
ALIKE = (0.7, 1.4)  # of the usual font size
FAR = 1.8  # ems between two lines of a column at most, from baseline to baseline

_RISING = frozenset("bdfhijklt")
_HANGING = frozenset("gjpqy,;()[]{}|Q$/")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text with the box around it in points, and how sure it is."""

    text: str
    confidence: float
    x0: float
    y0: float
    x1: float
    y1: float
    slope: float = 0.0  # of the baseline: how far it goes down per point to the right
    shift: float = 0.0  # how far down it stands for a page that is not straight

    @classmethod
    def of(cls, text: str, confidence: float, corners: Float[np.ndarray, "4 2"]) -> "Piece":
        """From the corners, clockwise from the top left one."""
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        along = corners[1] - corners[0] + corners[2] - corners[3]
        slope = float(along[1] / along[0]) if along[0] > 4 * abs(along[1]) else 0.0
        tilt = abs(slope) * (x1 - x0) / 2  # a box around a tilted line is higher than the line
        tilt = min(tilt, (y1 - y0) / 3)
        return cls(text, confidence, float(x0), float(y0 + tilt), float(x1), float(y1 - tilt), slope)

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2 + self.shift

    @property
    def size(self) -> float:
        """The font size in points: a detector's box is 0.42 ems higher than the letters in it."""
        up = 0.73 if any(c in _RISING or c.isupper() or c.isdigit() or ord(c) > 0x2E7F for c in self.text) else 0.53
        down = 0.22 if any(c in _HANGING for c in self.text) else 0.0
        return max((self.y1 - self.y0) / (up + down + 0.42), 1.0)

    def run(self, usual: float) -> Run:
        """As a run of text; a size near the page's `usual` one is that, for boxes are only so exact."""
        size = usual if ALIKE[0] * usual < self.size < ALIKE[1] * usual else round(self.size * 2) / 2
        base = self.y1 - 0.22 * size
        face = Face((base - self.y0) / size, (base - self.y1) / size, False)
        return Run(self.text, self.x0, base, self.x1, base, 1.0, 0.0, 0.0, -size, size, size, face)


Row = list[Piece]


def in_order(pieces: list[Piece]) -> list[tuple[Line, float]]:
    """The lines that the pieces make, top to bottom, each with its confidence; columns of prose one after another."""
    slopes = [piece.slope for piece in pieces if piece.x1 - piece.x0 > 4 * (piece.y1 - piece.y0)]
    slope = float(np.median(slopes)) if slopes else 0.0
    level = [replace(piece, shift=-slope * (piece.x0 + piece.x1) / 2) for piece in pieces]
    sizes = np.repeat([piece.size for piece in pieces], [max(len(piece.text), 1) for piece in pieces])
    usual = round(float(np.median(sizes)) * 2) / 2 if pieces else 1.0
    return [_line(row, usual) for row in _ordered(_rows(level))]


def _line(row: Row, usual: float) -> tuple[Line, float]:
    runs = [piece.run(usual) for piece in row]
    line = Line([runs[0]], [runs[0].text])
    for before, run in pairwise(runs):
        line.add(run, (run.x - before.end_x) / min(before.em, run.em) + 0.3, True)  # boxes reach beyond their letters
    letters = [max(len(piece.text), 1) for piece in row]
    sure = sum(n * piece.confidence for n, piece in zip(letters, row, strict=True)) / sum(letters)
    return line, round(min(max(sure, 0.0), 1.0), 4)


def _rows(pieces: list[Piece]) -> list[Row]:
    """Pieces that stand beside each other, left to right; rows from top to bottom."""
    rows: list[Row] = []
    for piece in sorted(pieces, key=lambda piece: piece.middle):
        for row in rows[:-4:-1]:
            near = abs(float(np.mean([other.middle for other in row])) - piece.middle)
            high = min(piece.y1 - piece.y0, min(other.y1 - other.y0 for other in row))
            apart = all(_overlap(piece, other) < 0.3 * min(piece.x1 - piece.x0, other.x1 - other.x0) for other in row)
            if near < 0.45 * high and apart:
                row.append(piece)
                break
        else:
            rows.append([piece])
    for row in rows:
        row.sort(key=lambda piece: piece.x0)
    return sorted(rows, key=lambda row: min(piece.middle for piece in row))


def _overlap(a: Piece, b: Piece) -> float:
    return min(a.x1, b.x1) - max(a.x0, b.x0)


def _ordered(rows: list[Row]) -> list[Row]:
    """Rows in reading order, those of columns of prose taken apart."""
    out: list[Row] = []
    i = 0
    while i < len(rows):
        stop, at = _columns(rows, i)
        if stop > i:
            for side in (0, 1):
                part = [[p for p in row if (p.x0 >= at) == bool(side)] for row in rows[i:stop]]
                out += _ordered([row for row in part if row])
            i = stop
        else:
            out.append(rows[i])
            i += 1
    return out


def _columns(rows: list[Row], first: int) -> tuple[int, float]:
    """Where the rows from `first` on end that a gutter parts into columns of prose, and where the gutter ends.

    The row itself where there is none.
    """
    best, at = first, 0.0
    for left, right in pairwise(rows[first]):
        a, b = left.x1, right.x0
        stop = both = 0
        sides: tuple[list[int], list[int]] = ([], [])
        for k in range(first, len(rows)):
            row = rows[k]
            size = min(piece.size for piece in row)
            a2 = max([a, *(p.x1 for p in row if p.x0 < (a + b) / 2)])
            b2 = min([b, *(p.x0 for p in row if p.x0 >= (a + b) / 2)])
            if k > first and _step(rows[k - 1], row) > FAR * 2 * size:
                break
            if b2 - a2 < GUTTER * size:
                break
            a, b = a2, b2
            lengths = [[len(p.text) for p in row if (p.x0 >= b) == bool(side)] for side in (0, 1)]
            for side in (0, 1):
                sides[side].extend(lengths[side])
            both += all(lengths)
            stop = k + 1
        prose = all(side and sum(side) >= PROSE * len(side) for side in sides)
        if both >= DEEP and prose and stop > best:
            best, at = stop, b
    return best, at


def _step(above: Row, below: Row) -> float:
    return min(piece.middle for piece in below) - max(piece.middle for piece in above)
