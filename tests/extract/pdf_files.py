"""PDFs that several tests here need."""

import os
from pathlib import Path

from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Document, ReadError


def drawn(path: Path, *pages: str) -> Path:
    canvas = Canvas(str(path))
    for text in pages:
        canvas.drawString(72, 700, text)
        canvas.showPage()
    canvas.save()
    return path


def slow(path: Path, pages: int = 1) -> Path:
    """Pages that pypdf follows for about ten seconds each."""
    canvas = Canvas(str(path), pageCompression=0)
    for _ in range(pages):
        canvas._code.append("q " * 1_900_000)
        canvas.drawString(72, 700, "slow")
        canvas.showPage()
    canvas.save()
    return path


def huge(path: Path) -> Path:
    """400 MB, which take no room on the disk."""
    path.write_bytes(b"%PDF-1.7\n")
    os.truncate(path, 400 << 20)
    return path


def some_files(folder: Path) -> Path:
    """Twelve small files, two of them broken."""
    folder.mkdir()
    for n in range(10):
        drawn(folder / f"{n}.pdf", f"file {n}", "and more")
    (folder / "3b.pdf").write_bytes(b"")
    (folder / "7b.pdf").write_bytes(b"%PDF-1.7\n")
    return folder


def outcome(item: Document | ReadError) -> Document | str:
    return str(item) if isinstance(item, ReadError) else item
