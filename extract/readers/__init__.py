"""One reader per file format: a path in, a `Document` out. What a format needs is imported when it is first read."""

from collections.abc import Callable
from pathlib import Path

from e2erag.extract.document import Document
from e2erag.extract.readers.docx import read_docx
from e2erag.extract.readers.html import read_html
from e2erag.extract.readers.markdown import read_markdown
from e2erag.extract.readers.ocr import read_image
from e2erag.extract.readers.pdf import read_pdf
from e2erag.extract.readers.text import read_text

READERS: dict[str, Callable[[Path], Document]] = {
    ".pdf": read_pdf,
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".txt", ".text"), read_text),
    ".docx": read_docx,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"), read_image),
}
"""By suffix, in lower case."""

__all__ = ["READERS", "read_docx", "read_html", "read_image", "read_markdown", "read_pdf", "read_text"]
