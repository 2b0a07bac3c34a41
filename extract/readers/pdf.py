"""Reads a PDF: text, boxes, sizes and bold, line by line, out of the page's own drawing instructions.

In steps, for every page: follow its content stream and place every string that it shows (`pdf_walk`), join these into
lines (`lines`), and make a `Unit` of every line with a word in it.
"""

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pypdf import PdfReader

from e2erag.extract.document import Document, Page, ReadError
from e2erag.extract.readers.lines import join
from e2erag.extract.readers.pdf_walk import Font, Matrix, PageTooLarge, Walk


def read_pdf(path: str | Path) -> Document:
    """The lines of a PDF, with boxes in points from the top left of each page as displayed (`/Rotate` applied).

    Text that is drawn invisibly (an OCR layer under a scan) counts as text. A single page that can't be read, or that
    is larger than `pdf_walk.PAGE_BYTES`, becomes a page without units, and a warning names it.

    Raises:
        ReadError: the file is missing, empty, no PDF, damaged, needs a password, or has no text on any page.
    """
    data = _bytes(path)
    if b"%PDF-" not in data[:1024]:
        raise ReadError(path, "is not a PDF: no %PDF header in its first 1024 bytes; convert it to PDF first")
    failed: dict[int, str] = {}
    with _quiet_pypdf():
        reader = _open(path, data)
        title = _title(reader)
        fonts: dict[Any, Font | None] = {}
        pages = tuple(_page(reader, number, fonts, failed) for number in range(1, _page_count(path, reader) + 1))
    if not any(page.units for page in pages):
        raise ReadError(path, _no_text(len(pages), failed))
    if failed:
        _report(path, failed, len(pages))
    return Document(str(path), hashlib.sha256(data).hexdigest(), pages, title)


def _bytes(path: str | Path) -> bytes:
    """The file's bytes, or the reason why there are none."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ReadError(path, "no such file: check the path") from None
    except IsADirectoryError:
        raise ReadError(path, "is a folder: read_many reads the PDFs in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReadError(path, f"could not be opened: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise ReadError(path, "is empty (0 bytes): fetch or export it again")
    return data


@contextmanager
def _quiet_pypdf() -> Iterator[None]:
    """pypdf logs every oddity of a file, hundreds of lines for some; what matters comes back as an error or warning."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _open(path: str | Path, data: bytes) -> PdfReader:
    try:
        reader = PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if locked:
        raise ReadError(path, "is encrypted: it opens only with a password; save a copy without one")
    return reader


def _damaged(path: str | Path, error: Exception) -> ReadError:
    return ReadError(path, f"is damaged or cut off ({_reason(error)}): fetch or export it again")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _page_count(path: str | Path, reader: PdfReader) -> int:
    try:
        count = len(reader.pages)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if not count:
        raise ReadError(path, "is damaged or cut off (it has no pages): fetch or export it again")
    return count


def _title(reader: PdfReader) -> str:
    try:
        title = reader.metadata and reader.metadata.title
    except MemoryError:
        raise
    except Exception:  # a title is not worth a document
        return ""
    return " ".join(title.split()) if isinstance(title, str) else ""


def _no_text(pages: int, failed: dict[int, str]) -> str:
    count = f"{pages} page{'s' * (pages != 1)}"
    if failed:
        number, reason = next(iter(failed.items()))
        return f"has no page with text that can be read ({count}; page {number}: {reason}): export it again"
    return f"has no text layer ({count}): scanned pages need OCR, which this version does not do"


def _report(path: str | Path, failed: dict[int, str], pages: int) -> None:
    named = "; ".join(f"page {number}: {reason}" for number, reason in list(failed.items())[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    warnings.warn(f"{path}: {len(failed)} of {pages} pages stay empty ({named}{more})", stacklevel=3)


def _page(reader: PdfReader, number: int, fonts: dict[Any, Font | None], failed: dict[int, str]) -> Page:
    """Page `number`, without units where its content can't be read; `failed` then gets the reason."""
    width = height = 0.0
    try:
        page = reader.pages[number - 1]
        width, height, base = _frame(page)
        walk = Walk(base, reader, fonts)
        if "/Contents" in page:
            walk.stream(page["/Contents"], page.get("/Resources"))
        lines = [line for line in join(walk.runs) if line.text]
    except MemoryError:
        raise
    except Exception as error:
        failed[number] = str(error) if isinstance(error, PageTooLarge) else _reason(error)
        lines = []
    units = tuple(line.unit(number, n) for n, line in enumerate(lines, start=1))
    return Page(number, width, height, units)


def _frame(page: Any) -> tuple[float, float, Matrix]:
    """Width and height of the page as displayed, and the matrix from its user space to that (y down)."""
    media, crop = page.mediabox, page.cropbox
    x0, y0 = max(float(media.left), float(crop.left)), max(float(media.bottom), float(crop.bottom))
    x1, y1 = min(float(media.right), float(crop.right)), min(float(media.top), float(crop.top))
    if x1 <= x0 or y1 <= y0:  # a crop box beside the page; viewers show the page then
        x0, y0, x1, y1 = float(media.left), float(media.bottom), float(media.right), float(media.top)
    turn = int(page.rotation) % 360
    base: Matrix = {
        90: (0.0, 1.0, 1.0, 0.0, -y0, -x0),
        180: (-1.0, 0.0, 0.0, 1.0, x1, -y0),
        270: (0.0, -1.0, -1.0, 0.0, y1, x1),
    }.get(turn, (1.0, 0.0, 0.0, -1.0, -x0, y1))
    return (y1 - y0, x1 - x0, base) if turn in (90, 270) else (x1 - x0, y1 - y0, base)
