"""What a file becomes once it is read: `Document → Page → Unit`.

A unit is a line of text with everything the extractor looks at: where it stands, how large and how
bold it is. Nothing here is learned and nothing here knows how a file format works.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple


class Box(NamedTuple):
    """A rectangle in points (1/72 inch); the origin is the top left of the page *as displayed*, y grows downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    def union(self, other: "Box") -> "Box":
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


@dataclass(frozen=True, slots=True)
class Unit:
    """One line of a page, the smallest thing that is kept, dropped or cited.

    Attributes:
        text: the words of the line, single-spaced.
        page: page number, from 1.
        line: line number on its page, from 1, in reading order.
        box: what the glyphs cover, in points.
        font_size: in points, as displayed (text matrix and CTM applied); the largest on the line.
        bold: whether most of the line's characters are set in a bold font.
        cells: pieces of the line that wide gaps separate (1 = running text, more = a table row).
    """

    text: str
    page: int
    line: int
    box: Box
    font_size: float
    bold: bool = False
    cells: int = 1


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its lines in reading order. `width` and `height` are in points, as displayed."""

    number: int
    width: float
    height: float
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Document:
    """A file that was read.

    Attributes:
        file: the path as it was given; what citations name.
        sha256: of the file's bytes, so that a document can be recognised.
        pages: in order; a page without text has no units.
        title: from the file's metadata, may be empty.
    """

    file: str
    sha256: str
    pages: tuple[Page, ...]
    title: str = ""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All lines of the document in reading order: `units[i]` is "unit i" everywhere else."""
        return tuple(unit for page in self.pages for unit in page.units)

    @property
    def name(self) -> str:
        return Path(self.file).name

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, the inverse of `from_json`."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "title": self.title,
            "pages": [
                {
                    "number": p.number,
                    "width": p.width,
                    "height": p.height,
                    "units": [[u.text, u.line, *u.box, u.font_size, u.bold, u.cells] for u in p.units],
                }
                for p in self.pages
            ],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Document":
        return cls(
            row["file"],
            row["sha256"],
            tuple(
                Page(
                    p["number"],
                    p["width"],
                    p["height"],
                    tuple(
                        Unit(text, p["number"], line, Box(*box), size, bold, cells)
                        for text, line, *box, size, bold, cells in p["units"]
                    ),
                )
                for p in row["pages"]
            ),
            row["title"],
        )

    def __repr__(self) -> str:
        return f"Document({self.file!r}, {len(self.pages)} pages, {len(self)} lines)"

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


class ReadError(ValueError):
    """A file that could not be read; `reason` says why in one line and `file` which."""

    def __init__(self, file: str | Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = str(file), reason
