"""A document as bytes and back, exactly and fast: what a worker sends and what the cache keeps.

JSON with a list for every column of the units, where numbers with a fraction are float64 in base64. It is as large as
`Document.to_json` and comes back in a quarter of the time.
"""

import base64
import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice, starmap
from typing import Any

from e2erag.extract.document import Box, Cell, Document, Page, Unit

FORMAT = 2  # goes up when `unpack` could no longer read what an older `pack` wrote

# Named tuples from rows of the right length, without the call in Python that `_make` costs.
_BOX: Any = partial(tuple.__new__, Box)
_CELL: Any = partial(tuple.__new__, Cell)
_UNIT: Any = partial(tuple.__new__, Unit)


def pack(document: Document) -> bytes:
    """All of a document but its path."""
    units = document.units
    rules = [rule for page in document.pages for rule in page.rules]
    cells = [cell for unit in units for cell in unit.cells]
    row = {
        "format": FORMAT,
        "sha256": document.sha256,
        "title": document.title,
        "reader": document.reader,
        "pages": [[p.number, p.width, p.height, p.unread, len(p.units), len(p.rules)] for p in document.pages],
        "rules": _floats(chain.from_iterable(rules)),
        "texts": [unit.text for unit in units],
        "numbers": [unit.page for unit in units],
        "lines": [unit.line for unit in units],
        "boxes": _floats(chain.from_iterable(unit.box for unit in units)),
        "sizes": _floats(unit.font_size for unit in units),
        "bold": [int(unit.bold) for unit in units],
        "cells": [len(unit.cells) for unit in units],
        "starts": [cell.start for cell in cells],
        "stops": [cell.stop for cell in cells],
        "edges": _floats(edge for cell in cells for edge in (cell.x0, cell.x1)),
        "headings": [unit.heading for unit in units],
        "confidence": _floats(unit.confidence for unit in units),
        "code": [int(unit.code) for unit in units],
    }
    # Fonts can map a glyph to half of a surrogate pair, which strict UTF-8 refuses.
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def unpack(data: bytes, file: str) -> Document:
    """What `pack` packed, now at the path `file`.

    Raises:
        ValueError, LookupError, TypeError: the bytes are not of `pack`, or of another `FORMAT`.
    """
    row: dict[str, Any] = json.loads(data)
    if row["format"] != FORMAT:
        raise ValueError(f"packed in format {row['format']}, and this version reads {FORMAT}")
    edges = _numbers(row["edges"])
    cells = map(_CELL, zip(row["starts"], row["stops"], edges[::2], edges[1::2], strict=True))
    units = map(
        _UNIT,
        zip(
            row["texts"],
            row["numbers"],
            row["lines"],
            _boxes(row["boxes"]),
            _numbers(row["sizes"]),
            map(bool, row["bold"]),
            [tuple(islice(cells, n)) if n else () for n in row["cells"]],
            row["headings"],
            _numbers(row["confidence"]),
            map(bool, row["code"]),
            strict=True,
        ),
    )
    rules = _boxes(row["rules"])

    def page(number: int, width: float, height: float, unread: str, lines: int, ruled: int) -> Page:
        return Page(number, width, height, tuple(islice(units, lines)), tuple(islice(rules, ruled)), unread)

    pages = tuple(starmap(page, row["pages"]))
    if any(True for rest in (units, rules, cells) for _ in rest):
        raise ValueError("packed with more lines, rules or cells than its pages have")
    return Document(file, row["sha256"], pages, row["title"], row["reader"])


def _boxes(packed: str) -> Iterator[Box]:
    numbers = iter(_numbers(packed))
    return map(_BOX, zip(numbers, numbers, numbers, numbers, strict=True))


def _floats(numbers: Iterable[float]) -> str:
    return base64.b64encode(_little(array("d", numbers)).tobytes()).decode()


def _numbers(packed: str) -> list[float]:
    numbers = array("d")
    numbers.frombytes(base64.b64decode(packed, validate=True))
    return _little(numbers).tolist()


def _little(numbers: "array[float]") -> "array[float]":
    """In the order of bytes that is written, whatever the processor's."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
