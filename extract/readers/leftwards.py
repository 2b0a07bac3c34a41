"""Lines with words from right to left, in the order in which they are read."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from unicodedata import combining

from e2erag.extract.readers.lines import BACK, CELL, SPACE, Run, along, on_the_baseline_of

_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
RIGHT_TO_LEFT = re.compile(f"[{_RTL}]")
_LEFTWARDS = re.compile(f"[{_RTL}](?:[^a-zA-Z]*[{_RTL}])?")
_RIGHTWARDS = re.compile(rf"[^\W{_RTL}](?:[^{_RTL}]*[^\W{_RTL}])?")  # words and numbers from the left

_MARKS = "\ufffe\ufeff"  # around letters of one glyph; `lines.clean` drops them
_ONE = re.compile(f"{_MARKS[1]}([^{_MARKS}]*){_MARKS[0]}")  # in a string turned round

_FROM_ITS_END = re.compile("[\u0622\u0623\u0625\u0627\u0671]\u0644|\u0647\u0644\u0644\u0627?")

_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")

Glyph = tuple[float, float, str]
"""Where it starts and ends along the baseline, and its characters in the order in which they are read."""


def one_glyph(letters: str) -> str:
    """Letters that one glyph shows, marked so that they are not turned round with the others."""
    return _MARKS[0] + letters + _MARKS[1]


def of_one_glyph(letters: str) -> str:
    """What one glyph shows, the other way round where nothing is read so: alif before the lam it stands on in one
    glyph, God's name from its end, a mark before its letter."""
    return letters[::-1] if _FROM_ITS_END.fullmatch(letters) or combining(letters[0]) else letters


def in_reading_order(runs: Sequence[Run]) -> list[Run]:
    """Runs as they were drawn, where what stands side by side with a right-to-left word is one, as it is read.

    The characters of each run that is given stand from left to right. A page with one that ends left of its beginning
    is drawn as it is read (by word processors), and its runs stay as they are."""
    those = [run for run in runs if RIGHT_TO_LEFT.search(run.text)]
    if not those or any((run.end_x - run.x) * run.ux + (run.end_y - run.y) * run.uy < 0 for run in those):
        return list(runs)
    out: list[Run] = []
    at = 0
    while at < len(runs):
        stop, glyphs = _beside(runs, at)
        here = runs[at:stop]
        out += [_one(here, glyphs)] if any(RIGHT_TO_LEFT.search(run.text) for run in here) else here
        at = stop
    return out


def _beside(runs: Sequence[Run], at: int) -> tuple[int, list[Glyph]]:
    """Where the runs end that stand on the baseline of run `at` with no gap as wide as a cell's; and what they show."""
    first, low, high = runs[at], 0.0, 0.0
    glyphs: list[Glyph] = []
    for n, run in enumerate(runs[at:], at):
        if run.text.isspace():  # the gap tells
            continue
        start, _ = along(first, run.x, run.y)
        end, _ = along(first, run.end_x, run.end_y)
        letters = _ONE.sub(lambda letters: letters[1][::-1], run.text[::-1])
        near = any(-BACK * first.em < gap <= CELL * first.em for gap in (start - high, low - end))
        if glyphs and not (near and on_the_baseline_of(first, run)):
            return n, glyphs
        low, high = (min(low, start), max(high, end)) if glyphs else (start, end)
        glyphs.append((start, end, letters))
    return len(runs), glyphs


def _one(runs: Sequence[Run], glyphs: list[Glyph]) -> Run:
    """All of them as one run, which keeps the looks of the first."""
    first = next(run for run in runs if not run.text.isspace())
    low, high = min(start for start, _, _ in glyphs), max(end for _, end, _ in glyphs)
    (x, y), (end_x, end_y) = ((first.x + far * first.ux, first.y + far * first.uy) for far in (low, high))
    return replace(first, text=turned(glyphs, SPACE * first.em), x=x, y=y, end_x=end_x, end_y=end_y, gaps=())


def turned(glyphs: Sequence[Glyph], space: float) -> str:
    """A line of placed glyphs in the order in which it is read."""
    placed = sorted(glyphs)
    pieces = [placed[0][2][::-1]]
    for (_, last, _), (first, _, chars) in pairwise(placed):
        pieces.append(" " * (first - last > space) + chars[::-1])  # letters of one glyph will be turned once more
    line = "".join(pieces)
    if 2 * len(RIGHT_TO_LEFT.findall(line)) < sum(map(str.isalpha, line)):  # a few such words in a line from the left
        return _LEFTWARDS.sub(lambda words: _back(words[0]), line)
    return _RIGHTWARDS.sub(lambda words: _back(words[0]), _back(line))


def _back(text: str) -> str:
    """Read from the other end, where a bracket that opens is one that closes."""
    return text[::-1].translate(_MIRRORED)
