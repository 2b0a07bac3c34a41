"""Reads plain text: lines that are short stay lines, longer ones are wrapped; a form feed begins a page."""

from pathlib import Path

from e2erag.extract.document import Document
from e2erag.extract.readers.flow import Block, Break, Pre, document
from e2erag.extract.readers.source import decoded, read_bytes

READER_VERSION = 2  # goes up when the lines of a file may change


def read_text(path: str | Path) -> Document:
    """The lines of a text file on nominal pages; the encoding is found as `source.decoded` says.

    A line of up to 120 characters stays one, with its indentation, and runs of three spaces or tabs part its cells.

    Raises:
        ReadError: the file is missing, empty, not text, or has no word.
    """
    data = read_bytes(path)
    blocks: list[Block] = []
    for sheet in decoded(path, data).replace("\v", "\n").split("\f"):
        blocks += [Pre(tuple(sheet.split("\n"))), Break()]
    return document(path, data, blocks, f"text · {READER_VERSION}", nothing="has no text: only white space is in it")
