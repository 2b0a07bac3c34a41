"""Recognises the text of pictures and scanned pages: PP-OCRv6 through rapidocr, on the CPU (the extra `ocr`).

The weights are in rapidocr's wheel and only those are used: nothing is ever downloaded. What it finds are pieces of
lines; here they are put in reading order (`pieces`) and become units as the runs of a PDF do, with the recogniser's
confidence.
"""

import hashlib
import importlib.util
import logging
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from e2erag.extract.document import Box, Document, Page, ReadError, Unit
from e2erag.extract.readers.pieces import Piece, in_order
from e2erag.extract.readers.shown import short
from e2erag.extract.readers.source import read_bytes, version

if TYPE_CHECKING:
    from PIL import Image

READER_VERSION = 1  # goes up when the lines of a picture may change

INSTALL = "pip install 'e2erag[ocr]'"
MODELS = {"Det": "*det*.onnx", "Rec": "*rec*.onnx"}  # which finds lines, which reads them
LEAST = 0.5  # confidence; what is less sure is mostly a drawing
DPI = 96.0  # of a picture that says nothing sane
SANE = (60.0, 1200.0)
LARGEST = 1224.0  # points: a larger sheet than A3 is a picture whose resolution means nothing, it is put on Letter
LETTER = 792.0
UPRIGHT = 0.6  # share of boxes that are higher than wide on a page that lies on its side
DOUBTFUL = 0.8  # confidence; a page that is less sure may stand on its head
MOST_PAGES = 2000  # of a TIFF; one of more is refused

_lock = threading.Lock()


def available() -> bool:
    """Whether the extra `ocr` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime", "PIL"))


@cache
def _engine() -> Any:
    """The recogniser, made once per process; it says nothing on the console.

    Raises:
        ImportError: it is not installed, or its wheel doesn't carry the weights.
    """
    import rapidocr

    folder = Path(rapidocr.__file__).parent / "models"
    params: dict[str, Any] = {}
    for stage, pattern in MODELS.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise ImportError(f"rapidocr doesn't carry its weights ({pattern}): {INSTALL} --force-reinstall")
        params[f"{stage}.model_path"] = str(found[0])  # with a path given, it never looks for one to download
    engine = rapidocr.RapidOCR(params=params | {"Global.log_level": "critical", "Global.text_score": LEAST})
    logging.getLogger("RapidOCR").disabled = True
    return engine


def recognise(image: "Image.Image", page: int, width: float, height: float) -> tuple[Unit, ...]:
    """The lines of a picture of page `page` (from 1), with boxes in points on that page of `width` × `height`.

    Pieces on one baseline are one line, with a cell each where wide gaps part them; columns of prose stay apart, left
    to right. `Unit.confidence` is the recogniser's, weighted by length. A page that lies on its side or stands on its
    head is turned for reading; its boxes are where the lines stand, and it has no cells.

    Raises:
        ImportError: the extra `ocr` is not installed.
    """
    pixels = np.ascontiguousarray(np.asarray(_flat(image))[:, :, ::-1])
    found, turn = _found(pixels), 0
    if found and np.mean([np.ptp(corners[:, 1]) > 1.5 * np.ptp(corners[:, 0]) for _, _, corners in found]) > UPRIGHT:
        others = [1, 3]
    else:
        others = [2] if found and _sure(found) < DOUBTFUL else []
    for other in others:
        again = _found(np.ascontiguousarray(np.rot90(pixels, other)))
        if again and ((turn == 0 and len(others) > 1) or _sure(again) > _sure(found)):
            found, turn = again, other
    across, down = (height, width) if turn % 2 else (width, height)
    scale = np.asarray([across, down]) / np.asarray([pixels.shape[1], pixels.shape[0]][:: -1 if turn % 2 else 1])
    pieces = [Piece.of(text, sure, corners * scale) for text, sure, corners in found]
    units = (line.unit(page, 0)._replace(confidence=sure) for line, sure in in_order(pieces))
    kept = [unit if not turn else _turned(unit, turn, width, height) for unit in units if unit.text]
    return tuple(unit._replace(line=n) for n, unit in enumerate(kept, start=1))


Found = list[tuple[str, float, np.ndarray]]  # text, confidence, and the corners clockwise from the top left, in pixels


def _found(pixels: np.ndarray) -> Found:
    with _lock:
        # Without its classifier, which turns lines that stand upright on their heads.
        found = _engine()(pixels, use_cls=False)
    if getattr(found, "boxes", None) is None or not found.txts:
        return []
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4, 2)
    rows = zip(found.txts, found.scores, boxes, strict=True)
    return [(text, float(score), corners) for text, score, corners in rows if text.strip()]


def _sure(found: Found) -> float:
    """The mean confidence of a letter."""
    return sum(len(text) * score for text, score, _ in found) / sum(len(text) for text, _, _ in found)


def _turned(unit: Unit, turn: int, width: float, height: float) -> Unit:
    """A line of a page that was turned left by so many right angles, where it stands on the page itself."""
    x0, y0, x1, y1 = unit.box
    box = {
        1: (width - y1, x0, width - y0, x1),
        2: (width - x1, height - y1, width - x0, height - y0),
        3: (y0, height - x1, y1, height - x0),
    }[turn]
    return unit._replace(box=Box(*(round(v, 2) for v in box)), cells=())


def _flat(image: "Image.Image") -> "Image.Image":
    """The picture in three colours, on white where it is transparent."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    if image.mode.startswith(("I", "F")):  # more than eight bits: from darkest to lightest
        values = np.asarray(image, np.float64)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(((values - low) * (255 / ((high - low) or 1.0))).astype(np.uint8))
    return image.convert("RGB")


def read_image(path: str | Path) -> Document:
    """The lines of a picture; each frame of a TIFF is a page.

    A page is as large as the picture's resolution says; if it says none, or one that makes it larger than A3, at 96
    dots an inch and at most as high as Letter. A frame that can't be read has no units and says why in `unread`.

    Raises:
        ReadError: the file is missing, empty, no picture or damaged, or has too many frames; the extra `ocr` is not
            installed; or not a line is recognised.
    """
    data = read_bytes(path)
    if not available():
        raise ReadError(path, f"is a picture, which needs OCR: {INSTALL}")
    import io

    from PIL import Image, UnidentifiedImageError

    pages = []
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if frames > MOST_PAGES:
                raise ReadError(path, f"has more than {MOST_PAGES} pages ({frames}): split it")
            pages = [_page(image, number) for number in range(1, frames + 1)]
    except (MemoryError, ReadError):
        raise
    except UnidentifiedImageError:
        raise ReadError(path, "is not a picture of a kind that can be read: save it as PNG") from None
    except Exception as error:  # a codec may raise anything, and a picture of 10⁹ pixels is refused
        raise ReadError(path, f"is damaged or too large ({short(error)}): save it again, smaller") from None
    if not any(page.units for page in pages):
        why = next((page.unread for page in pages if page.unread), "")
        raise ReadError(path, f"has no page with text ({len(pages)} in all): {why}")
    return Document(str(path), hashlib.sha256(data).hexdigest(), tuple(pages), "", version("rapidocr", READER_VERSION))


def _page(image: "Image.Image", number: int) -> Page:
    """One frame as a page, the way up that its camera says."""
    from PIL import ImageOps

    try:
        image.seek(number - 1)
        upright = ImageOps.exif_transpose(image)
        width, height = size_in_points(upright.size, image.info.get("dpi"))
        units = recognise(upright, number, width, height)
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        return Page(number, 0.0, 0.0, (), unread=f"can't be recognised ({short(error)}): save it again")
    return Page(number, width, height, units, unread="" if units else "OCR found no line on it")


def size_in_points(pixels: tuple[int, int], dpi: Any) -> tuple[float, float]:
    """How large a sheet the picture shows."""
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError):
        across = down = DPI
    if not all(SANE[0] <= value <= SANE[1] for value in (across, down)):
        across = down = DPI
    width, height = pixels[0] * 72 / across, pixels[1] * 72 / down
    large = max(width, height)
    scale = LETTER / large if large > LARGEST else 1.0
    return round(width * scale, 2), round(height * scale, 2)
