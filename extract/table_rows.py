"""The rows of a table: which lines make one, which of them name the columns, and how they are put as text."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from e2erag.extract.document import Box, dehyphenated
from e2erag.extract.table_lines import NUMBER, Line

HEADS = 5  # rows of a header at most
ALIGNED = 0.7  # share of a table's columns that a full row fills

_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page: its lines are `page.units[start:stop]`, wrapped cells included.

    Attributes:
        start, stop: the units it takes, all that stand in between among them.
        columns: from where to where each column reaches, in points, left to right.
        rows: the cells of each logical row, one per column, "" where there is none. A header's cell that spans
            columns stands in each of them, another one in its first.
        row_units: the units that each logical row takes, in order; every unit is in one row.
        header: how many of the first rows name the columns.
    """

    start: int
    stop: int
    columns: tuple[tuple[float, float], ...]
    rows: tuple[tuple[str, ...], ...]
    row_units: tuple[tuple[int, ...], ...]
    header: int = 0


def as_rows(table: Table) -> tuple[str, ...]:
    """A text per unit: a row's first unit says "cell | cell | cell", the lines on which its cells go on say nothing."""
    texts = [""] * (table.stop - table.start)
    for r, (cells, units) in enumerate(zip(table.rows, table.row_units, strict=True)):
        shown = list(cells)
        if r < table.header - 1:  # what spans columns is said once
            shown = [cell if not j or cell != cells[j - 1] else "" for j, cell in enumerate(cells)]
        while shown and not shown[-1]:
            shown.pop()
        texts[units[0] - table.start] = " | ".join(shown)
    return tuple(texts)


def as_sentences(table: Table) -> tuple[str, ...]:
    """A text per unit: a row's first unit says "Year: 2012; Revenue: 5.", the header and all others nothing.

    Where the first column has no name, its cell names the row: "Revenue — 2012: 5; 2013: 6.". Without a header a cell
    that ends in a colon is the label of the next one, else the row's first cell is: "Seats: 4; Engines: 1.".
    """
    texts = [""] * (table.stop - table.start)
    names = _names(table)
    columns = [[cell for cell in column if cell] for column in zip(*table.rows, strict=True)]
    labels = {j for j, column in enumerate(columns) if sum(cell.endswith(":") for cell in column) > len(column) / 2}
    for cells, units in zip(table.rows[table.header :], table.row_units[table.header :], strict=True):
        filled = [(names[j], cell) for j, cell in enumerate(cells) if cell]
        if not filled:
            continue
        if not table.header:
            said = _labelled(cells, labels)
        else:
            parts = [f"{name}: {cell}" if name else cell for name, cell in filled]
            named = not filled[0][0] and bool(cells[0]) and len(parts) > 1
            said = f"{parts[0]} — {'; '.join(parts[1:])}" if named else "; ".join(parts)
        texts[units[0] - table.start] = said if said.endswith((".", "!", "?", ":")) else said + "."
    return tuple(texts)


def _names(table: Table) -> list[str]:
    """What each column is called: its header's cells from top to bottom, but for those that name the whole table."""
    heads = [row for row in table.rows[: table.header] if len(row) < 2 or len(set(row)) > 1]
    names = []
    for column in range(len(table.columns)):
        parts = list(dict.fromkeys(row[column] for row in heads if row[column]))
        names.append(" ".join(parts).rstrip(" :"))
    return names


def _labelled(cells: Sequence[str], labels: Set[int]) -> str:
    """The cells of a row without a header: what stands right of a label follows it, all else stands for itself."""
    filled = [cell for cell in cells if cell]
    if not labels and not any(":" in cell for cell in filled):
        return filled[0] if len(filled) < 2 else f"{filled[0]}: {'; '.join(filled[1:])}"
    said: list[str] = []
    open_label = False  # the cell before is a label that waits for its value
    for j, cell in enumerate(cells):
        label = cell.endswith(":") or (j in labels and ": " not in cell)
        if cell and open_label and not label:
            said[-1] += f" {cell}"
        elif cell and label and len(filled) > 1:
            said.append(cell if cell.endswith(":") else f"{cell}:")
        elif cell:
            said.append(cell)
        open_label = bool(cell) and label and j + 1 < len(cells)
    return "; ".join(f"{part} –" if part.endswith(":") and len(filled) > 1 else part for part in said)


def wrapped(lines: list[Line], columns: int) -> list[list[Line]]:
    """Lines grouped into rows: a line belongs to the row above where that row's cells go on in it.

    It does where lines stand closer within rows than between them; else where it has no first cell and fills few
    columns, or where its first cell goes on in lower case.
    """
    pitches = [below.y1 - above.y1 for above, below in pairwise(lines)]
    tight = _tight(lines, pitches, columns)
    groups: list[list[Line]] = []
    for i, line in enumerate(lines):
        if not groups:
            groups.append([line])
            continue
        row, pitch = groups[-1], pitches[i - 1]
        have = {j for other in row for j in other.cells}
        text = next(iter(line.cells.values()), "")
        few = len(line.cells) <= max(columns // 2, 1) and len(line.cells) < max(len(have), 2)
        if pitch < 0.8 * line.size or (tight and pitch <= tight):
            on = True
        elif tight:
            on = False
        elif 0 not in line.cells:
            on = few and set(line.cells) <= have and not all(map(NUMBER.fullmatch, line.cells.values()))
        else:
            lower = text[:1].islower() and len(text) > 2
            on = lower and (len(line.cells) == 1 or have == {0}) and pitch < 1.7 * line.size
        if on:
            row.append(line)
        else:
            groups.append([line])
    return groups


def _tight(lines: list[Line], pitches: list[float], columns: int) -> float:
    """The widest pitch within rows, or 0 where pitches don't tell.

    Rows stand further apart than the lines of a cell; these are a font size apart or, where cells stand in the middle
    of their row, less.
    """
    ranked = sorted(pitches)
    size = max((line.size for line in lines), default=1.0)
    steps = [(b / max(a, 1.0), a) for a, b in pairwise(ranked) if a < 1.5 * size and b > 0.8 * size]
    for among in ([(r, a) for r, a in steps if a > 0.8 * size], [(r, a) for r, a in steps if a <= 0.8 * size]):
        step, at = max(among, default=(1.0, 0.0))
        close = [(lines[i], lines[i + 1]) for i, pitch in enumerate(pitches) if pitch <= at]
        whole = sum(
            len(line.cells) > 1 and 0 in line.cells and len(line.cells) >= ALIGNED * columns and 0 in above.cells
            for above, line in close
        )
        if step >= 1.15 and whole <= 0.4 * len(close) and len(pitches) - len(close) > 1:
            return at
    return 0.0


def ruled_off(run: list[Line], edges: list[Box]) -> int:
    """How many first lines stand above a ruling line, where there is none between most other lines."""
    x0, x1 = min(line.x0 for line in run), max(line.x1 for line in run)
    tops = [edge.y0 for edge in edges]
    ruled = []
    for k, (above, below) in enumerate(pairwise(run), 1):
        low, high = above.middle, below.middle
        here = edges[bisect_left(tops, low) : bisect_right(tops, high)]
        if sum(max(min(edge.x1, x1) - max(edge.x0, x0), 0) for edge in here) > 0.5 * (x1 - x0):
            ruled.append(k)
    heads = [k for k in ruled if k <= HEADS and k <= len(run) - 2]
    if not heads or len(ruled) - 1 > 0.3 * len(run) or any(is_body(line.cells) for line in run[: heads[0]]):
        return 0
    return 0 if _goes_on([line.cells for line in run], heads[0]) else heads[0]


def _goes_on(rows: Sequence[Mapping[int, str]], at: int) -> bool:
    """Whether a column beside the first has numbers in the rows above `at`, two or more, as in those from it on."""
    for column in {column for row in rows[:at] for column in row if column}:
        above, below = ([row[column] for row in part if row.get(column)] for part in (rows[:at], rows[at:]))
        if len(above) > 1 and _counts(above) and _counts(below):
            return True
    return False


def _counts(texts: Sequence[str]) -> bool:
    """Whether most of a column's cells are numbers, and no years."""
    return sum(bool(NUMBER.fullmatch(t)) and not _YEAR.fullmatch(t) for t in texts) > len(texts) / 2


def heads_of(lines: list[Line]) -> list[list[Line]]:
    """Header lines as rows: what stands under cells that span columns begins a row of its own, all else is one row."""
    groups: list[list[Line]] = []
    for line in lines:
        if groups and not groups[-1][-1].spans:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def table_of(groups: list[list[Line]], columns: list[tuple[float, float]], heads: int | None) -> Table | None:
    """The rows put together; None if other lines stand between its units. `heads` is known where a rule says it."""
    rows = [_cells(group, len(columns)) for group in groups]
    if not heads:
        form = sum(any(text.endswith(":") or ": " in text for text in row) for row in rows) > len(rows) / 2
        heads = 0 if form else _header(rows, [all(line.bold for line in group) for group in groups])
        top = [line for group in groups[:heads] for line in group]
        groups = heads_of(top) + groups[heads:]
        heads = len(heads_of(top))
    units = [tuple(sorted(unit for line in group for unit in line.units)) for group in groups]
    used = sorted(unit for row in units for unit in row)
    start, stop = used[0], used[-1] + 1
    if len(used) != stop - start:
        return None
    rows = [_cells(group, len(columns), r < heads) for r, group in enumerate(groups)]
    return Table(start, stop, tuple(columns), tuple(rows), tuple(units), heads)


def _cells(group: list[Line], columns: int, header: bool = False) -> tuple[str, ...]:
    """The cells of a row of lines, each whole; a header's cell stands in every column that it spans."""
    parts: list[list[str]] = [[] for _ in range(columns)]
    for line in sorted(group, key=lambda line: (line.y1, line.x0)):
        for column, text in line.cells.items():
            stop = next((b for a, b in line.spans if a == column), column + 1) if header else column + 1
            for j in range(column, stop):
                parts[j].append(text)
    return tuple(" ".join(text for text in dehyphenated(texts) if text) for texts in parts)


def _header(rows: list[tuple[str, ...]], bold: list[bool]) -> int:
    """How many rows name the columns: bold above what is not, words above numbers, or unlike all that follow."""
    strong = next((i for i, b in enumerate(bold) if not b or is_body(dict(enumerate(rows[i])))), len(bold))
    few = 0 < strong <= min(HEADS, len(rows) - 1) and sum(bold[strong:]) <= 0.5 * (len(rows) - strong)
    if few and not _goes_on([dict(enumerate(row)) for row in rows], strong):
        return _above(rows, strong)
    body = rows[1:]
    columns = range(1, len(rows[0]))
    numbers = [j for j in columns if _share(body, j) > 0.6]
    if numbers:
        years = {j for j in numbers if sum(bool(_YEAR.fullmatch(row[j])) for row in body) > len(body) / 2}
        for i, row in enumerate(rows[: HEADS + 1]):
            known = {j: row[j] for j in numbers if row[j]}
            values = sum(bool(NUMBER.fullmatch(t)) and (j in years or not _YEAR.fullmatch(t)) for j, t in known.items())
            if known and values > len(known) / 2:
                return 0 if i and not any(any(above[1:]) for above in rows[:i]) else _above(rows, i)
    first = rows[0]
    others = {text for row in body for text in row}
    filled = all(first[1:]) and (bool(first[0]) or all(row[0] for row in body))  # above labels there may be nothing
    short = filled and len(set(first)) == len(first) and max(map(len, first)) <= 40
    named = not any(NUMBER.fullmatch(text) or text[:1].islower() for text in first) and not others & {*first} - {""}
    return int(short and named and len(body) > 1)


def is_body(cells: Mapping[int, str]) -> bool:
    """Whether most cells beside the first are numbers that name nothing, as years would."""
    beside = [text for column, text in cells.items() if column and text]
    return _counts(beside)


def _above(rows: list[tuple[str, ...]], i: int) -> int:
    """Rows above the first one with numbers, without the headings within the table right above it."""
    while i > 1 and sum(map(bool, rows[i - 1])) == 1 and (rows[i - 1][0] or "".join(rows[i - 1]).endswith(":")):
        i -= 1
    return i


def _share(rows: Sequence[tuple[str, ...]], column: int) -> float:
    """Of the filled cells of a column, the share of numbers."""
    filled = [row[column] for row in rows if row[column]]
    return sum(bool(NUMBER.fullmatch(text)) for text in filled) / len(filled) if len(filled) > 1 else 0.0
