"""The engine that is always there: pypdf parses, `pdf_walk` follows the instructions."""

import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pypdf

from e2erag.extract.document import ReadError
from e2erag.extract.readers.leftwards import in_reading_order
from e2erag.extract.readers.lines import Face, Run
from e2erag.extract.readers.order import from_the_left
from e2erag.extract.readers.pdf_objects import Font, usable
from e2erag.extract.readers.pdf_walk import PageTooLarge, Walk
from e2erag.extract.readers.shown import Matrix, Rules, Shown, frame, short, times

VERSION = f"pypdf {pypdf.__version__}"

_FAST = "try engine='pypdfium2' (pip install 'e2erag[fast]')"
_PLAIN = Face(0.75, -0.22, False)
LETTER = (0.0, 0.0, 612.0, 792.0)  # a page whose media box can't be had; so PDFium takes it
_WIDE = 0.5  # ems per character of a font whose widths are not known


class PypdfFile:
    """An open PDF."""

    version = VERSION

    def __init__(self, path: str | Path, data: bytes) -> None:
        try:
            with _quiet():
                self.reader = pypdf.PdfReader(io.BytesIO(data))
                locked = self.reader.is_encrypted and not self.reader.decrypt("")
                self.count = 0 if locked else len(self.reader.pages)
        except MemoryError:
            raise
        except Exception as error:
            raise ReadError(path, f"is damaged or cut off ({short(error)}): fetch or export it again") from error
        if locked:
            raise ReadError(path, "is encrypted: it opens only with a password; save a copy without one")
        self.fonts: dict[Any, Font | None] = {}
        self.plain = not usable()

    def __enter__(self) -> "PypdfFile":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.reader.close()

    def __len__(self) -> int:
        return self.count

    @property
    def title(self) -> str:
        try:
            with _quiet():
                title = self.reader.metadata and self.reader.metadata.title
        except MemoryError:
            raise
        except Exception:  # a title is not worth a document
            return ""
        return title if isinstance(title, str) else ""

    def shown(self, number: int) -> Shown:
        """What page `number` (from 1) shows."""
        with _quiet():
            page = self.reader.pages[number - 1]
            width, height, base = _frame(page)
            if self.plain:
                return Shown(width, height, _plain(page, base))
            for thin in (False, True):  # of a page with too much on it the words
                walk, failed = Walk(base, self.reader, self.fonts, Rules(width, height), thin), ""
                try:
                    if "/Contents" in page:
                        walk.stream(page["/Contents"], page.get("/Resources"))
                    walk.annotations(page.get("/Annots"), base)
                    break
                except MemoryError:
                    raise
                except PageTooLarge as error:
                    failed = f"{error}: {_FAST}"
                except Exception as error:
                    failed = f"can't be parsed ({short(error)}): {_FAST}, or export it again"
                    break
            if failed:
                return Shown(width, height, [], failed=failed)
        pictures = walk.pictures / (width * height or 1.0)
        runs = from_the_left(walk.runs if walk.phrases else in_reading_order(walk.runs))
        return Shown(width, height, runs, walk.rules.merged(), pictures, walk.mute)


@contextmanager
def _quiet() -> Iterator[None]:
    """pypdf logs every oddity of a file, hundreds of lines for some; what matters is in `ReadError` or `unread`."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _frame(page: Any) -> tuple[float, float, Matrix]:
    """Size of the page as displayed and the matrix to it: what the crop box leaves of the media box."""
    media = _corners(page, "mediabox") or LETTER
    (left, bottom, right, top), shown = media, _corners(page, "cropbox") or media
    x0, y0, x1, y1 = max(left, shown[0]), max(bottom, shown[1]), min(right, shown[2]), min(top, shown[3])
    if x1 <= x0 or y1 <= y0:  # a crop box beside the page; viewers show the page then
        x0, y0, x1, y1 = media
    return frame(x0, y0, x1, y1, int(page.rotation))


def _corners(page: Any, name: str) -> tuple[float, float, float, float] | None:
    """Left, bottom, right, top; a file may name any two corners that face each other. None of a box without an area, or
    that is none."""
    try:
        box = getattr(page, name)
        (x0, x1), (y0, y1) = sorted((float(box.left), float(box.right))), sorted((float(box.bottom), float(box.top)))
    except (TypeError, ValueError):
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _plain(page: Any, base: Matrix) -> list[Run]:
    """The lines of pypdf's own text extraction, each where its first word stands; how far it reaches is a guess."""
    rows: list[tuple[list[str], list[tuple[Matrix, float]]]] = [([], [])]

    def visit(text: str, cm: Any, tm: Any, _: Any, size: Any) -> None:
        for i, piece in enumerate(text.split("\n")):
            if i:
                rows.append(([], []))
            if piece.strip():
                rows[-1][1].append((times(times(tuple(tm), tuple(cm)), base), float(size or 1.0)))
            rows[-1][0].append(piece)

    page.extract_text(visitor_text=visit)
    runs = []
    for parts, places in rows:
        if places:
            words = " ".join("".join(parts).split())
            (a, b, c, d, e, f), size = places[0]
            along, em = size * _WIDE * len(words), size * math.hypot(a, b) or 1.0
            end = e + along * a, f + along * b
            runs.append(Run(words, e, f, *end, 1.0, 0.0, size * c, size * d, em, em, _PLAIN))
    return runs
