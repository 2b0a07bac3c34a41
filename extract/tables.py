"""Tables: found by their ruling lines or by cells that stand in columns, and put as rows or as sentences.

Nothing here is learned. A line is first looked at as pieces (its cells); lines on one baseline that a file keeps apart
are seen together. Ruled grids come first; what they leave is searched for runs of lines whose pieces share columns. In
doubt there is no table: the lines of the page are candidates anyway.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from e2erag.extract.document import Box, Page
from e2erag.extract.table_lines import (
    FEW,
    MONEY,
    NUMBER,
    TOUCH,
    Line,
    Piece,
    connected,
    lines_of,
    parted,
    places,
    width,
)
from e2erag.extract.table_rows import HEADS, Table, as_rows, as_sentences, heads_of, ruled_off, table_of, wrapped

__all__ = ["Table", "as_rows", "as_sentences", "find_tables"]

LINES = 3  # an aligned table has at least so many lines of two cells
FAR = 2.5  # ems of white between two lines of a table
PROSE = 30  # characters: two columns whose cells are longer on average are columns of prose
STUCK = 0.8  # ems more than a space between words that stand in two columns
STRAY = 0.1  # share of a table's lines that may have two pieces in one column
ALIGNED = 0.7  # share of a column's cells that must begin, end or stand centred at one place

_SIGN = re.compile(r"\s+(?=[$€£¥])")  # of money, before which an amount begins
_MARKER = re.compile(r"[•●▪■◦o*·–—-]|[\[(]?(?:\d{1,3}|[a-zA-Z]|[ivxlIVX]{1,5})[\])]?[.)\]]?")


MOST_LINES = 2000
"""A page with more lines than a printed page can hold is left without tables, so that no page takes seconds."""


def find_tables(page: Page) -> tuple[Table, ...]:
    """The tables of a page in reading order, none of which overlap."""
    units = page.units
    if len(units) > MOST_LINES:
        return ()
    upright = [rule for rule in page.rules if rule.y1 - rule.y0 > rule.x1 - rule.x0]
    if len(units) < 2 or not (
        upright or any(u.cells for u in units) or any(b.box.y1 < a.box.y0 for a, b in pairwise(units))
    ):
        return ()
    lines = lines_of(units)
    level = [rule for rule in page.rules if rule.y1 - rule.y0 <= rule.x1 - rule.x0]
    found: list[Table] = []
    taken: set[int] = set()
    for table, used in _grids(lines, level, upright) if upright else ():
        if taken.isdisjoint(used):
            found.append(table)
            taken.update(used)
    edges = sorted(level, key=lambda rule: rule.y0)
    for free, stretch in groupby(range(len(lines)), key=lambda i: i not in taken):
        if free:
            for run in _runs([lines[i] for i in stretch]):
                found += _aligned(run, edges)
    found.sort(key=lambda table: table.start)
    return tuple(table for i, table in enumerate(found) if not i or table.start >= found[i - 1].stop)


# Ruled tables.


def _grids(lines: list[Line], level: list[Box], upright: list[Box]) -> Iterator[tuple[Table, list[int]]]:
    """Tables of cells that ruling lines frame, each with the lines it takes."""
    order = sorted(range(len(lines)), key=lambda i: lines[i].middle)
    middles = [lines[i].middle for i in order]
    for rules in connected([*level, *upright]):
        stand = [rule for rule in rules if rule.y1 - rule.y0 > rule.x1 - rule.x0]
        if not stand:
            continue
        x0, y0, x1, y1 = (f(rule[k] for rule in rules) for k, f in enumerate((min, min, max, max)))
        ys = places([(r.y0 + r.y1) / 2 for r in rules if r.y1 - r.y0 <= r.x1 - r.x0] + [y0, y1])
        xs = places([(r.x0 + r.x1) / 2 for r in stand] + [x0, x1])
        if len(xs) < 3 or len(ys) < 2:
            continue
        walls: list[set[int]] = [set() for _ in ys[1:]]  # which inner uprights stand in each band
        for rule in stand:
            wall = bisect_left(xs, (rule.x0 + rule.x1) / 2 - TOUCH)
            for band in range(bisect_left(ys, rule.y0 - TOUCH), bisect_right(ys, rule.y1 + TOUCH) - 1):
                if 0 < wall < len(xs) - 1:
                    walls[band].add(wall)
        banded: list[list[int]] = [[] for _ in ys[1:]]
        for i in order[bisect_left(middles, y0) : bisect_right(middles, y1)]:
            if x0 - TOUCH < (lines[i].x0 + lines[i].x1) / 2 < x1 + TOUCH:
                banded[min(max(bisect_right(ys, lines[i].middle), 1), len(ys) - 1) - 1].append(i)
        for divided, stretch in groupby(range(len(walls)), key=lambda b: bool(walls[b]) or len(banded[b]) < 2):
            bands = [(sorted(banded[b]), walls[b]) for b in stretch if banded[b]]
            while bands and not bands[0][1]:  # a title, or what stands in the frame below
                bands.pop(0)
            while bands and not bands[-1][1]:
                bands.pop()
            if divided and (table := _grid(lines, bands, xs)):
                yield table, [i for band, _ in bands for i in band]


def _grid(lines: list[Line], bands: list[tuple[list[int], set[int]]], xs: list[float]) -> Table | None:
    """The table of a grid whose bands between level lines hold these lines and have these inner uprights."""
    groups: list[list[Line]] = []
    for band, walls in bands:
        here = [lines[i] for i in band]
        for line in here:
            _into_walls(line, xs, [0, *sorted(walls), len(xs) - 1])
        full = [line for line in here if len(line.cells) > 1 and min(line.cells) == 0]
        sparse = len(bands) <= LINES and len(full) >= LINES and len(full) >= ALIGNED * len(here)
        groups += wrapped(here, len(xs) - 1) if sparse else [here]
    used = sorted({column for group in groups for line in group for column in line.cells})
    filled = [len({column for line in group for column in line.cells}) for group in groups]
    if len(used) < 2 or sum(n > 1 for n in filled) < 2:
        return None
    for group in groups:
        for line in group:
            line.cells = {used.index(column): text for column, text in line.cells.items()}
            line.spans = tuple((used.index(a), sum(c < b for c in used)) for a, b in line.spans)
    return table_of(groups, [(xs[column], xs[column + 1]) for column in used], None)


def _into_walls(line: Line, xs: list[float], walls: list[int]) -> None:
    """Puts the pieces of a line into the columns of a grid; one that runs through an upright is parted there.

    `walls` are the uprights that stand beside it, the outer ones too, as indices into `xs`.
    """
    line.cells, spans = {}, []
    stand = [xs[wall] for wall in walls]
    pieces = list(line.pieces)[::-1]
    while pieces:
        piece = pieces.pop()
        for x in stand[bisect_right(stand, piece.x0 + 2) : bisect_left(stand, piece.x1 - 2)]:
            if two := parted(piece, x, x, line.size):
                piece = two[0]
                pieces.append(two[1])
                break
        k = min(max(bisect_right(stand, (piece.x0 + piece.x1) / 2), 1), len(stand) - 1)
        first, stop = walls[k - 1], walls[k]
        if stop - first > 1:
            spans.append((first, stop))
        line.cells[first] = f"{line.cells[first]} {piece.text}" if first in line.cells else piece.text
    line.spans = tuple(spans)


# Aligned tables.


def _runs(lines: list[Line]) -> Iterator[list[Line]]:
    """Stretches of lines in which several have cells, near each other and of about one size.

    A line without cells may stand in between while it is short: a heading within, or a cell that goes on.
    """
    run: list[Line] = []
    left, right, alone = 0.0, 0.0, 0
    for k, line in enumerate(lines):
        many = len(line.pieces) > 1
        if run:
            last = run[-1]
            near = last.y0 - 0.5 <= line.y0 < last.y1 + FAR * max(line.size, last.size)
            narrow = many or (alone < 6 and line.x1 - line.x0 < 0.6 * (right - left))
            across = line.x0 < right and (line.x1 > left or not many)  # a heading within may stand left of the header
            sized = line.size < (1.3 if many else 1.15) * last.size and last.size < 1.3 * line.size
            if not (near and narrow and sized and across):
                yield run
                run = []
        if many:
            left, right = (min(left, line.x0), max(right, line.x1)) if run else (line.x0, line.x1)
        if not run and many:  # with the lines of a header's tall cells that begin above its middle
            first = k
            while first and k - first < HEADS and lines[first - 1].y1 > lines[first].y0 + 0.1 * line.size:
                first -= 1
            run = lines[first:k] if all(lines[i].y0 <= lines[i + 1].y0 for i in range(first, k)) else []
        if run or many:
            run.append(line)
            alone = 0 if many else alone + 1
    yield run


def _aligned(run: list[Line], edges: list[Box], depth: int = 0) -> list[Table]:
    """The tables of a run: the longest stretch that fits one set of columns, and what is found before and after it."""
    while run and len(run[-1].pieces) < 2 and not _goes_on(run):
        run = run[:-1]
    if sum(len(line.pieces) > 1 for line in run) < LINES or depth > LINES:
        return []
    columns = _columns(run)
    if len(columns) < 2:
        return []
    set_wide = [
        (p.x1 - p.x0) / (width(p.text) * line.size) for line in run for p in line.pieces if len(_over(p, columns)) == 1
    ]
    scale = sorted(set_wide)[len(set_wide) // 2] if set_wide else 1.0
    if _unstuck(run, columns, scale):
        columns = _columns(run)
    fits = [_into_columns(line, columns, scale, i < HEADS) for i, line in enumerate(run)]
    if len(joined := _joined(run, columns)) < len(columns):
        columns = joined
        fits = [_into_columns(line, columns, scale, i < HEADS) for i, line in enumerate(run)]
    if fits.count(False) <= STRAY * len(run):
        fits = [True] * len(run)
    stretches = [[i for i, _ in stretch] for fit, stretch in groupby(enumerate(fits), key=lambda pair: pair[1]) if fit]
    longest = max(stretches, key=len, default=[])
    if not longest:
        return []
    a, b = longest[0], longest[-1] + 1
    table = None
    if b - a == len(run):
        table = _checked(run, columns, edges)
        return [table] if table else []
    inner = _aligned(run[a:b], edges, depth + 1)
    return _aligned(run[:a], edges, depth + 1) + inner + _aligned(run[b:], edges, depth + 1)


def _unstuck(run: list[Line], columns: list[tuple[float, float]], scale: float) -> bool:
    """Parts the pieces of columns that are two too near each other: a number and words, set wider than they are."""
    standing: list[list[tuple[Line, int]]] = [[] for _ in columns]
    for line in run:
        for k, piece in enumerate(line.pieces):
            if " " in piece.text and len(over := _over(piece, columns)) == 1:
                standing[over[0]].append((line, k))
    found = False
    for column in standing:
        pieces = [line.pieces[k] for line, k in column]
        spare = sorted(
            (p.x1 - p.x0) / line.size - scale * width(p.text) for p, (line, _) in zip(pieces, column, strict=True)
        )
        if len(pieces) <= LINES or spare[len(spare) // 2] < STUCK:
            continue
        for end, part in ((0, str.split), (-1, str.rsplit)):
            if sum(bool(NUMBER.fullmatch(p.text.split(" ")[end])) for p in pieces) < 0.8 * len(pieces):
                continue
            for line, k in sorted(column, key=lambda at: -at[1]):
                text, x0, x1 = line.pieces[k]
                first, second = part(text, " ", 1)
                if not NUMBER.fullmatch((first, second)[end]):
                    continue
                ends = x0 + scale * width(first) * line.size, x1 - scale * width(second) * line.size
                line.pieces[k : k + 1] = [Piece(first, x0, min(ends)), Piece(second, max(ends), x1)]
            found = True
            break
    return found


def _goes_on(run: list[Line]) -> bool:
    """Whether the last line is the rest of a cell: close below the line before it, under the beginning of a cell."""
    if len(run) < 2:
        return False
    before, line = run[-2:]
    if line.y0 < before.y1 - 0.1 * line.size:  # a cell in the middle of its row stands between this one's lines
        return True
    under = any(abs(piece.x0 - line.x0) < 0.3 * line.size for other in run[-4:-1] for piece in other.pieces)
    inside = line.x0 > min(other.x0 for other in run[-FEW:]) + line.size or line.pieces[0].text[:1].islower()
    return under and inside and line.y0 - before.y1 < 0.35 * line.size


def _columns(run: list[Line]) -> list[tuple[float, float]]:
    """From where to where the columns reach: between them is white in the lines with the usual number of pieces.

    Other lines make columns wider (a header over numbers), or more of them, where they stand clear of all others.
    """
    many = sorted((line for line in run if len(line.pieces) > 1), key=lambda line: -len(line.pieces))
    counts = Counter(len(line.pieces) for line in many)
    usual = max(counts, key=lambda n: (counts[n] * n, n))
    core = [line for line in many if len(line.pieces) == usual]
    columns = _covered([piece for line in core for piece in line.pieces], max(len(core) // 5, len(core) > 4))
    columns = list(_parts(many, columns))
    rest = [p for line in many for p in line.pieces if not _over(p, columns, -1.0)]
    columns = sorted([*columns, *_covered(rest, 0)])
    for line in many:
        for piece in line.pieces:
            if len(over := _over(piece, columns)) == 1:
                x0, x1 = columns[over[0]]
                columns[over[0]] = min(x0, piece.x0), max(x1, piece.x1)
    return columns


def _parts(lines: list[Line], columns: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The columns; one in which many lines have two pieces in parts: other lines are set too close there."""
    inside: list[list[list[Piece]]] = [[] for _ in columns]  # by column and line
    for line in lines:
        here: dict[int, list[Piece]] = {}
        for piece in line.pieces:
            for j in _over(piece, columns):
                here.setdefault(j, []).append(piece)
        for j, pieces in here.items():
            inside[j].append(pieces)
    for column, held in zip(columns, inside, strict=True):
        double = [pieces for pieces in held if len(pieces) > 1]
        many = len(double) > 1 and 4 * len(double) >= len(held)
        yield from (_covered([p for pieces in double for p in pieces], len(double) // 5) if many else ()) or [column]


def _over(piece: Piece, columns: Sequence[tuple[float, float]], least: float = 1.0) -> list[int]:
    """The columns that a piece stands over by more than `least` points."""
    j = max(bisect_right(columns, (piece.x0, piece.x0)) - 2, 0)  # they stand in order and apart
    over = []
    while j < len(columns) and columns[j][0] < piece.x1 - least:
        if min(piece.x1, columns[j][1]) - max(piece.x0, columns[j][0]) > least:
            over.append(j)
        j += 1
    return over


def _joined(run: list[Line], columns: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The columns, a header's that stands beside its numbers joined to theirs: no line has cells in both."""
    filled = [{i for i, line in enumerate(run) if j in line.cells} for j in range(len(columns))]
    out, j = list(columns[:1]), 1
    while j < len(columns):
        more = j + 1 < len(columns) and not filled[j] & filled[j + 1]
        if more and any(2 * sum(i < HEADS for i in filled[k]) >= len(filled[k]) for k in (j, j + 1)):
            out.append((columns[j][0], columns[j + 1][1]))
            j += 1
        else:
            out.append(columns[j])
        j += 1
    return out


def _covered(pieces: Sequence[Piece], few: int) -> list[tuple[float, float]]:
    """The stretches over which more than `few` pieces stand."""
    events = sorted([(piece.x0 + 0.5, 1) for piece in pieces] + [(piece.x1, -1) for piece in pieces])
    out: list[tuple[float, float]] = []
    height, begin = 0, 0.0
    for x, step in events:
        if height == few and step > 0:
            begin = x
        height += step
        if height == few and step < 0:
            out.append((begin, x))
    return out


def _into_columns(line: Line, columns: list[tuple[float, float]], scale: float, early: bool) -> bool:
    """Puts the pieces of a line into columns; False if two stand in one.

    A piece over two columns is parted between its words; in an early line, which may be a header with a cell over
    both, only if that fills every column and the piece is wider than its words. `scale` is the font's width.
    """
    line.cells, spans, fits = {}, [], True
    full = sum(len(_over(piece, columns)) for piece in line.pieces) == len(columns)
    pieces = list(line.pieces)[::-1]
    while pieces:
        piece = pieces.pop()
        over = _over(piece, columns)
        loose = piece.x1 - piece.x0 > (scale * width(piece.text) + 0.2 * (len(over) - 1)) * line.size
        short = len(piece.text) < 25 * len(over) and (len(over) == 2 or loose)
        if len(over) > 1 and short and len(line.pieces) > 1 and not NUMBER.fullmatch(piece.text):
            gap = columns[over[0]][1], columns[over[1]][0]
            free = not pieces or pieces[-1].x0 > columns[over[1]][0]
            if free and (not early or (full and loose)) and (two := parted(piece, *gap, line.size * scale)):
                piece = two[0]
                pieces.append(two[1])
                over = over[:1]
        if len(over) > 1 and len(line.pieces) > 1:
            spans.append((over[0], over[-1] + 1))
        alone = len(line.pieces) == 1 and len(over) != 1  # a heading within the table
        at = (
            0
            if alone
            else over[0]
            if over
            else min(range(len(columns)), key=lambda j: abs(sum(columns[j]) - piece.x0 - piece.x1))
        )
        fits = fits and at not in line.cells
        line.cells[at] = f"{line.cells[at]} {piece.text}" if at in line.cells else piece.text
    line.spans = tuple(spans)
    return _priced_each(line, len(columns)) or fits


def _priced_each(line: Line, columns: int) -> bool:
    """Whether a row of a label and as many amounts as columns had several of them in one: set so near to each other
    that the next one's sign stands right behind a number. Each is in its own then."""
    texts, sign = [], ""
    for j in sorted(line.cells.keys() - {0}):
        text, sign = f"{sign} {line.cells[j]}".strip(), ""
        if text in MONEY:
            sign = text
        else:
            texts.append(text)
    amounts = [amount for text in texts for amount in _SIGN.split(text)]
    if len(amounts) != columns - 1 or len(amounts) == len(texts) or not all(map(NUMBER.fullmatch, amounts)):
        return False
    line.cells = {j: text for j, text in line.cells.items() if not j} | dict(enumerate(amounts, start=1))
    line.spans = ()
    return True


def _checked(run: list[Line], columns: list[tuple[float, float]], edges: list[Box]) -> Table | None:
    """The table of lines whose pieces stand in columns, unless these are prose, a list, or not aligned."""
    many = [line for line in run if len(line.cells) > 1]
    if len(many) < LINES:
        return None
    texts = [[line.cells[j] for line in run if j in line.cells] for j in range(len(columns))]
    long = sum(sum(map(len, column)) > PROSE * len(column) for column in texts)
    if long > 1 or (len(columns) == 2 and sum(bool(_MARKER.fullmatch(text)) for text in texts[0]) > len(texts[0]) / 2):
        return None
    standing: list[list[Piece]] = [[] for _ in columns]
    for line in many:
        for piece in line.pieces:
            if len(over := _over(piece, columns)) == 1:
                standing[over[0]].append(piece)
    straight = sum(_straight(pieces, 0.6 * run[0].size) for pieces in standing)
    heads = ruled_off(run, edges)
    groups = heads_of(run[:heads]) + wrapped(run[heads:], len(columns)) if heads else wrapped(run, len(columns))
    filled = [n for group in groups if (n := len({j for line in group for j in line.cells})) > 1]
    if straight < max(2, 0.6 * len(columns)) or len(filled) < LINES or sum(filled) < 0.4 * len(columns) * len(filled):
        return None
    return table_of(groups, columns, len(heads_of(run[:heads])))


def _straight(pieces: Sequence[Piece], near: float) -> bool:
    """Whether most pieces begin, end or are centred at one place."""
    least = min(ALIGNED * len(pieces), max(len(pieces) - 2, LINES))  # two lines may be a header
    for ends in ([p.x0 for p in pieces], [p.x1 for p in pieces], [(p.x0 + p.x1) / 2 for p in pieces]):
        usual = sorted(ends)[len(ends) // 2] if ends else 0.0
        if ends and sum(abs(end - usual) < near for end in ends) >= least:
            return True
    return False
