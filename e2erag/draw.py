"""A page as a picture: what the extractor keeps in green, what it drops in red, cited lines framed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from e2erag.artefact import write_file
from e2erag.citation import Citation
from e2erag.rag import RAG

KEPT, DROPPED, CITED = (46, 160, 67), (207, 34, 46), (9, 105, 218)
SCALE = 2.0  # pixels per point


def draw_page(
    rag: RAG, file: str, page: int, target: str | Path, cited: Iterable[Citation] = (), gate: str = "read"
) -> Path:
    """Write a PNG of a page of an indexed document with its gates drawn over the lines.

    A line is tinted from green (gate 1) to red (gate 0), with the gate's value beside it. The page itself is rendered
    where pypdfium2 is installed and the file is at hand; else its lines are written out.

    Args:
        file: a document's name or path, as it was indexed.
        page: from 1.
        target: the PNG to write.
        cited: citations; those on this page are framed in blue.
        gate: "read" (what the generator sees), "retrieve" (what the passage vectors hold) or "carry".

    Raises:
        ValueError: no such document, page or gate.
    """
    if rag.corpus is None:
        raise RuntimeError("nothing is indexed yet: call index(files) first")
    if gate not in ("read", "retrieve", "carry"):
        raise ValueError(f"gate must be read, retrieve or carry, got {gate!r}")
    documents = rag.corpus.documents
    paths, names = [document.file for document in documents], [document.name for document in documents]
    if file not in paths and Path(file).name not in names:
        raise ValueError(f"{file} is not indexed; there are {', '.join(names)}")
    j = paths.index(file) if file in paths else names.index(Path(file).name)
    document = documents[j]
    if not 1 <= page <= len(document.pages):
        raise ValueError(f"{file} has pages 1 to {len(document.pages)}, got {page}")
    sheet = document.pages[page - 1]
    before = sum(len(p.units) for p in document.pages[: page - 1])
    lines = int(rag.corpus.first_line[j]) + before + np.arange(len(sheet.units))
    values = _gates(rag, lines, gate)

    image = _render(document.file, page, sheet.width, sheet.height)
    tint = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(tint)
    font = ImageFont.load_default(size=8 * SCALE)
    for unit, value in zip(sheet.units, values, strict=True):
        colour = tuple(round(value * k + (1 - value) * d) for k, d in zip(KEPT, DROPPED, strict=True))
        x0, y0, x1, y1 = (SCALE * v for v in unit.box)
        pen.rectangle((x0 - 2, y0 - 1, x1 + 2, y1 + 1), fill=(*colour, 60))
        pen.text((SCALE * 4, y0), f"{value:.2f}", fill=(*colour, 255), font=font)
    for citation in cited:
        if citation.page == page and citation.file == document.file:
            x0, y0, x1, y1 = (SCALE * v for v in citation.box)
            pen.rectangle((x0 - 5, y0 - 4, x1 + 5, y1 + 4), outline=(*CITED, 255), width=4)
    picture = Image.alpha_composite(image.convert("RGBA"), tint).convert("RGB")
    return _save(picture, Path(target))


def _gates(rag: RAG, lines: np.ndarray, gate: str) -> list[float]:
    assert rag.corpus is not None
    with torch.no_grad():
        logits = getattr(rag.model.gates(rag.corpus, "soft").extraction, gate)[torch.from_numpy(lines)]
        return rag.model.extractor.log_gates(logits, "soft").exp().tolist()


def _render(file: str, page: int, width: float, height: float) -> Image.Image:
    size = (round(width * SCALE), round(height * SCALE))
    if Path(file).is_file():
        try:
            import pypdfium2
        except ImportError:
            return Image.new("RGB", size, "white")
        with pypdfium2.PdfDocument(file) as pdf:
            rendered: Image.Image = pdf[page - 1].render(scale=SCALE).to_pil()
        return rendered.convert("RGB").resize(size)
    return Image.new("RGB", size, "white")


def _save(picture: Image.Image, target: Path) -> Path:
    from io import BytesIO

    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_file(target, buffer.getvalue())
    return target
