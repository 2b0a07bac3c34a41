"""Reads Markdown: CommonMark with tables, by markdown-it; what it makes is read as HTML is."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers.flow import Block, Pre, document
from e2erag.extract.readers.html import html_blocks
from e2erag.extract.readers.source import decoded, package, read_bytes, version

READER_VERSION = 4  # goes up when the lines of a file may change

NESTED = 100  # levels of quotes and lists within each other; markdown-it calls itself for each

_NOTE = re.compile(r"\[\^[^\]\n]+\]:")
_FRONT = re.compile(r"\A---[ \t]*\n((?:[\w-]+:.*|[ \t#-].*|)\n)*?(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
_TITLE = re.compile(r"^title:\s*(.+)$", re.M)


def read_markdown(path: str | Path) -> Document:
    """The lines of a Markdown file on nominal pages; HTML in it is read too.

    A footnote stays where it is defined, as a paragraph with its mark ("[^1]: …").
    Front matter (between `---` at the very top) gives the title and stays as lines: its date may answer a question.

    Raises:
        ReadError: the file is missing, empty, not text, has no word, or is nested too deep; or a package is missing.
    """
    data = read_bytes(path)
    text = decoded(path, data)
    blocks: list[Block] = []
    title = ""
    if front := _FRONT.match(text):
        lines = front[0].strip().splitlines()[1:-1]
        blocks.append(Pre(tuple(lines), code=True))
        text = text[front.end() :]
        title = found[1].strip().strip("\"'") if (found := _TITLE.search("\n".join(lines))) else ""
    engine = package(path, "markdown_it", "markdown-it-py")
    parser = engine.MarkdownIt("commonmark", {"maxNesting": NESTED}).enable(["table", "strikethrough"])
    note = partial(_note, package(path, "markdown_it.rules_block", "markdown-it-py").paragraph)
    parser.block.ruler.before("reference", "note", note, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    tokens = parser.parse(text)
    if any(token.level >= NESTED - 1 for token in tokens):
        raise ReadError(path, f"nests quotes or lists more than {NESTED // 2} deep: split it, or write it flatter")
    rendered = parser.renderer.render(tokens, parser.options, {})
    if rendered.strip():
        blocks += html_blocks(path, rendered)[1]
    return document(path, data, blocks, version("markdown-it-py", READER_VERSION), title)


def _note(paragraph: Callable[..., bool], state: Any, line: int, end: int, silent: bool) -> bool:
    """A rule for footnotes, which CommonMark lacks: it takes one of a word for a link's definition, several for one."""
    if state.is_code_block(line) or not _NOTE.match(state.src, state.bMarks[line] + state.tShift[line]):
        return False
    return silent or paragraph(state, line, end, silent)
