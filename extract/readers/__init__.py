"""One reader per file format: a path in, a `Document` out."""

from collections.abc import Callable
from pathlib import Path

from e2erag.extract.document import Document
from e2erag.extract.readers.pdf import read_pdf

READERS: dict[str, Callable[[Path], Document]] = {".pdf": read_pdf}
"""By suffix, in lower case."""

__all__ = ["READERS", "read_pdf"]
