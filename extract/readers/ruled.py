"""Upright ruling lines as edges of cells, however narrow the white beside them: what stands on both sides of one, on
one baseline, are two cells."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from e2erag.extract.document import Box
from e2erag.extract.readers.leftwards import RIGHT_TO_LEFT
from e2erag.extract.readers.lines import SPACE, Run, repeated

HIGH = 1.2  # ems that a rule reaches up and down at least: the sides of a box to tick are shorter
LETTERS = 0.4  # ems above the baseline up to which it stands beside the letters
TOUCH = 0.1  # ems that a letter may reach over it


class Edges:
    """The upright ones among a page's ruling lines."""

    def __init__(self, rules: Sequence[Box]) -> None:
        upright = [rule for rule in rules if rule.y1 - rule.y0 > rule.x1 - rule.x0]
        placed = sorted(((rule.x0 + rule.x1) / 2, rule.y0, rule.y1) for rule in upright)
        self.xs, self.spans = [x for x, _, _ in placed], [(y0, y1) for _, y0, y1 in placed]

    def parts(self, run: Run, other: Run) -> bool:
        """Whether one stands in the white between a run and the next one on its line."""
        apart = bool(self.xs) and run.ux >= 0.99 and other.x - run.end_x > SPACE * run.em
        return apart and self.between(run, run.end_x, other.x)

    def between(self, run: Run, left: float, right: float) -> bool:
        """Whether one stands on the run's baseline between two places on it."""
        spare = TOUCH * run.em
        first, stop = bisect_left(self.xs, left - spare), bisect_right(self.xs, right + spare)
        return any(
            y1 - y0 >= HIGH * run.size and y0 <= run.y - LETTERS * run.size and y1 >= run.y
            for y0, y1 in self.spans[first:stop]
        )

    def cut(self, runs: Sequence[Run]) -> Iterator[Run]:
        """The runs, each in as many pieces as the edges in its gaps make of it, drawn again or not."""
        last: Run | None = None
        for run in runs:
            if not self.xs or not run.gaps or run.ux < 0.99 or RIGHT_TO_LEFT.search(run.text):
                last = last if run.text.isspace() else run
                yield run
                continue
            if last is not None and repeated(last, run):
                continue
            last, piece, at = run, run, 0
            for stop, end, begin in run.gaps:
                if self.between(run, run.x + end, run.x + begin):
                    end_x, end_y = run.x + end * run.ux, run.y + end * run.uy
                    yield replace(piece, text=run.text[at:stop].rstrip(), end_x=end_x, end_y=end_y, gaps=())
                    at, piece = stop, replace(run, x=run.x + begin * run.ux, y=run.y + begin * run.uy)
            yield replace(piece, text=run.text[at:], gaps=()) if at else run
