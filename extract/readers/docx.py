"""Reads Word documents (.docx): headings by style, paragraphs, numbered lists as numbered, tables as rows.

python-docx opens the package and knows its styles and properties; the walk over the body is ours, since it also goes
into what python-docx passes over: content controls, inserted text, text boxes, footnotes.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers.docx_styles import Numbers, Style, Styles, W, attribute, on
from e2erag.extract.readers.flow import Block, Break, Text, document
from e2erag.extract.readers.grid import SPAN, Budget, Field, as_blocks
from e2erag.extract.readers.source import package, read_bytes, starved, version
from e2erag.extract.readers.symbols import compound, inserted, is_mark, power

READER_VERSION = 3  # goes up when the lines of a file may change

MOST_XML = 128 << 20  # bytes of a package's XML once unpacked; its tree takes several times that
MOST_BYTES = 1 << 30  # with pictures
MOST_PARTS = 20_000

_AS_DOCX = "open it in Word or LibreOffice and save it as .docx"
# What Word doesn't show: deleted or moved text, field codes, the form of a drawing for older programs.
_NOT_SHOWN = {W + tag for tag in "del moveFrom delText instrText delInstrText pPr rPr sdtPr sectPr rt".split()}
_NOT_SHOWN |= {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}
_DOC_PR = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}docPr"
_MATH_OF = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MATH = _MATH_OF + "t"
_FRACTION = _MATH_OF + "f"
_FENCED = {_MATH_OF + tag for tag in ("sup", "d", "e")}
_WRAPPERS = {W + tag for tag in "sdt sdtContent ins moveTo customXml smartTag".split()}
_TEXT = {W + "tab": "\t", W + "br": "\n", W + "cr": "\n", W + "noBreakHyphen": "-", W + "ptab": "\t"}
_NOTES = re.compile(r"/word/(footnotes|endnotes)\d*\.xml")


def read_docx(path: str | Path) -> Document:
    """The lines of a Word document on nominal pages; a page break or a section on a new page begins one.

    Deleted and hidden text, comments, running headers and footers are left out; footnotes follow at the end.

    Raises:
        ReadError: the file is missing, empty, damaged, encrypted, of an older kind, larger than `MOST_XML` unpacked,
            or has no word; or python-docx is not installed.
    """
    data = read_bytes(path)
    _check(path, data)
    docx = package(path, "docx", "python-docx")
    try:
        opened = docx.Document(io.BytesIO(data))
        body = opened.element.body
        if opened.element.getroottree().docinfo.doctype:
            raise ReadError(path, f"has a document type definition, which no .docx may have: {_AS_DOCX}")
        blocks = _Body(Styles(opened), Numbers(opened)).read(body, _notes(opened))
        title = opened.core_properties.title or ""
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # lxml, zipfile, zlib and python-docx have each their own, and KeyError for a lost part
        if starved(getattr(error, "error_log", ())):
            raise MemoryError from None
        what = " ".join(str(error).split())[:120]
        raise ReadError(path, f"is no .docx or damaged ({type(error).__name__}: {what}): {_AS_DOCX}") from None
    return document(path, data, blocks, version("python-docx", READER_VERSION), title)


def _check(path: str | Path, data: bytes) -> None:
    """Refuses what is no package of the right kind, or too large once unpacked, before any of it is unpacked."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ReadError(path, f"is an old .doc or encrypted: {_AS_DOCX}, without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            parts = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ReadError(path, f"is no .docx or damaged ({error}): {_AS_DOCX}") from None
    if any(part.flag_bits & 1 for part in parts):
        raise ReadError(path, "is encrypted: save it without a password")
    xml = sum(part.file_size for part in parts if part.filename.lower().endswith((".xml", ".rels")))
    total = sum(part.file_size for part in parts)
    if xml > MOST_XML or total > MOST_BYTES or len(parts) > MOST_PARTS:
        size = f"{xml >> 20} MiB of XML, {total >> 20} MiB in all, {len(parts)} parts"
        limits = f"{MOST_XML >> 20}, {MOST_BYTES >> 20} and {MOST_PARTS}"
        raise ReadError(path, f"is too large unpacked ({size}; at most {limits}): split it")


def _notes(opened: Any) -> list[Any]:
    """Footnotes and endnotes, without the lines that separate them from the page."""
    from docx.oxml import parse_xml

    notes = []
    for part in opened.part.package.iter_parts():
        if _NOTES.fullmatch(str(part.partname)):
            root = parse_xml(part.blob)
            notes += [note for note in root if attribute(note, "type") in (None, "normal")]
    return notes


class _Body:
    """A walk over paragraphs and tables. It calls itself for what is nested, which libxml2 allows 256 deep."""

    def __init__(self, styles: Styles, numbers: Numbers) -> None:
        self.styles, self.numbers = styles, numbers
        self.budget = Budget()
        self.listed = False  # whether the last paragraph was a list item

    def read(self, body: Any, notes: list[Any]) -> list[Block]:
        blocks = self.blocks(body)
        for note in notes:
            blocks += self.blocks(note)
        return blocks

    def blocks(self, parent: Any) -> list[Block]:
        out: list[Block] = []
        for node in parent:
            if node.tag == W + "p":
                out += self.paragraph(node)
            elif node.tag == W + "tbl":
                out += self.table(node)
            elif isinstance(node.tag, str) and node.tag not in _NOT_SHOWN:
                out += self.blocks(node)  # a content control, inserted text, or another wrapper
        return out

    def paragraph(self, node: Any) -> list[Block]:
        style = self.styles.of(node)
        line = _Line(self)
        line.walk(node, style)
        out: list[Block] = [Break()] if style.page_break else []
        tight = style.listed and self.listed
        marker = self.numbers.next(style) if any(text.strip() for text, _ in line.pieces) else ""
        for sheet, pieces in enumerate(_split(line.pieces, "\f")):
            if sheet:
                out.append(Break())
            for part in [pieces] if style.heading else _split(pieces, "\n"):
                text = "".join(text for text, _ in part)
                if not text.strip():
                    continue
                if style.heading:
                    text, marker = f"{marker} {text}", ""
                strong = sum(len(text.strip()) * (1 if bold else -1) for text, bold in part) > 0
                out.append(Text(text, style.heading, style.level + 1 if style.listed else 0, marker, strong, tight))
                marker, tight = "", True
                self.listed = style.listed
        out += line.boxes
        return [*out, Break()] if style.section_break else out

    def table(self, node: Any) -> list[Block]:
        self.listed = False
        rows: list[list[Field]] = []
        open_cells: dict[int, Field] = {}  # by column: those that go on in the next row
        for row in _inside(node, "tr"):
            if row.find(f"{W}trPr/{W}del") is not None:
                continue
            head = on(row.find(f"{W}trPr/{W}tblHeader"))
            fields: list[Field] = []
            column = _number(attribute(row.find(f"{W}trPr/{W}gridBefore"), "val"), 0)
            if column:
                fields.append(Field([], column))
            for cell in _inside(row, "tc"):
                span = max(_number(attribute(cell.find(f"{W}tcPr/{W}gridSpan"), "val"), 1), 1)
                merge = cell.find(f"{W}tcPr/{W}vMerge")
                if merge is not None and attribute(merge, "val") != "restart" and column in open_cells:
                    open_cells[column].rows += 1
                else:
                    field = Field(self.blocks(cell), span, 1, head)
                    fields.append(field)
                    open_cells.pop(column, None)
                    if merge is not None:
                        open_cells[column] = field
                column += span
            rows.append(fields)
        return as_blocks(rows, True, self.budget)


class _Line:
    """The words of a paragraph, in pieces with whether they are bold; a form feed is a page break."""

    def __init__(self, body: _Body) -> None:
        self.body = body
        self.pieces: list[tuple[str, bool]] = []
        self.boxes: list[Block] = []  # of text boxes that hang on the paragraph
        self.raised = False  # whether the last run was

    def walk(self, node: Any, style: Style) -> None:
        for child in node:
            tag = child.tag
            if not isinstance(tag, str) or tag in _NOT_SHOWN:
                continue
            if tag == W + "r":
                run = self.body.styles.run(child, style)
                if not run.hidden:
                    if run.raised and not self.raised and self.pieces:
                        said = "".join(each.text or "" for each in child.iter(W + "t"))
                        self.pieces.append((" " * bool(said.strip() and is_mark(said)), run.bold))
                    before = len(self.pieces)
                    self.walk(child, run)
                    if any(text.strip() for text, _ in self.pieces[before:]):  # and isn't a part of a field
                        self.raised = run.raised
            elif tag in (W + "t", _MATH):
                self.pieces.append((child.text or "", style.bold))
            elif tag in _TEXT:
                page = tag == W + "br" and attribute(child, "type") == "page"
                self.pieces.append(("\f" if page else _TEXT[tag], style.bold))
            elif tag == W + "txbxContent":
                self.boxes += self.body.blocks(child)
            elif tag == W + "sym":
                self.pieces.append((inserted(attribute(child, "font"), attribute(child, "char")), style.bold))
            elif tag in (_MATH_OF + "num", _MATH_OF + "den"):
                bracketed = compound("".join(each.text or "" for each in child.iter(_MATH)))
                self.pieces.append(("/" * tag.endswith("den") + "(" * bracketed, style.bold))
                self.walk(child, style)
                self.pieces.append((")" * bracketed, style.bold))
            elif tag in _FENCED:
                before, after = _fence(child)
                self.pieces.append((before, style.bold))
                self.walk(child, style)
                self.pieces.append((after, style.bold))
            elif tag == _DOC_PR:
                self.pieces.append((f" {child.get('descr') or ''} ", style.bold))
            else:
                self.walk(child, style)


def _fence(node: Any) -> tuple[str, str]:
    """What stands around a part of a formula: what is raised, what is in brackets, a fraction that is raised to it."""
    fraction = node.find(f".//{_FRACTION}") is not None
    if node.tag == _MATH_OF + "sup":
        return power("".join(each.text or "" for each in node.iter(_MATH)), fraction)
    if node.tag == _MATH_OF + "e":
        raised = node.getparent().tag in (_MATH_OF + "sSup", _MATH_OF + "sSubSup")
        return ("(", ")") if raised and fraction and node.find(f"./{_MATH_OF}d") is None else ("", "")
    said = [node.find(f"{_MATH_OF}dPr/{_MATH_OF}{name}") for name in ("begChr", "endChr")]
    begin, end = (usual if n is None else n.get(_MATH_OF + "val") or "" for n, usual in zip(said, "()", strict=True))
    return begin, end


def _split(pieces: list[tuple[str, bool]], mark: str) -> list[list[tuple[str, bool]]]:
    """The pieces between pieces that are `mark`."""
    out: list[list[tuple[str, bool]]] = [[]]
    for piece in pieces:
        if piece[0] == mark:
            out.append([])
        else:
            out[-1].append(piece)
    return out


def _inside(parent: Any, tag: str) -> list[Any]:
    """The rows of a table or the cells of a row, those in content controls too."""
    out = []
    for node in parent:
        if node.tag == W + tag:
            out.append(node)
        elif isinstance(node.tag, str) and node.tag in _WRAPPERS:
            out += _inside(node, tag)
    return out


def _number(text: str | None, otherwise: int) -> int:
    return min(int(text), SPAN) if text and text.isascii() and text.isdigit() and len(text) < 9 else otherwise
