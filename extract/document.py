"""What a file becomes once it is read: `Document → Page → Unit`.

A unit is a line of text with everything the extractor looks at: where it stands, how large and how
bold it is. Nothing here is learned and nothing here knows how a file format works.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from e2erag.extract.tables import Table


class Box(NamedTuple):
    """A rectangle in points (1/72 inch); the origin is the top left of the page *as displayed*, y grows downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    def union(self, other: "Box") -> "Box":
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


class Cell(NamedTuple):
    """A piece of a line that wide gaps separate: `text[start:stop]`, from `x0` to `x1` points on the page."""

    start: int
    stop: int
    x0: float
    x1: float


class Unit(NamedTuple):
    """One line of a page, the smallest thing that is kept, dropped or cited.

    Attributes:
        text: the words of the line, single-spaced.
        page: page number, from 1.
        line: line number on its page, from 1, in reading order.
        box: what the glyphs cover, in points.
        font_size: in points, as displayed (text matrix and CTM applied); the largest on the line.
        bold: whether most of the line's characters are set in a bold font.
        cells: the pieces of a table row, left to right; empty where the line is running text.
        heading: 1 to 6 where the format itself says that the line is a heading of that level, else 0.
        confidence: of a recognised line (OCR), 0 to 1; 1 where the file holds the text itself.
        code: whether the format itself says that the line is one of preformatted text, as code is.
    """

    text: str
    page: int
    line: int
    box: Box
    font_size: float
    bold: bool = False
    cells: tuple[Cell, ...] = ()
    heading: int = 0
    confidence: float = 1.0
    code: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its lines in reading order.

    Attributes:
        number: from 1.
        width, height: in points, as displayed.
        units: its lines.
        rules: ruling lines and the edges of ruled boxes, as thin boxes in points (tables, separators).
        unread: why the page has no lines although it may hold text ("is a scan: …"), or lacks those of a picture that
            covers it, with the way out; else empty.
    """

    number: int
    width: float
    height: float
    units: tuple[Unit, ...]
    rules: tuple[Box, ...] = ()
    unread: str = ""


@dataclass(frozen=True)
class Document:
    """A file that was read.

    A format without pages (HTML, Markdown, text, DOCX) is set on pages of a nominal size, so that boxes and page
    numbers mean the same everywhere: where on a sheet a reader would find the line.

    Attributes:
        file: the path as it was given; what citations name.
        sha256: of the file's bytes, so that a document can be recognised.
        pages: in order; a page without text has no units.
        title: from the file's metadata, may be empty.
        reader: what read it, with its version ("pypdf 7.1.0 · 2"): another reader may find other lines. It ends in
            "fallback" where it gave words alone, without cells, bold and ruling lines.
    """

    file: str
    sha256: str
    pages: tuple[Page, ...]
    title: str = ""
    reader: str = ""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All lines of the document in reading order: `units[i]` is "unit i" everywhere else."""
        return tuple(unit for page in self.pages for unit in page.units)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text of every unit as it is read on: a word hyphenated at a line's end stands whole on that line.

        Its rest is taken off the next line (which may become empty). The units, and so citations and boxes, keep what
        is printed.
        """
        return dehyphenated([unit.text for unit in self.units], {i for i, unit in enumerate(self.units) if unit.code})

    @cached_property
    def tables(self) -> tuple[tuple[int, "Table"], ...]:
        """The tables found on its pages, each with the number of its first unit in the document."""
        from e2erag.extract.tables import find_tables

        found, first = [], 0
        for page in self.pages:
            found += [(first + table.start, table) for table in find_tables(page)]
            first += len(page.units)
        return tuple(found)

    @property
    def unread(self) -> dict[int, str]:
        """Numbers of the pages that could not be read, and why."""
        return {page.number: page.unread for page in self.pages if page.unread}

    @property
    def name(self) -> str:
        return Path(self.file).name

    def to_markdown(self, pages: bool = False) -> str:
        """Headings, paragraphs, lists and tables as Markdown; with `pages`, each page begins with a comment."""
        from e2erag.extract.markdown_out import to_markdown

        return to_markdown(self, pages)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, the inverse of `from_json`."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "title": self.title,
            "reader": self.reader,
            "pages": [
                {
                    "number": page.number,
                    "width": page.width,
                    "height": page.height,
                    "units": page.units,
                    "rules": page.rules,
                    "unread": page.unread,
                }
                for page in self.pages
            ],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Document":
        return cls(
            row["file"],
            row["sha256"],
            tuple(
                Page(
                    page["number"],
                    page["width"],
                    page["height"],
                    tuple(
                        Unit(text, number, line, Box(*box), size, bold, tuple(Cell(*cell) for cell in cells), *rest)
                        for text, number, line, box, size, bold, cells, *rest in page["units"]
                    ),
                    tuple(Box(*rule) for rule in page["rules"]),
                    page["unread"],
                )
                for page in row["pages"]
            ),
            row["title"],
            row["reader"],
        )

    def __repr__(self) -> str:
        return f"Document({self.file!r}, {len(self.pages)} pages, {len(self)} lines)"

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


HYPHENS = "-\u2010\u00ad"
WORD = 3  # letters
_BROKEN = re.compile(rf"(?:^|(?<=[\s(\"'“‘—–/]))((?:[^\W\d_]+-)*[^\W\d_]{{2,}})[{HYPHENS}]$")
_REST = re.compile(r"([^\W\d_]+)(\S*)\s*")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_ADDRESS = re.compile(r"(?:://|\bwww\.)\S*$")
_BETWEEN = frozenset({"and", "or", "nor", "to", "und", "oder", "bis", "et", "ou"})
"""What follows a hyphen that stands for the rest of the next word: "pre- and post-war"."""


def dehyphenated(lines: Sequence[str], code: AbstractSet[int] = frozenset()) -> tuple[str, ...]:
    """Lines with words that are broken at their ends made whole: "exam-", "ple of" → "example", "of".

    Only where the next line goes on in lower case. The hyphen stays where the document writes the word with one
    elsewhere and more often than without, in an address, and between two words of at least `WORD` letters, or the last
    two of a compound ("state-of-the-", "art"), that the document has by themselves and never as one; for what can't be
    told it goes.
    """
    broken = [
        i
        for i, (line, after) in enumerate(pairwise(lines))
        if not {i, i + 1} & code and line.endswith(tuple(HYPHENS)) and after[:1].islower() and _BROKEN.search(line)
    ]
    if not broken:
        return tuple(lines)
    seen = Counter(word.lower() for line in lines for word in _WORD.findall(line))
    for i in broken:  # parts of words are none
        seen.subtract((_WORD.findall(lines[i])[-1].lower(), _WORD.findall(lines[i + 1])[0].lower()))
    out = list(lines)
    for i in reversed(broken):  # so that a word over three lines ends up on the first
        first, rest = _BROKEN.search(out[i]), _REST.match(out[i + 1])
        if first is None or rest is None:
            continue
        plain, hyphened = first[1] + rest[1], f"{first[1]}-{rest[1]}"
        if rest[1] in _BETWEEN and seen[plain.lower()] <= 0:
            continue
        *compound, last = first[1].lower().split("-")
        long = bool(compound) or min(len(last), len(rest[1])) >= WORD
        words = long and seen[last] > 0 and seen[rest[1]] > 0 and seen[plain.lower()] <= 0
        keep = words or seen[hyphened.lower()] > seen[plain.lower()] or _ADDRESS.search(out[i]) is not None
        out[i] = out[i][: first.start(1)] + (hyphened if keep else plain) + rest[2]
        out[i + 1] = out[i + 1][rest.end() :]
    return tuple(out)


class ReadError(ValueError):
    """A file that could not be read; `reason` says why in one line and `file` which."""

    def __init__(self, file: str | Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = str(file), reason
