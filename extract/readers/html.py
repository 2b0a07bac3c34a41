"""Reads HTML: what a browser would show, as headings, paragraphs, lists and table rows on nominal pages.

lxml parses it (libxml2, which mends what is broken). Text that isn't shown is left out: scripts, styles, comments,
what the `hidden` attribute or an inline style hides. Menus, headers and footers stay: what is worth reading is learned.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers.flow import Block, Pre, Text, document
from e2erag.extract.readers.grid import SPAN, Budget, Field, as_blocks
from e2erag.extract.readers.source import decoded, package, read_bytes, starved, version
from e2erag.extract.readers.symbols import compound, is_mark, power

READER_VERSION = 4  # goes up when the lines of a file may change

HEAD = 4096  # bytes among which the encoding is declared
NOTHING = (
    "has no text once scripts, styles and hidden parts are gone: if a script fills the page, save it from a browser"
)

_DECLARED = re.compile(
    rb"""<meta[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)""", re.I
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_BOLD_STYLE = re.compile(r"font-weight\s*:\s*(?:bold|[6-9]00)", re.I)
_HEADING = re.compile(r"h([1-6])")

_NOT_SHOWN = frozenset(
    "script style template noscript head iframe object audio video canvas datalist annotation annotation-xml rp rt "
    "desc defs metadata noframes applet".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center details dialog dir div dl fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hgroup hr html legend main menu nav ol p pre search section summary table ul "
    "listing xmp optgroup li dt dd tr thead tbody tfoot td th frameset textarea".split()
)
_LISTS = frozenset("ul ol dl menu dir".split())
_ITEMS = frozenset("li dt dd".split())
_PRE = frozenset("pre listing xmp textarea".split())
_APART = frozenset("option button input label select".split())  # inline, but with white space around them
_BOLD = frozenset("b strong th".split())
_PARTS = frozenset("mfrac msub msup msubsup munderover".split())
_TOKENS = frozenset("mi mn mo".split())
_POWERS = {"msup": 2, "msubsup": 3, "munderover": 3}  # parts, of which the last is raised


@dataclass(slots=True)
class _List:
    ordered: bool
    number: int = 1
    begun: bool = False


@dataclass(slots=True)
class _Rows:
    rows: list[list[Field]] = field(default_factory=list)
    ruled: bool = False


@dataclass(slots=True)
class _Frame:
    """What is being gathered: the page's blocks, or those of one table cell."""

    cell: Any = None  # the element of the cell
    blocks: list[Block] = field(default_factory=list)
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # text since the last block, and whether it is bold
    lists: list[_List] = field(default_factory=list)
    tables: list[_Rows] = field(default_factory=list)
    bold: int = 0
    pre: int = 0
    shift: int = 0  # levels of indentation besides those of lists
    heading: int = 0
    marker: str = ""
    gap: bool = True  # whether a blank line is due

    def flush(self) -> None:
        """Makes a block of the text so far."""
        text = "".join(piece for piece, _ in self.pieces)
        indent = max(self.shift + len(self.lists), 0)
        if self.pre and text.strip():
            self.blocks.append(Pre(tuple(text.strip("\n").split("\n")), indent, True))
        elif text.strip():
            strong = sum(len(piece.strip()) * (1 if bold else -1) for piece, bold in self.pieces)
            self.blocks.append(Text(text, self.heading, indent, self.marker, strong > 0, not self.gap))
            self.marker, self.gap = "", False
        self.pieces.clear()


def read_html(path: str | Path) -> Document:
    """The lines of an HTML page on nominal pages.

    The encoding is what a byte order mark or `<meta charset>` says, else found as `source.decoded` says. The
    alternative text of an image is text, links keep theirs. Document type definitions are never followed, so entities
    that a file defines itself are not expanded.

    Raises:
        ReadError: the file is missing, empty, not text, shows no word, or is nested too deep; or lxml is not installed.
        MemoryError: lxml ran out of it.
    """
    data = read_bytes(path)
    declared = _DECLARED.search(data[:HEAD])
    text = decoded(path, data, next((g for g in declared.groups() if g), b"").decode() if declared else "")
    title, blocks = html_blocks(path, text)
    return document(path, data, blocks, version("lxml", READER_VERSION), title, NOTHING)


def html_blocks(path: str | Path, text: str) -> tuple[str, list[Block]]:
    """The title and the blocks of a page."""
    etree = package(path, "lxml.etree", "lxml")
    # The limits of libxml2 would cut a page short: they are lifted where they can be, and told where they can't.
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.LxmlError as error:
        if starved(error.error_log):
            raise MemoryError from None
        raise ReadError(path, f"is not HTML that can be read ({error}): save it again from a browser") from None
    if starved(parser.error_log):  # what was parsed until then is a part
        raise MemoryError
    limits = [error.message for error in parser.error_log if error.type_name == "ERR_RESOURCE_LIMIT"]
    if limits:
        raise ReadError(path, f"is too large or nested too deep to be read ({limits[0]}): split it")
    if root is None:
        raise ReadError(path, NOTHING)
    title = root.find("head/title")
    return ("".join(title.itertext()) if title is not None else ""), _Page().read(root)


class _Page:
    """A walk over the elements, in the order of the page. Not recursive: a page may be nested 2000 deep."""

    def __init__(self) -> None:
        self.frames = [_Frame()]
        self.budget = Budget()
        self.around: dict[Any, tuple[str, str]] = {}  # what stands before and after parts of formulas

    def read(self, root: Any) -> list[Block]:
        node = root
        while True:
            if self.start(node):
                self.inside(node, node.text, True)
                if len(node):
                    node = node[0]
                    continue
                self.end(node)
            while node is not root and node.getnext() is None:
                self.inside(node.getparent(), node.tail, True)
                node = node.getparent()
                self.end(node)
            if node is root:
                self.frames[0].flush()
                return self.frames[0].blocks
            self.inside(node.getparent(), node.tail)
            node = node.getnext()

    def inside(self, parent: Any, text: str | None, edge: bool = False) -> None:
        """Text in an element, at an `edge` of it or not; white space between a formula's parts is how it is written."""
        if text and parent.tag in _TOKENS:
            text = text.strip()
        if text and not (text.isspace() and (parent.tag in _PARTS or (edge and parent.tag == "mrow"))):
            self.text(text)

    def text(self, text: str | None) -> None:
        if text:
            frame = self.frames[-1]
            frame.pieces.append((text, frame.bold > 0))

    def start(self, node: Any) -> bool:
        """Whether what is in the element is read; then `end` follows."""
        tag = node.tag if isinstance(node.tag, str) else ""
        if not tag or tag in _NOT_SHOWN or (tag == "title" and node.getparent().tag in ("head", "svg", "g")):
            return False
        get, frame = node.get, self.frames[-1]
        style = get("style", "")
        if get("hidden") is not None or (style and _HIDDEN_STYLE.search(style)):
            return False
        self.text(self.around.get(node, ("", ""))[0])
        if tag == "mfrac":
            for i, part in enumerate(node):
                bracketed = compound("".join(part.itertext()))
                self.around[part] = "/" * (i > 0) + "(" * bracketed, ")" * bracketed
        if tag in _POWERS and len(node) == _POWERS[tag]:
            self.around[node[-1]] = power("".join(node[-1].itertext()), _holds_fraction(node[-1]))
            if tag != "munderover" and _holds_fraction(node[0]):
                self.around[node[0]] = "(", ")"
        if tag in _BLOCKS:
            self.block(node, tag, frame)
        elif tag == "br":
            self.newline(frame)
        elif tag == "img":
            self.text(f" {get('alt')} " if get("alt") else "")
        elif tag in _APART or (tag == "sup" and frame.pieces and is_mark(node.text or "")):
            self.text(" ")
        self.frames[-1].bold += _is_bold(tag, style)
        return True

    def newline(self, frame: _Frame) -> None:
        if frame.pre or frame.heading:
            self.text("\n")
            return
        frame.gap = not any(piece.strip() for piece, _ in frame.pieces)  # a second one leaves a blank line
        due = frame.gap
        frame.flush()
        frame.gap = due

    def block(self, node: Any, tag: str, frame: _Frame) -> None:
        frame.flush()
        if tag not in _ITEMS and not frame.marker:
            frame.gap = frame.gap or tag not in _LISTS or not frame.lists
        if heading := _HEADING.fullmatch(tag):
            frame.heading = int(heading[1])
        elif tag in _LISTS:
            frame.lists.append(_List(tag == "ol", _number(node.get("start"), 1, 10**6)))
        elif tag in _ITEMS:
            self.item(node, tag, frame)
        elif tag == "blockquote":
            frame.shift += 1
        elif tag in _PRE:
            frame.pre += 1
        elif tag == "table":
            border = node.get("border", "0").strip() not in ("", "0")
            frame.tables.append(_Rows(ruled=border))
        elif tag == "tr" and frame.tables:
            frame.tables[-1].rows.append([])
        elif tag in ("td", "th") and frame.tables:
            frame.tables[-1].ruled |= tag == "th"
            self.frames.append(_Frame(cell=node))
        elif tag == "caption" and frame.tables:
            frame.tables[-1].ruled = True

    def item(self, node: Any, tag: str, frame: _Frame) -> None:
        inner = frame.lists[-1] if frame.lists else _List(False)
        frame.gap = frame.gap and not inner.begun
        inner.begun = True
        frame.shift -= tag == "dt"
        if tag == "li":
            inner.number = _number(node.get("value"), inner.number, 10**6)
            frame.marker = f"{inner.number}." if inner.ordered else "•"
            inner.number += 1

    def end(self, node: Any) -> None:
        tag = node.tag
        frame = self.frames[-1]
        frame.bold -= _is_bold(tag, node.get("style", ""))
        if tag in _APART:
            self.text(" ")
        self.text(self.around.pop(node, ("", ""))[1])
        if tag not in _BLOCKS:
            return
        frame.flush()
        frame.gap = tag not in _ITEMS
        if tag in _ITEMS:
            frame.marker = ""
            frame.shift += tag == "dt"
        elif tag in _LISTS:
            frame.lists.pop()
            frame.gap = not frame.lists
        elif tag == "blockquote":
            frame.shift -= 1
        elif tag in _PRE:
            frame.pre -= 1
        elif _HEADING.fullmatch(tag):
            frame.heading = 0
        elif tag == "table":
            table = frame.tables.pop()
            frame.blocks += as_blocks(table.rows, table.ruled, self.budget)
        elif tag in ("td", "th") and frame.cell is node:
            self.frames.pop()
            rows = self.frames[-1].tables[-1].rows
            cell = Field(
                frame.blocks, _number(node.get("colspan"), 1, SPAN), _number(node.get("rowspan"), 1, SPAN), tag == "th"
            )
            if rows:
                rows[-1].append(cell)
            else:
                rows.append([cell])


def _is_bold(tag: str, style: str) -> bool:
    return tag in _BOLD or bool(style and _BOLD_STYLE.search(style))


def _holds_fraction(node: Any) -> bool:
    return node.tag == "mfrac" or node.find(".//mfrac") is not None


def _number(value: str | None, otherwise: int, most: int) -> int:
    """A number in an attribute, from 1 to `most`."""
    text = (value or "").strip()
    return min(max(int(text), 1), most) if text.isascii() and text.isdigit() and len(text) < 9 else otherwise
