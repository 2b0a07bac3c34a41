"""A document as Markdown: headings, paragraphs, list items and tables out of lines and their boxes.

What a format says itself (`Unit.heading`, `Unit.code`, cells) is used as it is. Where no line of a document is marked
as a heading, as in a PDF, a line is one if its type is clearly larger than that of the body, and the larger the higher
its level. A line goes on the paragraph above if it stands right below and its first word would not have fitted there,
or the word that it begins with was begun above.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from e2erag.extract.document import HYPHENS, Cell, Document, Unit

LARGER = 1.15  # than the body's type and bold: a heading
MUCH_LARGER = 1.35  # and without being bold
LONG = 200  # characters: what is longer is no heading, however large
WORDS = 40  # letters that a line has which goes on on the next page
STAMP = 3  # pages that show the same line, but for numbers: it is their head or stamp, however large
CLOSE = 0.65  # ems of white between two lines of a paragraph, at most
LEFTS = 40.0  # points within which lines begin at the same place
IN = 0.8  # ems that an item stands further right than the one it belongs to

_BULLET = re.compile(r"([•●▪■◦○‣⁃∙·*–-])\s+(?=\S)")
_DASHES = "*·–-"  # which stand in sentences too
_NUMBER = re.compile(r"(\d{1,3})[.)]\s+(?=\S)")
_DIGITS = re.compile(r"\d+")
_BROKEN = re.compile(r"\w[-–/]$")  # what a line end breaks there has no space
_END = re.compile(r"[.!?:;…][)\"'”’»]?$")
_ENTITY = re.compile(r"&#?\w+;$")  # written out: no end of a sentence
_INLINE = re.compile(r"[\\`*\[\]<]|(?<!\w)_|_(?!\w)|~(?=~)|&(?=#?\w+;)")
_START = re.compile(r"^(?=#{1,6}(?:\s|$)|>|[+-](?:\s|$)|={3,}|-{3,}|~~~)|(?<=^\d)(?=[.)]\s)|(?<=^\d\d)(?=[.)]\s)", re.M)


@dataclass(slots=True)
class _Block:
    """A heading, paragraph, item, table or fenced code; its lines, and which Markdown goes before the first."""

    kind: str  # "heading", "text", "item", "table" or "code"
    page: int
    lines: list[str] = field(default_factory=list)
    last: Unit | None = None
    mark: str = ""
    indent: int = 0

    def text(self) -> str:
        if self.kind in ("table", "code"):
            return "\n".join(self.lines)
        text = "".join(self.lines)
        if self.kind == "text":
            text = _START.sub(r"\\", text)
        pad = "    " * self.indent
        return f"{pad}{self.mark}{text}".replace("\n", "\n" + pad + " " * len(self.mark))


def to_markdown(document: Document, pages: bool = False) -> str:
    """The document as Markdown; with `pages`, a comment `<!-- page 2 -->` stands before what each page holds."""
    out: list[str] = []
    before: _Block | None = None
    for block in _blocks(document, pages):
        if pages and (before is None or before.page != block.page):
            out.append(f"\n<!-- page {block.page} -->\n")
            before = None
        listed = before is not None and before.kind == block.kind == "item"
        out.append(f"{'' if listed or not out else chr(10)}{block.text()}\n")
        before = block
    return "".join(out).lstrip("\n")


def _blocks(document: Document, pages: bool) -> Iterator[_Block]:
    levels = _levels(document)
    units, texts = document.units, document.texts
    edges = _edges(units)
    tables = dict(_tables(document))
    block: _Block | None = None
    lefts: list[float] = []  # where the items stand that the next may belong to
    i = 0
    while i < len(units):
        if i in tables:
            if block:
                yield block
            stop, lines = tables[i]
            yield _Block("table", units[i].page, lines)
            block, lefts, i = None, [], stop
            continue
        if units[i].code:
            if block:
                yield block
            stop = i
            while stop < len(units) and units[stop].code and (not pages or units[stop].page == units[i].page):
                stop += 1
            yield _Block("code", units[i].page, _fenced(units[i:stop]))
            block, lefts, i = None, [], stop
            continue
        unit, text = units[i], " ".join(texts[i].split())
        fresh = _fresh(unit, text, levels[i], lefts)
        begun = i > 0 and _mended(units[i - 1].text, texts[i - 1])
        i += 1
        if not text:
            if block:
                block.last = unit
            continue
        joins = _joins(block, block.last, unit, fresh, edges[i - 2], begun, pages) if block and block.last else None
        if block and joins is not None:
            block.lines.append(joins + _INLINE.sub(r"\\\g<0>", text))
        else:
            if block:
                yield block
            block = fresh
            lefts = _nested(block, unit, lefts)
            block.lines.append(_INLINE.sub(r"\\\g<0>", text[_marker(text) if block.kind == "item" else 0 :]))
        block.last = unit
    if block:
        yield block


def _fenced(units: Sequence[Unit]) -> list[str]:
    """Lines of code in a fence, with the spaces that their places on the page stand for."""
    left = min(unit.box.x0 for unit in units)
    cells = [unit.cells or (Cell(0, len(unit.text), unit.box.x0, unit.box.x1),) for unit in units]
    letter = median((cell.x1 - cell.x0) / (cell.stop - cell.start) for row in cells for cell in row)
    lines: list[str] = []
    last: Unit | None = None
    for unit, row in zip(units, cells, strict=True):
        if last and last.page == unit.page and unit.box.y0 - last.box.y1 > CLOSE * unit.font_size:
            lines.append("")
        line = ""
        for cell in row:
            line = f"{line} " if line else ""
            line = line.ljust(round((cell.x0 - left) / letter)) + unit.text[cell.start : cell.stop]
        lines.append(line)
        last = unit
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", "\n".join(lines)))])
    return [fence, *lines, fence]


def _fresh(unit: Unit, text: str, level: int, lefts: list[float]) -> _Block:
    """The block that a line would begin."""
    if level:
        return _Block("heading", unit.page, mark="#" * level + " ")
    if bullet := _BULLET.match(text):
        return _Block("item", unit.page, mark="- " if bullet else "")
    if number := _NUMBER.match(text):
        return _Block("item", unit.page, mark=f"{int(number[1])}. ")
    return _Block("text", unit.page)


def _marker(text: str) -> int:
    """How long the marker of an item is."""
    found = _BULLET.match(text) or _NUMBER.match(text)
    return found.end() if found else 0


def _nested(block: _Block, unit: Unit, lefts: list[float]) -> list[float]:
    """Sets how deep an item stands in its list; what no item is ends the list."""
    if block.kind != "item":
        return []
    lefts = [left for left in lefts if left < unit.box.x0 - IN * unit.font_size]
    block.indent = len(lefts)
    return [*lefts, unit.box.x0]


def _mended(printed: str, text: str) -> bool:
    """Whether the word at a line's end has been made whole with what begins the next line."""
    return printed.endswith(tuple(HYPHENS)) and not (text and printed.endswith(text))


def _joins(block: _Block, last: Unit, unit: Unit, fresh: _Block, edge: float, begun: bool, pages: bool) -> str | None:
    """What stands between the block and a line that goes on in it: a space, a line break, or nothing where the
    line above ends in a dash or slash; None if none does.

    `begun` is whether the last word of the block was begun there and ended on this line.
    """
    if begun and fresh.kind != "heading" and block.kind != "heading":
        return None if pages and unit.page != last.page else " "
    space = "" if _BROKEN.search(last.text) else " "
    size = min(unit.font_size, last.font_size) or 1.0
    gap = unit.box.y0 - last.box.y1
    if block.kind == "heading":
        alike = fresh.mark == block.mark and unit.page == last.page and abs(unit.font_size - last.font_size) < 0.5
        return space if alike and -0.5 * size < gap < 0.5 * size and (begun or _full(last, unit, edge)) else None
    if fresh.kind == "heading" or abs(unit.font_size - last.font_size) > 0.1 * size:
        return None
    full = _full(last, unit, edge)
    ended = bool(_END.search(last.text) and not _ENTITY.search(last.text))
    bullet = fresh.mark == "- " and unit.text[:1] not in _DASHES
    if fresh.kind == "item" and (bullet or not full or ended or block.kind == "item"):
        return None
    if unit.page != last.page:
        goes_on = full and not ended and len(last.text) > WORDS and unit.text[:1].islower()
        return space if goes_on and not pages else None
    if not -0.5 * size < gap < CLOSE * size or unit.box.x0 > last.box.x1 or unit.box.x1 < last.box.x0:
        return None
    if full:
        return space
    return None if ended or block.kind == "item" else "  \n"


def _full(last: Unit, unit: Unit, edge: float) -> bool:
    """Whether the first word of a line would not have fitted on the line before, which could reach to `edge`."""
    letter = (unit.box.x1 - unit.box.x0) / max(len(unit.text), 1)
    word = (len(unit.text.split(" ", 1)[0]) + 1) * letter
    return last.box.x1 + 0.98 * word > edge


def _edges(units: tuple[Unit, ...]) -> list[float]:
    """How far right each line could reach.

    As far as the longest of those that stand close above and below it, and as most that begin there on its page do.
    """
    out: list[float] = []
    group: list[Unit] = []
    beside: dict[tuple[int, int], list[float]] = {}
    for unit in units:
        if not unit.cells:
            beside.setdefault((unit.page, round(unit.box.x0 / LEFTS)), []).append(unit.box.x1)
    usual = {key: sorted(ends)[3 * len(ends) // 4] for key, ends in beside.items()}

    def edges() -> list[float]:
        far = max(unit.box.x1 for unit in group)
        return [max(far, usual.get((unit.page, round(unit.box.x0 / LEFTS)), 0.0)) for unit in group]

    for unit in units:
        last = group[-1] if group else None
        if last and not (unit.page == last.page and -1 < unit.box.y0 - last.box.y1 < CLOSE * unit.font_size):
            out += edges()
            group = []
        group.append(unit)
    return out + edges() if group else out


def _levels(document: Document) -> list[int]:
    """The level of every line, 0 for what is no heading."""
    units = document.units
    if any(unit.heading for unit in units):
        return [unit.heading for unit in units]
    letters: Counter[float] = Counter()
    for unit in units:
        letters[round(unit.font_size * 2) / 2] += len(unit.text)
    half, body = letters.total() / 2, 0.0
    for size in sorted(letters):
        body, half = size, half - letters[size]
        if half <= 0:
            break
    large = {
        i: round(unit.font_size * 2) / 2
        for i, unit in enumerate(units)
        if unit.font_size > (LARGER if unit.bold else MUCH_LARGER) * body and any(map(str.isalpha, unit.text))
    }
    said = {i: _DIGITS.sub("0", units[i].text) for i in large}
    pages = Counter(text for text, _ in {(said[i], units[i].page) for i in large})
    large = {i: size for i, size in large.items() if pages[said[i]] < STAMP}
    for first in [i for i in large if i - 1 not in large]:  # a paragraph in large type is none
        stop = first
        while stop in large and large[stop] == large[first]:
            stop += 1
        if sum(len(units[i].text) for i in range(first, stop)) > LONG:
            for i in range(first, stop):
                del large[i]
    ranks = {size: min(n, 6) for n, size in enumerate(sorted(set(large.values()), reverse=True), start=1)}
    return [ranks[large[i]] if i in large else 0 for i in range(len(units))]


def _tables(document: Document) -> Iterator[tuple[int, tuple[int, list[str]]]]:
    """Where tables begin: the unit after their last one, and their lines.

    Those found on the pages, and besides them any two or more lines in a row with the same number of cells; code is
    none, whatever stands below each other in it.
    """
    taken: set[int] = set()
    for first, table in document.tables:
        stop = first + table.stop - table.start
        if any(unit.code for unit in document.units[first:stop]):
            continue
        taken.update(range(first, stop))
        heads = [
            " ".join(dict.fromkeys(filter(None, column))) for column in zip(*table.rows[: table.header], strict=True)
        ]
        yield first, (stop, _rows(heads, table.rows[table.header :]))
    run: list[int] = []
    units = document.units
    for i in range(len(units) + 1):
        unit = units[i] if i < len(units) and i not in taken and len(units[i].cells) > 1 and not units[i].code else None
        if run and (unit is None or len(unit.cells) != len(units[run[0]].cells) or unit.page != units[run[0]].page):
            if len(run) > 1:
                rows = [tuple(units[k].text[c.start : c.stop] for c in units[k].cells) for k in run]
                yield run[0], (i, _rows(rows[0] if units[run[0]].bold else [], rows[units[run[0]].bold :]))
            run = []
        if unit is not None:
            run.append(i)


def _rows(heads: list[str] | tuple[str, ...], rows: tuple[tuple[str, ...], ...] | list[tuple[str, ...]]) -> list[str]:
    """A table; Markdown has none without a header, so that may be empty."""
    width = max(map(len, [heads, *rows]))

    def line(cells: list[str] | tuple[str, ...]) -> str:
        shown = [_INLINE.sub(r"\\\g<0>", cell).replace("|", "\\|") for cell in cells]
        return f"| {' | '.join([*shown, *[''] * (width - len(shown))])} |"

    return [line(heads), "|" + " --- |" * width, *map(line, rows)]
