"""WikiTableQuestions tables printed as PDF pages, with prose around them and exact gold: cells, header, place.

Cells and header rows are those of a table's html where that is there (four of five), else of its csv, which has one
header row and says again what reaches over several cells; here that is printed once, where it begins.

A seed fixes everything. Lengths are in points; the origin is the top left of the page and y grows downwards.
"""

import csv
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from lxml import html
from reportlab.lib.utils import simpleSplit
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

FOLDER = Path(__file__).parents[1] / "../shared/data/wikitablequestions"
STYLES = ("grid", "tight grid", "header rule", "zebra", "plain", "column by column")
GAPS = {"grid": [9.0, 12.0, 18.0], "tight grid": [4.0, 5.0, 7.0]}
"""Points between the texts of two columns, at least; of the other styles `GAP`."""
GAP = [14.0, 18.0, 24.0]
WIDTH, HEIGHT, MARGIN = 595.0, 842.0, 56.0

Row = tuple[str, ...]


class Source(NamedTuple):
    """A table: its name in the archive without what its format adds, its rows, and how many of them are its header."""

    name: str
    rows: list[Row]
    header: int = 1


@dataclass(frozen=True, slots=True)
class Printed:
    """A table, or its part on one page: where it stands, and the rows printed there, the first `header` its header."""

    page: int
    top: float
    bottom: float
    rows: tuple[Row, ...]
    header: int = 1


def tables(folder: str | Path = FOLDER) -> list[Source]:
    """The tables of `csv.tar.gz` that fit a page's width, sorted, as `csv-html.tar.gz` has them where it does.

    Raises:
        FileNotFoundError: the first archive is missing.
    """
    archive = Path(folder) / "csv.tar.gz"
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} is missing: name the folder that holds WikiTableQuestions' csv.tar.gz")
    found = {}
    for name, text in _members(archive, ".csv"):
        rows = [tuple(map(_clean, row)) for row in csv.reader(io.StringIO(text.replace('\\"', '""'))) if row]
        if _fits(rows):
            found[name] = Source(name, rows[:60])
    if (archive := Path(folder) / "csv-html.tar.gz").is_file():
        for name, text in _members(archive, ".html"):
            if name in found and _fits((source := of_html(name, text)).rows):
                found[name] = source._replace(rows=source.rows[:60])
    return sorted(found.values())


def _members(archive: Path, ending: str) -> Iterator[tuple[str, str]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(ending) and (file := tar.extractfile(member)) is not None:
                yield member.name.removesuffix(ending), file.read().decode("utf-8", "replace")


def _fits(rows: Sequence[Row]) -> bool:
    if len(rows) < 4 or not 2 <= len(rows[0]) <= 8 or any(len(row) != len(rows[0]) for row in rows):
        return False
    return max(len(cell) for row in rows for cell in row) <= 120 and sum(map(bool, rows[0])) > 1


def of_html(name: str, text: str) -> Source:
    """A table as its page has it; a cell over several columns or rows is said where it begins, the others are empty."""
    taken: dict[tuple[int, int], str] = {}
    header, count, wide = 0, 0, 0
    for line in html.fromstring(text).iter("tr"):
        cells = [cell for cell in line if cell.tag in ("td", "th")]
        column = 0
        for cell in cells:
            while (count, column) in taken:
                column += 1
            down, across = (min(max(int(_digits(cell.get(f"{way}span")) or 1), 1), 100) for way in ("row", "col"))
            taken |= {(count + i, column + j): "" for i in range(down) for j in range(across)}
            taken[count, column] = _clean("".join(cell.xpath(".//text()[not(ancestor::style)]")))
            wide = max(wide, column + across)
        header += count == header and bool(cells) and all(cell.tag == "th" for cell in cells)
        count += bool(cells)
    rows = [tuple(taken.get((r, c), "") for c in range(wide)) for r in range(count)]
    return Source(name, [row for row in rows if any(row)], max(header, 1))


def _digits(text: str | None) -> str:
    return "".join(filter(str.isdigit, text or ""))


def _clean(text: str) -> str:
    return " ".join(_latin(text).split())


def _latin(text: str) -> str:
    """What the PDF's standard fonts can set."""
    text = text.replace("\\n", " ").replace("−", "-").replace("\xa0", " ")
    return "".join(c if c.isprintable() else " " for c in text.encode("cp1252", "ignore").decode("cp1252"))


def is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").lstrip("+-$").rstrip("%").isdigit()


@dataclass(frozen=True, slots=True)
class Look:
    """How a table is set."""

    style: str
    size: float
    pad: float  # above and below a row's text
    gap: float  # between the texts of two columns, at least
    bold: bool  # the header
    middle: bool  # cells stand in the middle of their row
    right: bool  # numbers are right aligned
    font: str

    @property
    def leading(self) -> float:
        return 1.2 * self.size


def look(style: str, rng: Random) -> Look:
    font = rng.choice(["Helvetica", "Times"])
    pad, gap = rng.choice([2.0, 3.0, 5.0]), rng.choice(GAPS.get(style, GAP))
    return Look(style, rng.choice([8.0, 9.0, 10.0]), pad, gap, rng.random() < 0.6, rng.random() < 0.3, True, font)


def render(
    rows: Sequence[Row], prose: Iterator[str], style: str, seed: int, header: int = 1
) -> tuple[bytes, list[Printed]]:
    """The pages as PDF: prose, caption, the table (its header rows again on a further page), prose."""
    rng = Random(f"{style} {seed}")
    how = look(style, rng)
    data = io.BytesIO()
    canvas = Canvas(data, pagesize=(WIDTH, HEIGHT), invariant=True)
    while sum(widths := _widths(rows, how, header)) + how.gap * len(widths) > WIDTH - 2 * MARGIN and how.size > 5:
        how = replace(how, size=how.size - 1)
    fonts = [_font(how, i < header) for i in range(len(rows))]
    wrapped = [
        [simpleSplit(cell, font, how.size, width) for cell, width in zip(row, widths, strict=True)]
        for row, font in zip(rows, fonts, strict=True)
    ]
    heights = [max(map(len, row)) * how.leading + 2 * how.pad for row in wrapped]
    y = _prose(canvas, prose, MARGIN, rng.randint(3, 14))
    y = _prose(canvas, iter([f"Table {seed % 9 + 1}. {next(prose)[:50]}"]), y + 6, 1) + 4
    printed, at, page, head = [], header, 1, sum(heights[:header])
    while at < len(rows):
        if y + head + heights[at] > HEIGHT - MARGIN:
            canvas.showPage()
            page, y = page + 1, MARGIN
        top, take, bottom = y, list(range(header)), y + head
        while at < len(rows) and bottom + heights[at] <= HEIGHT - MARGIN:
            take.append(at)
            bottom += heights[at]
            at += 1
        if len(take) == header:  # a row taller than a page
            break
        _draw(canvas, how, [wrapped[i] for i in take], [heights[i] for i in take], widths, top, header)
        printed.append(Printed(page, top, bottom, tuple(rows[i] for i in take), header))
        y = bottom
    if y < HEIGHT - MARGIN - 60:
        _prose(canvas, prose, y + 16, 8)
    canvas.save()
    return data.getvalue(), printed


def _font(how: Look, head: bool) -> str:
    bold = how.bold and head
    return f"{how.font}-{'Bold' if bold else 'Roman'}" if how.font == "Times" else "Helvetica" + "-Bold" * bold


def _widths(rows: Sequence[Row], how: Look, header: int) -> list[float]:
    """Each column as wide as it wants; if that is too much the widest give way, and their cells wrap."""
    wanted, least = [], []
    for column in zip(*rows, strict=True):
        fonts = [_font(how, i < header) for i in range(len(rows))]
        wanted.append(max(stringWidth(cell, font, how.size) for cell, font in zip(column, fonts, strict=True)) + 1)
        least.append(
            max(stringWidth(w, f, how.size) for c, f in zip(column, fonts, strict=True) for w in [*c.split(), ""]) + 1
        )
    room = WIDTH - 2 * MARGIN - how.gap * len(wanted)
    limit = max(wanted)
    while sum(min(w, limit) for w in wanted) > room and limit > 20:
        limit *= 0.95
    return [max(min(w, limit), floor, 12.0) for w, floor in zip(wanted, least, strict=True)]


def _draw(
    canvas: Canvas, how: Look, rows: list[list[list[str]]], heights: list[float], widths: list[float], top: float,
    header: int,
) -> None:  # fmt: skip
    """One part of the table, its header first."""
    xs = [MARGIN]
    for width in widths:
        xs.append(xs[-1] + width + how.gap)
    ys = [top]
    for height in heights:
        ys.append(ys[-1] + height)
    canvas.setLineWidth(0.5)
    if how.style == "zebra":
        canvas.setFillGray(0.93)
        for r in range(header, len(rows), 2):
            canvas.rect(xs[0], HEIGHT - ys[r + 1], xs[-1] - xs[0], heights[r], stroke=0, fill=1)
        canvas.setFillGray(0)
    if how.style in GAPS:
        canvas.grid(xs, [HEIGHT - y for y in ys])
    if how.style == "header rule":
        canvas.line(xs[0], HEIGHT - ys[header], xs[-1], HEIGHT - ys[header])
    cells = [(r, c) for r in range(len(rows)) for c in range(len(widths))]
    if how.style == "column by column":
        cells.sort(key=lambda rc: rc[1])
    numeric = [sum(is_number(" ".join(row[c])) for row in rows) > len(rows) / 2 for c in range(len(widths))]
    for r, c in cells:
        font = _font(how, r < header)
        canvas.setFont(font, how.size)
        lines = rows[r][c]
        spare = heights[r] - 2 * how.pad - len(lines) * how.leading
        y = ys[r] + how.pad + how.size + (spare / 2 if how.middle else 0)
        for line in lines:
            right = xs[c] + how.gap / 2 + widths[c]
            x = right - stringWidth(line, font, how.size) if how.right and numeric[c] else xs[c] + how.gap / 2
            canvas.drawString(x, HEIGHT - y, line)
            y += how.leading


def _prose(canvas: Canvas, lines: Iterator[str], y: float, count: int) -> float:
    """Full lines of text from `y` down; returns where they end."""
    canvas.setFont("Helvetica", 10)
    for _, line in zip(range(count), lines, strict=False):
        y += 12
        canvas.drawString(MARGIN, HEIGHT - y, line[:95])
    return y
