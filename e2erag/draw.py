"""A page as a picture: what the extractor keeps in green, what it drops in red, cuts dashed, candidates as brackets."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np

from e2erag.artefact import write_file
from e2erag.citation import Citation
from e2erag.corpus import Gates
from e2erag.extract import READINGS, Cell, Page
from e2erag.rag import RAG
from e2erag.view import PageView, look_at

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError:
    raise ImportError("pictures of pages need Pillow: pip install 'e2erag[draw]'") from None

KEPT, DROPPED, CITED, CUT, CANDIDATE = (46, 160, 67), (207, 34, 46), (9, 105, 218), (130, 80, 223), (101, 109, 118)
RULE = (150, 150, 150)
TABLE = (188, 76, 0)  # a candidate that puts a table as rows or as sentences
SCALE = 2.0  # pixels per point, but of a page so large that a side would have more than
SIDE = 6000
LANES = 6  # brackets side by side
MARGIN = 70.0  # points beside the page, for the brackets


def draw_page(
    rag: RAG,
    file: str,
    page: int,
    target: str | Path,
    cited: Iterable[Citation] = (),
    gate: str = "read",
    every: Gates | None = None,
) -> Path:
    """Write a PNG of a page of an indexed document with what the extractor says drawn over the lines.

    A line is tinted from green (gate 1) to red (gate 0), with the soft gate beside it, 1 where gates start: hard mode
    keeps a line where it is above `view.kept_above`, .61 with the default threshold. A cut that hard mode takes is a
    dashed line; beside the page stands a bracket per candidate, darker the likelier it is to be found, open where it
    goes on on another page, and orange where it puts a table as rows or as sentences. The page itself is rendered
    where pypdfium2 is installed and the file is a PDF at hand; else its lines are written out.

    Args:
        file: a document's name or path, as it was indexed.
        page: from 1.
        target: the PNG to write.
        cited: citations; those on this page are framed in blue.
        gate: "read" (what the generator sees), "retrieve" (what the passage vectors hold) or "carry".
        every: as in `look_at`.

    Raises:
        ValueError: no such document, page or gate.
    """
    if gate not in ("read", "retrieve", "carry"):
        raise ValueError(f"gate must be read, retrieve or carry, got {gate!r}")
    view = look_at(rag, file, page, every)
    sheet = view.page
    scale = min(SCALE, SIDE / max(sheet.width + MARGIN, sheet.height))
    image = _sheet(view.document.file, sheet, scale)
    tint = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(tint)
    font = ImageFont.load_default(size=max(8 * scale, 1))
    for unit, value, cut in zip(sheet.units, view.gates[gate], view.taken, strict=True):
        colour = tuple(round(value * k + (1 - value) * d) for k, d in zip(KEPT, DROPPED, strict=True))
        x0, y0, x1, y1 = (scale * v for v in unit.box)
        pen.rectangle((x0 - 2, y0 - 1, x1 + 2, y1 + 1), fill=(*colour, 60))
        pen.text((scale * 4, y0), f"{value:.2f}", fill=(*colour, 255), font=font)
        if cut:
            for x in np.arange(max(x0, 0) - 10, min(max(x1, x0 + 100), image.width), 12):
                pen.line((x, y0 - 3, x + 7, y0 - 3), fill=(*CUT, 255), width=2)
    _brackets(pen, view, scale)
    for citation in cited:
        if citation.page == page and citation.file == view.document.file:
            x0, y0, x1, y1 = (scale * v for v in citation.box)
            pen.rectangle((x0 - 5, y0 - 4, x1 + 5, y1 + 4), outline=(*CITED, 255), width=4)
    picture = Image.alpha_composite(image.convert("RGBA"), tint).convert("RGB")
    return _save(picture, Path(target))


def _brackets(pen: ImageDraw.ImageDraw, view: PageView, scale: float) -> None:
    """A bracket per candidate beside the page, in lanes by their size; darker where log π is higher. One that begins or
    goes on on another page is open there, and a table's other readings have a colour of their own."""
    if not view.spans:
        return
    prior = np.asarray([span.prior for span in view.spans])
    low, high = prior.min(), prior.max()
    sizes = sorted({span.stop - span.start for span in view.spans})
    step = scale * (MARGIN - 10) / LANES
    for start, stop, score, reading in view.spans:
        units = view.page.units[max(start, 0) : stop]
        lane = min(sizes.index(stop - start) * LANES // len(sizes), LANES - 1)
        x = scale * (view.page.width + 6) + lane * step + (start % 2 + 2 * READINGS.index(reading)) * step / 6
        y0, y1 = scale * min(u.box.y0 for u in units) + 2, scale * max(u.box.y1 for u in units) - 2
        alpha = 90 + round(165 * float((score - low) / (high - low))) if high - low > 1e-6 else 170
        above, below = ([(x - 4, y0)] if start >= 0 else []), ([(x - 4, y1)] if stop <= len(view.page.units) else [])
        colour = CANDIDATE if reading == "lines" else TABLE
        pen.line([*above, (x, y0), (x, y1), *below], fill=(*colour, alpha), width=2)


def _sheet(file: str, page: Page, scale: float) -> Image.Image:
    """The page as it looks, on a sheet with a margin for the brackets; its lines written out where it can't be had."""
    size = (max(round(page.width * scale), 1), max(round(page.height * scale), 1))
    sheet = Image.new("RGB", (max(round((page.width + MARGIN) * scale), 1), size[1]), "white")
    if (rendered := _rendered(file, page.number, scale)) is not None:
        sheet.paste(rendered.resize(size))
        return sheet
    pen = ImageDraw.Draw(sheet)
    for rule in page.rules:
        pen.rectangle([scale * edge for edge in rule], fill=RULE)
    for unit in page.units:
        font = ImageFont.load_default(size=max(0.85 * unit.font_size * scale, 4 * scale, 1))
        for cell in unit.cells or (Cell(0, len(unit.text), unit.box.x0, unit.box.x1),):
            at = (scale * cell.x0, scale * unit.box.y0)
            pen.text(at, unit.text[cell.start : cell.stop], fill="black", font=font)
    return sheet


def _rendered(file: str, page: int, scale: float) -> Image.Image | None:
    if Path(file).suffix.lower() != ".pdf" or not Path(file).is_file():
        return None
    try:
        import pypdfium2
    except ImportError:
        return None
    try:
        with pypdfium2.PdfDocument(file) as pdf:
            pdf.init_forms()  # or what is typed into them isn't drawn
            rendered: Image.Image = pdf[page - 1].render(scale=scale).to_pil()
    except (pypdfium2.PdfiumError, IndexError):  # PDFium can't open it, or the file is another one by now
        return None
    return rendered.convert("RGB")


def _save(picture: Image.Image, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_file(target, buffer.getvalue())
    return target
