"""A page as a picture: what the extractor keeps in green, what it drops in red, cuts dashed, candidates as brackets."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from e2erag.artefact import write_file
from e2erag.citation import Citation
from e2erag.corpus import Gates
from e2erag.extract import Document, Page
from e2erag.rag import RAG

KEPT, DROPPED, CITED, CUT, CANDIDATE = (46, 160, 67), (207, 34, 46), (9, 105, 218), (130, 80, 223), (101, 109, 118)
SCALE = 2.0  # pixels per point
LANES = 6  # brackets side by side
MARGIN = 70.0  # points beside the page, for the brackets


class PageView(NamedTuple):
    """What the extractor says of a page's lines, as numbers in [0, 1].

    Attributes:
        document: that the page is of.
        page: itself.
        gates: of each line, by name: "read", "retrieve", "carry".
        cut: of the gap before each line.
        kept: whether hard mode keeps the line for finding or for reading it.
        taken: whether hard mode cuts before it.
        spans: the candidates that lie on the page, as [first line, last line + 1) counted on it, and log π.
    """

    document: Document
    page: Page
    gates: dict[str, Float[np.ndarray, " lines"]]
    cut: Float[np.ndarray, " lines"]
    kept: np.ndarray
    taken: np.ndarray
    spans: list[tuple[int, int, float]]


@torch.no_grad()
def look_at(rag: RAG, file: str, page: int, every: Gates | None = None) -> PageView:
    """The extractor's view of a page of an indexed document.

    Args:
        file: a document's name or path, as it was indexed.
        page: from 1.
        every: the soft gates of the whole corpus, where several pages are looked at; computed where not given.

    Raises:
        RuntimeError: nothing is indexed.
        ValueError: no such document or page.
    """
    if rag.corpus is None:
        raise RuntimeError("nothing is indexed yet: call index(files) first")
    corpus, extractor = rag.corpus, rag.model.extractor
    paths = [document.file for document in corpus.documents]
    names = [document.name for document in corpus.documents]
    if file not in paths and Path(file).name not in names:
        raise ValueError(f"{file} is not indexed; there are {', '.join(names)}")
    j = paths.index(file) if file in paths else names.index(Path(file).name)
    document = corpus.documents[j]
    if not 1 <= page <= len(document.pages):
        raise ValueError(f"{file} has pages 1 to {len(document.pages)}, got {page}")
    sheet = document.pages[page - 1]
    first = int(corpus.first_line[j]) + sum(len(p.units) for p in document.pages[: page - 1])
    here = slice(first, first + len(sheet.units))
    every = every or rag.model.gates(corpus, "soft")
    out = every.extraction
    gates = {
        name: extractor.log_gates(getattr(out, name)[here], "soft").exp().cpu().numpy()
        for name in ("read", "retrieve", "carry")
    }
    hard = [extractor.log_gates(getattr(out, name)[here], "hard").cpu().numpy() == 0 for name in ("read", "retrieve")]
    cut = torch.sigmoid(out.cut[here]).cpu().numpy()
    prior = rag.model.log_prior(corpus, every)
    table = corpus.spans.spans
    on = (table[:, 1] >= here.start) & (table[:, 2] <= here.stop) & (table[:, 3] == 0)
    spans = [
        (int(row[1]) - first, int(row[2]) - first, float(prior[i]))
        for i, row in zip(on.nonzero()[:, 0].tolist(), table[on], strict=True)
    ]
    return PageView(
        document, sheet, gates, cut, np.logical_or(*hard), cut > extractor.config.cut_threshold, spans
    )  # fmt: skip


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

    A line is tinted from green (gate 1) to red (gate 0), with the gate's value beside it; a cut that hard mode takes is
    a dashed line; beside the page stands a bracket per candidate, darker the likelier it is to be found. The page
    itself is rendered where pypdfium2 is installed and the file is a PDF at hand; else its lines are written out.

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
    image = _sheet(view.document.file, sheet)
    tint = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(tint)
    font = ImageFont.load_default(size=8 * SCALE)
    for unit, value, cut in zip(sheet.units, view.gates[gate], view.taken, strict=True):
        colour = tuple(round(value * k + (1 - value) * d) for k, d in zip(KEPT, DROPPED, strict=True))
        x0, y0, x1, y1 = (SCALE * v for v in unit.box)
        pen.rectangle((x0 - 2, y0 - 1, x1 + 2, y1 + 1), fill=(*colour, 60))
        pen.text((SCALE * 4, y0), f"{value:.2f}", fill=(*colour, 255), font=font)
        if cut:
            for x in np.arange(x0 - 10, max(x1, x0 + 100), 12):
                pen.line((x, y0 - 3, x + 7, y0 - 3), fill=(*CUT, 255), width=2)
    _brackets(pen, view)
    for citation in cited:
        if citation.page == page and citation.file == view.document.file:
            x0, y0, x1, y1 = (SCALE * v for v in citation.box)
            pen.rectangle((x0 - 5, y0 - 4, x1 + 5, y1 + 4), outline=(*CITED, 255), width=4)
    picture = Image.alpha_composite(image.convert("RGBA"), tint).convert("RGB")
    return _save(picture, Path(target))


def _brackets(pen: ImageDraw.ImageDraw, view: PageView) -> None:
    """A bracket per candidate beside the page, in lanes by their size; darker where log π is higher."""
    if not view.spans:
        return
    prior = np.asarray([score for _, _, score in view.spans])
    low, high = prior.min(), prior.max()
    sizes = sorted({stop - start for start, stop, _ in view.spans})
    step = SCALE * (MARGIN - 10) / LANES
    for start, stop, score in view.spans:
        units = view.page.units[start:stop]
        lane = min(sizes.index(stop - start) * LANES // len(sizes), LANES - 1)
        x = SCALE * (view.page.width + 6) + lane * step + (start % 2) * step / 3
        y0, y1 = SCALE * min(u.box.y0 for u in units) + 2, SCALE * max(u.box.y1 for u in units) - 2
        alpha = 90 + round(165 * float((score - low) / (high - low))) if high - low > 1e-6 else 170
        pen.line((x - 4, y0, x, y0, x, y1, x - 4, y1), fill=(*CANDIDATE, alpha), width=2)


def _sheet(file: str, page: Page) -> Image.Image:
    """The page as it looks, on a sheet with a margin for the brackets; its lines written out where it can't be had."""
    size = (round(page.width * SCALE), round(page.height * SCALE))
    sheet = Image.new("RGB", (round((page.width + MARGIN) * SCALE), size[1]), "white")
    if (rendered := _rendered(file, page.number)) is not None:
        sheet.paste(rendered.resize(size))
        return sheet
    pen = ImageDraw.Draw(sheet)
    for unit in page.units:
        font = ImageFont.load_default(size=max(0.85 * unit.font_size, 4) * SCALE)
        pen.text((SCALE * unit.box.x0, SCALE * unit.box.y0), unit.text, fill="black", font=font)
    return sheet


def _rendered(file: str, page: int) -> Image.Image | None:
    if Path(file).suffix.lower() != ".pdf" or not Path(file).is_file():
        return None
    try:
        import pypdfium2
    except ImportError:
        return None
    with pypdfium2.PdfDocument(file) as pdf:
        rendered: Image.Image = pdf[page - 1].render(scale=SCALE).to_pil()
    return rendered.convert("RGB")


def _save(picture: Image.Image, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_file(target, buffer.getvalue())
    return target
