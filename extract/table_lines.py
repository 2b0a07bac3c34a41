"""A page's lines as tables need them: in pieces, joined along baselines; and which ruling lines belong together."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from e2erag.extract.document import Box, Unit

TOUCH = 3.0  # points between ruling lines that meet, or that are one line drawn twice
FEW = 12  # lines that a table's row may have, for cells that stand in the middle of it

NUMBER = re.compile(
    r"[-+−–(]?\s?(?:[$€£¥]\s?)?[-+−(]?\s?(?:\d[\d,.' ]*|[.,]\d+)\s?[kKMB]?\s?[%‰]?\s?\)?\s?%?"
    r"(?:\s?±\s?[\d.]+|\s?\([\d.,]+\s?%\))?|[-—–]|n/?a",
    re.I,
)
MONEY = ("$", "€", "£", "¥", "(", "$(", "$ (")
_AFTER = (")", "%", ")%", ") %")


class Piece(NamedTuple):
    text: str
    x0: float
    x1: float


@dataclass(slots=True)
class Line:
    """What stands on one baseline: its units, its pieces and, once columns are known, the piece of each column."""

    units: list[int]
    pieces: list[Piece]
    y0: float
    y1: float
    size: float
    bold: bool
    cells: dict[int, str] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()  # columns `a … b − 1` that one cell stands over

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2

    @property
    def x0(self) -> float:
        return min(piece.x0 for piece in self.pieces)

    @property
    def x1(self) -> float:
        return max(piece.x1 for piece in self.pieces)


def lines_of(units: Sequence[Unit]) -> list[Line]:
    """The units as lines. Units that stand beside those before them, on their baselines, go on their lines.

    So a table that was written column by column becomes rows; columns of prose are too wide for that.
    """
    lines: list[Line] = []
    group: list[Line] = []  # from top to bottom
    i = 0
    while i < len(units):
        box = units[i].box
        if not group or box.y0 >= group[-1].y0 - 0.5:
            group.append(_line(units[i], i))
            i += 1
            continue
        first, bottom, stop = i, group[-1].y1, i + 1
        while stop < len(units) and units[stop - 1].box.y0 <= units[stop].box.y0 and units[stop].box.y1 <= bottom + 1:
            stop += 1
        at = len(group)
        while at and group[at - 1].y1 > box.y0 + 1:
            at -= 1
        part = [_line(units[k], k) for k in range(first, stop)]
        if _beside(group[at:], part):
            group[at:] = _merged(group[at:], part)
            i = stop
        else:
            lines += group
            group = []
    return lines + group


def _line(unit: Unit, number: int) -> Line:
    box = unit.box
    pieces = [Piece(unit.text[c.start : c.stop], c.x0, c.x1) for c in unit.cells]
    if not pieces or any(b.x0 < a.x1 - 2 for a, b in pairwise(pieces)):  # of a line that runs up or down, too
        pieces = [Piece(unit.text, box.x0, box.x1)]
    pieces = _priced(pieces)
    return Line([number], pieces, box.y0, box.y1, unit.font_size or box.y1 - box.y0 or 1.0, unit.bold)


def _beside(before: list[Line], part: list[Line]) -> bool:
    """Whether lines stand in the white that those before them leave: right of all of them, or between their pieces."""
    if max(len(before), len(part)) <= FEW:
        return bool(before) and not any(_meet(a, b) for a in before for b in part)
    if not before or max(line.x1 for line in before) > min(line.x0 for line in part) + 1:
        return False
    return all(sum(len(p.text) for line in lines for p in line.pieces) < 40 * len(lines) for lines in (before, part))


def _meet(a: Line, b: Line) -> bool:
    """Whether pieces of two lines overlap."""
    high = min(a.y1, b.y1) - max(a.y0, b.y0) > 0.3 * min(a.size, b.size)
    return high and any(p.x0 < q.x1 - 1 and q.x0 < p.x1 - 1 for p in a.pieces for q in b.pieces)


def _merged(before: list[Line], part: list[Line]) -> list[Line]:
    out: list[Line] = []
    for line in sorted([*before, *part], key=lambda line: line.y1):
        last = out[-1] if out else None
        if last and abs(last.y1 - line.y1) < 0.3 * min(last.size, line.size) and not _meet(last, line):
            last.units += line.units
            last.pieces = sorted(last.pieces + line.pieces, key=lambda piece: piece.x0)
            last.bold = last.bold and line.bold
        else:
            out.append(line)
    return out


def _priced(pieces: list[Piece]) -> list[Piece]:
    """Signs of money, brackets and per cent on the number that they stand before or after; its place is kept."""
    out: list[Piece] = []
    sign = ""
    for k, piece in enumerate(pieces):
        text = f"{sign} {piece.text}".strip()
        sign, more = "", k + 1 < len(pieces) and pieces[k + 1].text[:1] in "0123456789(.-—–−"
        if text in MONEY and more:
            sign = text
        elif text in _AFTER and out and NUMBER.match(out[-1].text):
            out[-1] = out[-1]._replace(text=f"{out[-1].text} {text}")
        elif more and text[-2:] in (" $", " €", " £", " ¥"):  # the next column's sign
            wide = width(text[:-2]) / (width(text[:-2]) + 1.5) * (piece.x1 - piece.x0)
            sign = text[-1]
            out.append(Piece(text[:-2], piece.x0, piece.x0 + wide))
        else:
            out.append(Piece(text, piece.x0, piece.x1))
    return out


_NARROW, _WIDE = frozenset("iljtfrI.,:;'!|()[]/ -"), frozenset("mwMW@%")


def width(text: str) -> float:
    """About how wide a text is set, in ems."""
    return sum(0.3 if c in _NARROW else 0.85 if c in _WIDE else 0.68 if c.isupper() else 0.54 for c in text) or 0.3


def parted(piece: Piece, left: float, right: float, size: float) -> tuple[Piece, Piece] | None:
    """A piece whose words stand on both sides of the gap from `left` to `right`, in two; None if no space is there."""
    words = piece.text.split(" ")
    if len(words) < 2:
        return None
    scale = min(size, (piece.x1 - piece.x0) / width(piece.text))
    ends, at = [], 0.0
    for word in words:
        at += width(word + " ") * scale
        ends.append(at)
    middle, best = (left + right) / 2, (1.5 * size, 0, 0.0, 0.0)
    for k in range(1, len(words)):
        end = piece.x0 + ends[k - 1] - 0.3 * scale
        begin = piece.x1 - (ends[-1] - 0.3 * scale - ends[k - 1])
        best = min(best, (abs((end + begin) / 2 - middle), k, min(end, left), max(begin, right)))
    _, k, end, begin = best
    return (Piece(" ".join(words[:k]), piece.x0, end), Piece(" ".join(words[k:]), begin, piece.x1)) if k else None


def connected(rules: list[Box]) -> list[list[Box]]:
    """Groups of ruling lines between which no line of white runs across, up or down."""
    groups, done = [rules], []
    while groups:
        group = groups.pop()
        for low, high in ((1, 3), (0, 2)):
            parts: list[list[Box]] = []
            reach = float("-inf")
            for rule in sorted(group, key=lambda rule: rule[low]):
                if rule[low] > reach + TOUCH:
                    parts.append([])
                parts[-1].append(rule)
                reach = max(reach, rule[high])
            if len(parts) > 1:
                groups += parts
                break
        else:
            done.append(group)
    return done


def places(values: Iterable[float]) -> list[float]:
    """Sorted values, those that nearly meet as one."""
    out: list[float] = []
    for value in sorted(values):
        if not out or value - out[-1] > TOUCH:
            out.append(value)
    return out
