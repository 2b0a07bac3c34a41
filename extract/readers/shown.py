"""What a page shows, as any engine finds it: runs of text, ruling lines, how much of it is pictures."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from e2erag.extract.document import Box
from e2erag.extract.readers.lines import Face, Run

Matrix = tuple[float, float, float, float, float, float]
IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
Point = tuple[float, float]

FORM_DEPTH = 40  # form XObjects inside form XObjects, as many as PDFium follows; real files stay below 5, bounds on
# what a page may show and take hold those that fan out
RULES = 2000  # kept of a page; a form or a ledger has hundreds, a map tens of thousands that mean nothing
THICK = 2.0  # points: what is thicker is an area
SHORT = 6.0  # points: what is shorter is a dash, a tick or a part of a letter
STRAIGHT = 0.5  # points that a line may be off the horizontal or vertical
UPRIGHT = 0.8  # share of a page's letters that stand one way

UNSEEN = 1 | 2 | 32  # of an annotation's flags: invisible, hidden, no view

CURVED: Point = (math.nan, math.nan)  # between two points that no straight line joins

_BOLD = re.compile(r"bold|black|heavy|demi(?!light)|[-,]bd\b|CMBX|SFBX|NimbusRomNo9L-Medi", re.IGNORECASE)


@dataclass(slots=True)
class Shown:
    """One page; `pictures` is the share of it that images cover, `mute` counts glyphs that stand for no character.

    `failed` says why it could not be followed, with the way out.
    """

    width: float
    height: float
    runs: list[Run]
    rules: tuple[Box, ...] = ()
    pictures: float = 0.0
    mute: int = 0
    failed: str = ""


def short(error: Exception) -> str:
    """An error in part of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def times(m: Matrix, n: Matrix) -> Matrix:
    """First `m`, then `n`, as row vectors (PDF 32000-1, 8.3.4)."""
    a, b, c, d, e, f = m
    p, q, r, s, t, u = n
    return a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u


def frame(x0: float, y0: float, x1: float, y1: float, turn: int) -> tuple[float, float, Matrix]:
    """Width and height of a page as displayed, and the matrix from its user space to that (y down)."""
    base: Matrix = {
        90: (0.0, 1.0, 1.0, 0.0, -y0, -x0),
        180: (-1.0, 0.0, 0.0, 1.0, x1, -y0),
        270: (0.0, -1.0, -1.0, 0.0, y1, x1),
    }.get(turn % 360, (1.0, 0.0, 0.0, -1.0, -x0, y1))
    return (y1 - y0, x1 - x0, base) if turn % 360 in (90, 270) else (x1 - x0, y1 - y0, base)


def face(name: str, ascent: Any, descent: Any, flags: Any, weight: Any = None) -> Face:
    """How a font looks, by its name and descriptor (thousandths of an em); a descriptor may hold anything."""
    heavy = isinstance(weight, (int, float)) and weight >= 600
    forced = isinstance(flags, int) and bool(flags & 1 << 18)
    up, down = _within(ascent, 300.0, 1200.0, 750.0) / 1000, _within(descent, -600.0, -1.0, -220.0) / 1000
    return Face(up, down, bool(_BOLD.search(name)) or heavy or forced)


def _within(value: Any, low: float, high: float, otherwise: float) -> float:
    """Descriptors hold 0, 32767 and numbers of the wrong sign."""
    return float(value) if isinstance(value, (int, float)) and low <= value <= high else otherwise


def upright_at(runs: list[Run], turn: int) -> int:
    """The rotation at which a page of rotation `turn` would show most of its text upright; else its own.

    PDFium puts text in order as it is displayed, and what doesn't stand upright then comes in pieces."""
    letters = [0] * 4
    letters[0] = sum(len(run.text) for run in runs)
    for run in runs:
        if run.ux < 0.99:
            letters[0] -= len(run.text)
            letters[round(math.degrees(math.atan2(-run.uy, run.ux)) / 90) % 4] += len(run.text)
    most = max(range(4), key=letters.__getitem__)
    return (turn + 90 * most) % 360 if letters[most] >= UPRIGHT * sum(letters) else turn


class Rules:
    """Collects the horizontal and vertical ruling lines among the paths that a page paints."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.level: list[Box] = []
        self.upright: list[Box] = []

    @property
    def full(self) -> bool:
        return len(self.level) + len(self.upright) >= 2 * RULES  # some of them will be joined

    def paint(self, points: Sequence[Point], matrix: Matrix, filled: bool, stroked: bool, width: float) -> None:
        """One subpath (a closed one ends where it began) in user space, and the width of its stroke."""
        if not stroked and not 4 <= len(points) <= 5:
            return
        a, b, c, d, e, f = matrix
        placed = [(x * a + y * c + e, x * b + y * d + f) for x, y in points]
        if filled and 4 <= len(placed) <= 5:
            box = _bounds(placed)
            if min(box.x1 - box.x0, box.y1 - box.y0) <= THICK and _is_rectangle(placed, box):
                self.add(box)
                return
        if stroked:
            half = min(width * math.sqrt(abs(a * d - b * c)), THICK) / 2
            for (x0, y0), (x1, y1) in pairwise(placed):
                if abs(y1 - y0) <= STRAIGHT and abs(x1 - x0) >= SHORT:
                    self.add(Box(min(x0, x1), min(y0, y1) - half, max(x0, x1), max(y0, y1) + half))
                elif abs(x1 - x0) <= STRAIGHT and abs(y1 - y0) >= SHORT:
                    self.add(Box(min(x0, x1) - half, min(y0, y1), max(x0, x1) + half, max(y0, y1)))

    def add(self, box: Box) -> None:
        """A thin box in displayed coordinates, if it is long enough and on the page."""
        wide, high = box.x1 - box.x0, box.y1 - box.y0
        on_page = box.x1 >= 0 and box.y1 >= 0 and box.x0 <= self.width and box.y0 <= self.height
        if max(wide, high) >= SHORT and on_page and not self.full:
            (self.level if wide >= high else self.upright).append(box)

    def merged(self) -> tuple[Box, ...]:
        """The lines from top to bottom, then those from left to right; what touches end to end is one."""
        level = _joined(sorted(self.level, key=lambda box: (round(box.y0), box.x0)))
        turned = [Box(y0, x0, y1, x1) for x0, y0, x1, y1 in self.upright]
        upright = _joined(sorted(turned, key=lambda box: (round(box.y0), box.x0)))
        both = [*level, *(Box(y0, x0, y1, x1) for x0, y0, x1, y1 in upright)]
        return tuple(Box(*(round(v, 2) for v in box)) for box in both[:RULES])


def _joined(boxes: Iterable[Box]) -> list[Box]:
    out: list[Box] = []
    for box in boxes:
        last = out[-1] if out else None
        if (
            last
            and abs(last.y0 - box.y0) <= 1
            and abs(last.y1 - box.y1) <= 1
            and last.x0 - 1 <= box.x1
            and box.x0 <= last.x1 + 1
        ):
            out[-1] = last.union(box)
        else:
            out.append(box)
    return out


def _bounds(points: Sequence[Point]) -> Box:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Box(min(xs), min(ys), max(xs), max(ys))


def _is_rectangle(points: Sequence[Point], box: Box) -> bool:
    """Whether every point is a corner of the box."""
    return all(
        min(abs(x - box.x0), abs(x - box.x1)) < 0.1 and min(abs(y - box.y0), abs(y - box.y1)) < 0.1 for x, y in points
    )
