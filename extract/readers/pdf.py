"""Reads a PDF: text, boxes, sizes and bold, line by line, out of the page's own drawing instructions.

Two engines find what a page shows, as the same runs of text: pypdf (`pdf_pypdf`, always there) and PDFium
(`pdf_pdfium`, the extra `fast`). Here the runs become lines (`lines`) and every line with a word in it a `Unit`.
"""

import hashlib
import importlib
import importlib.util
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from e2erag.extract.document import Document, Page, ReadError, Unit
from e2erag.extract.readers.columns import unwoven
from e2erag.extract.readers.lines import join
from e2erag.extract.readers.ruled import Edges
from e2erag.extract.readers.shown import Shown, short
from e2erag.extract.readers.source import read_bytes

Engine = Literal["pypdf", "pypdfium2"]

READER_VERSION = 13  # of what this package makes of an engine's runs; goes up when the lines of a file may change
FALLBACK = " · fallback"  # how `Document.reader` ends where pypdf's own text extraction was all there was

SCAN = 0.1  # a page without text is a scan where pictures cover at least this share of it
COVERED = 0.5  # … and so is one with next to no text (a number stamped on it, a running head) where they cover this
STAMP = 200  # letters and digits; a page of print has some thousands
DPI = 200.0
PIXELS = 40e6  # of a page's picture at most; a larger sheet is rendered coarser


@runtime_checkable
class _File(Protocol):
    """An open PDF, whatever reads it."""

    version: str
    plain: bool  # whether it gives words alone

    def __len__(self) -> int: ...
    def __enter__(self) -> "_File": ...
    def __exit__(self, *_: Any) -> None: ...
    def shown(self, number: int) -> Shown: ...
    @property
    def title(self) -> str: ...


def engine_or_default(engine: str | None) -> Engine:
    """`engine` if there is one of that name and it is installed; for None the faster one that is.

    Raises:
        ValueError: no engine has that name.
        ImportError: it is not installed.
    """
    installed = importlib.util.find_spec("pypdfium2") is not None
    if engine is None:
        return "pypdfium2" if installed else "pypdf"
    if engine == "pypdfium2" and not installed:
        raise ImportError("engine 'pypdfium2' is not installed: pip install 'e2erag[fast]', or use engine='pypdf'")
    if engine == "pypdf":
        return "pypdf"
    if engine == "pypdfium2":
        return "pypdfium2"
    raise ValueError(f"engine is one of {', '.join(map(repr, get_args(Engine)))} or None, not {engine!r}")


def prepare() -> None:
    """Import the engines that are installed, so that no file's time goes by with it."""
    for name in ("pdf_pypdf", "pdf_pdfium"):
        with suppress(ImportError):
            importlib.import_module(f"e2erag.extract.readers.{name}")


def read_pdf(path: str | Path, engine: str | None = None) -> Document:
    """The lines of a PDF, with boxes in points from the top left of each page as displayed (`/Rotate` applied).

    `engine` None is "pypdfium2" where it is installed, else "pypdf"; then a file that PDFium can't open is tried with
    pypdf too. Text that is drawn invisibly (an OCR layer under a scan) counts as text. A page that can't be read has
    no units and says why in `unread`; scans among them are recognised where the extra `ocr` is installed. So are pages
    that are mostly picture, with hardly any text of their own beside it, which they keep.

    Raises:
        ReadError: the file is missing, empty, no PDF, damaged, needs a password, or has no text on any page.
        ValueError, ImportError: there is no such engine, or it is not installed.
    """
    chosen = engine_or_default(engine)
    data = read_bytes(path)
    if b"%PDF-" not in data[:1024]:
        raise ReadError(path, "is not a PDF: no %PDF header in its first 1024 bytes; convert it to PDF first")
    try:
        file = _open(chosen, path, data)
    except ReadError:
        if engine is not None or chosen == "pypdf":
            raise
        file = _open("pypdf", path, data)
    with file:
        title = " ".join(file.title.split())
        reader = f"{file.version} · {READER_VERSION}{FALLBACK if file.plain else ''}"
        pages = tuple(_page(file, number, data) for number in range(1, len(file) + 1))
    warn_of_fallback(reader)
    if not pages:
        raise ReadError(path, "is damaged or cut off (it has no pages): fetch or export it again")
    if not any(page.units for page in pages):
        raise ReadError(path, _no_text(pages))
    return Document(str(path), hashlib.sha256(data).hexdigest(), pages, title, reader)


def warn_of_fallback(reader: str) -> None:
    """Warn, once in a process, if such a `Document.reader` gives words alone."""
    if reader.endswith(FALLBACK):
        _warn_once()


@cache
def _warn_once() -> None:
    warnings.warn(
        "the installed pypdf has its fonts elsewhere than is looked for: PDFs are read with their words, but without "
        f"cells, bold and ruling lines, and scans aren't seen (Document.reader ends in '{FALLBACK.strip()}'); "
        "install an older pypdf, or pip install 'e2erag[fast]'",
        stacklevel=4,
    )


def _open(engine: Engine, path: str | Path, data: bytes) -> _File:
    if engine == "pypdf":
        from e2erag.extract.readers.pdf_pypdf import PypdfFile

        return PypdfFile(path, data)
    from e2erag.extract.readers.pdf_pdfium import PdfiumFile

    return PdfiumFile(path, data)


def _page(file: _File, number: int, data: bytes) -> Page:
    """Page `number`; without units where its content can't be read, and then `unread` has the reason."""
    try:
        shown = file.shown(number)
        edges = Edges(shown.rules)
        lines = [line for line in unwoven(join(edges.cut(shown.runs), edges.parts)) if line.text]
    except MemoryError:
        raise
    except Exception as error:
        return Page(number, 0.0, 0.0, (), unread=f"can't be parsed ({short(error)}): export it again")
    units = tuple(line.unit(number, n) for n, line in enumerate(lines, start=1))
    unread = shown.failed
    mute = shown.mute or any(not run.text.isspace() for run in shown.runs)
    if not units and not unread and (shown.pictures >= SCAN or mute):
        kind = _SCAN if shown.pictures >= SCAN else _MUTE
        units, unread = _recognised(number, shown, data, kind)
    elif units and shown.pictures >= COVERED and _letters(units) < STAMP:
        found, unread = _recognised(number, shown, data, _STAMPED)
        units = _beside(units, found)
    return Page(number, shown.width, shown.height, units, shown.rules, unread)


def _letters(units: tuple[Unit, ...]) -> int:
    return sum(c.isalnum() for unit in units for c in unit.text)


def _beside(units: tuple[Unit, ...], found: tuple[Unit, ...]) -> tuple[Unit, ...]:
    """A page's own lines and, between those above them and the others, the ones that OCR found elsewhere on it."""

    def own(unit: Unit) -> bool:
        x, y = (unit.box.x0 + unit.box.x1) / 2, (unit.box.y0 + unit.box.y1) / 2
        high = 2 * (unit.box.y1 - unit.box.y0)  # what is set aslant has a box over half the page
        return any(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1 and box.y1 - box.y0 <= high for box in boxes)

    boxes = [unit.box for unit in units]
    new = [unit for unit in found if not own(unit)]
    top = min((unit.box.y0 for unit in new), default=0.0)
    above = [unit for unit in units if unit.box.y0 < top]
    kept = [*above, *new, *(unit for unit in units if unit.box.y0 >= top)]
    return tuple(unit._replace(line=n) for n, unit in enumerate(kept, start=1))


_SCAN = "is a scan: no text layer"
_STAMPED = "is mostly a picture, with hardly any text beside it"
_MUTE = "shows glyphs of which its fonts don't say what characters they are"


def _dpi(shown: Shown) -> float:
    return min(DPI, 72 * (PIXELS / max(shown.width * shown.height, 1.0)) ** 0.5)


def _recognised(number: int, shown: Shown, data: bytes, kind: str) -> tuple[tuple[Unit, ...], str]:
    """The lines that OCR finds on a page, or why there are none."""
    ocr = _ocr()
    if ocr is None:
        return (), f"{kind}; to have it recognised, pip install 'e2erag[ocr]'"
    try:
        from e2erag.extract.readers.pdf_pdfium import PdfiumFile

        with PdfiumFile("", data) as file:
            units = tuple(ocr.recognise(file.picture(number, _dpi(shown)), number, shown.width, shown.height))
    except MemoryError:
        raise
    except Exception as error:
        return (), f"{kind}, and OCR failed on it ({short(error)})"
    return units, "" if units or kind == _STAMPED else f"{kind}, and OCR found no line on it"


def _ocr() -> Any:
    """The module that recognises text in pictures, or None where what it needs is not installed."""
    try:
        ocr = importlib.import_module("e2erag.extract.readers.ocr")
        importlib.import_module("pypdfium2")  # draws the page
    except ImportError:
        return None
    return ocr if ocr.available() else None


def _no_text(pages: tuple[Page, ...]) -> str:
    count = f"{len(pages)} page{'s' * (len(pages) != 1)}"
    if not any(page.unread for page in pages):
        return f"shows nothing that can be read ({count} without text, and none is a scan): leave it out"
    for page in pages:
        if page.unread and not page.unread.startswith(_SCAN):
            why = f"{count}; page {page.number}: {page.unread}"
            return f"has no page with text that can be read ({why}): export it again, or leave it out"
    found = any("OCR" in page.unread for page in pages)
    way = "OCR found none either, leave it out" if found else "scanned pages need OCR, pip install 'e2erag[ocr]'"
    return f"has no text layer ({count}): {way}"
