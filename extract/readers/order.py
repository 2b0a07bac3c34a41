"""Strings on one baseline, in the order in which they stand there."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from e2erag.extract.readers.leftwards import RIGHT_TO_LEFT
from e2erag.extract.readers.lines import BACK, Run, along, on_the_baseline_of


def from_the_left(runs: Sequence[Run]) -> list[Run]:
    """Runs as they were drawn, but where one after another they stand on one baseline, from left to right: a running
    head whose page number is drawn first, a form's value before its label.

    Pieces that overlap (accents, bold drawn twice) and lines with right-to-left words stay as they were drawn."""
    return [run for group in _on_one_baseline(runs) for run in _sorted(group)]


def _on_one_baseline(runs: Sequence[Run]) -> Iterator[list[Run]]:
    group: list[Run] = []
    for run in runs:
        if group and not on_the_baseline_of(group[0], run):
            yield group
            group = []
        group.append(run)
    yield group


def _sorted(group: list[Run]) -> list[Run]:
    """Pieces that go on to the right, by where they begin, if none reaches into another."""
    pieces: list[tuple[float, float, list[Run]]] = []  # where one begins and ends along the baseline
    for run in group:
        (start, _), (end, _) = along(group[0], run.x, run.y), along(group[0], run.end_x, run.end_y)
        if not pieces or start < pieces[-1][1] - BACK * run.em:
            pieces.append((start, end, [run]))
        else:
            first, last, piece = pieces[-1]
            piece.append(run)
            pieces[-1] = (first, max(last, end), piece)
    if len(pieces) < 2 or any(RIGHT_TO_LEFT.search(run.text) for run in group):
        return group
    pieces.sort(key=lambda piece: piece[0])
    if any(after[0] < before[1] for before, after in pairwise(pieces)):
        return group
    return [run for _, _, piece in pieces for run in piece]
