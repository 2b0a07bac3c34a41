"""Word documents: what is shown is read, and what is damaged or made to do damage is refused."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path

import docx
import pytest
from docx.enum.text import WD_BREAK
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import qn
from format_fixtures import as_docx, cells, few, read_as
from hypothesis import given
from hypothesis import strategies as st

from e2erag.extract import Document, ReadError
from e2erag.extract.readers import docx as docx_reader
from e2erag.extract.readers import read_docx


def saved(path: Path, made: object) -> Document:
    made.save(str(path / "a.docx"))  # type: ignore[attr-defined]
    return read_docx(path / "a.docx")


def test_a_word_document_with_everything(tmp_path: Path) -> None:
    """Title, headings, lists with their numbers, merged cells, a page break, hidden and deleted text left out."""
    made = docx.Document()
    made.core_properties.title = "Core title"
    made.add_heading("Main", 0)
    made.add_heading("Part", 2)
    for item in "ab":
        made.add_paragraph(item, style="List Number")
    table = made.add_table(3, 3)
    for r, row in enumerate(table.rows):
        for c, cell in enumerate(row.cells):
            cell.text = f"r{r}c{c}"
    table.cell(1, 0).merge(table.cell(2, 0))
    table.cell(0, 1).merge(table.cell(0, 2))
    paragraph = made.add_paragraph("before")
    paragraph.add_run().add_break(WD_BREAK.PAGE)
    paragraph.add_run("after").bold = True
    paragraph = made.add_paragraph("seen ")
    paragraph.add_run("hidden").font.hidden = True
    for tag, said in (("w:ins", "inserted"), ("w:del", "deleted")):
        change, run, content = OxmlElement(tag), OxmlElement("w:r"), OxmlElement("w:t")
        content.text = said
        run.append(content)
        change.append(run)
        paragraph._p.append(change)
    document = saved(tmp_path, made)
    assert document.title == "Core title"
    assert [(unit.page, unit.heading, unit.text) for unit in document] == [
        (1, 1, "Main"), (1, 2, "Part"), (1, 0, "1. a"), (1, 0, "2. b"),
        (1, 0, "r0c0 r0c1 r0c2"), (1, 0, "r1c0 r2c0 r1c1 r1c2"), (1, 0, "r1c0 r2c0 r2c1 r2c2"),
        (1, 0, "before"), (2, 0, "after"), (2, 0, "seen inserted"),
    ]  # fmt: skip
    assert [unit.bold for unit in document if unit.text in ("before", "after")] == [False, True]
    assert cells(document) == [["r0c0", "r0c1 r0c2"], ["r1c0 r2c0", "r1c1", "r1c2"], ["r1c0 r2c0", "r2c1", "r2c2"]]


def test_content_controls_and_text_boxes_are_read(tmp_path: Path) -> None:
    """python-docx passes them over."""
    made = docx.Document()
    made.add_paragraph("first")
    body = made.element.body
    control, inner = OxmlElement("w:sdt"), OxmlElement("w:sdtContent")
    control.append(inner)
    inner.append(body[0])
    body.insert(0, control)
    box, content = OxmlElement("w:pict"), OxmlElement("w:txbxContent")
    content.append(made.add_paragraph("boxed")._p)
    box.append(content)
    made.add_paragraph("second").add_run()._r.append(box)
    assert [unit.text for unit in saved(tmp_path, made)] == ["first", "second", "boxed"]


def test_footnotes_follow_at_the_end(tmp_path: Path) -> None:
    """But not the lines that part them from the page."""
    made = docx.Document()
    made.add_paragraph("text")
    notes = "<w:footnote w:type='separator'><w:p><w:r><w:t>line</w:t></w:r></w:p></w:footnote>"
    notes += "<w:footnote w:id='2'><w:p><w:r><w:t>the note</w:t></w:r></w:p></w:footnote>"
    xml = f"<w:footnotes xmlns:w='{qn('w:p')[1:-2]}'>{notes}</w:footnotes>".encode()
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    part = docx.opc.part.Part(docx.opc.packuri.PackURI("/word/footnotes.xml"), kind, xml, made.part.package)
    made.part.relate_to(part, docx.opc.constants.RELATIONSHIP_TYPE.FOOTNOTES)
    assert [unit.text for unit in saved(tmp_path, made)] == ["text", "the note"]


def test_headings_by_outline_level_and_based_on_styles(tmp_path: Path) -> None:
    """A style of one's own is a heading if it is based on one, or if it says its outline level."""
    made = docx.Document()
    own = made.styles.add_style("Own", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    own.base_style = made.styles["Heading 3"]
    made.add_paragraph("by style", style="Own")
    level = OxmlElement("w:outlineLvl")
    level.set(qn("w:val"), "1")
    made.add_paragraph("by level")._p.get_or_add_pPr().append(level)
    assert [unit.heading for unit in saved(tmp_path, made)] == [3, 2]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sizes that its directory says; zipfile unpacks no more than that."""
    monkeypatch.setattr(docx_reader, "MOST_XML", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/document.xml", b" " * (2 << 20))
    with pytest.raises(ReadError, match="too large unpacked"):
        read_docx(tmp_path / "a.docx")


def test_a_document_type_in_a_docx_is_refused(tmp_path: Path) -> None:
    """Where entities would be declared."""
    data = io.BytesIO(as_docx([("paragraph", "x")]))
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(tmp_path / "a.docx", "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name == "word/document.xml":
                head, rest = part.split(b"?>", 1)
                part = head + b'?><!DOCTYPE w [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + rest.replace(b">x<", b">&b;<")
            new.writestr(name, part)
    with pytest.raises(ReadError, match="document type definition"):
        read_docx(tmp_path / "a.docx")


@few
@given(cut=st.floats(0, 1), flip=st.integers(0, 255))
def test_damaged_word_documents_give_a_document_or_a_reason(cut: float, flip: int, tmp_path: Path) -> None:
    """Never another error."""
    data = bytearray(as_docx([("heading", "a b", 1), ("paragraph", "c " * 50), ("table", [["x", "y"], ["z", "w"]])]))
    data[int(cut * (len(data) - 1))] ^= flip
    for broken in (bytes(data), bytes(data[: int(cut * len(data))])):
        with suppress(ReadError):
            assert read_as(tmp_path, "a.docx", broken).units


def test_symbols_and_formulas_are_read(tmp_path: Path) -> None:
    """Word's own way for what isn't in a font's text: Symbol's codes with F000 added or not, boxes of Wingdings."""
    made = docx.Document()
    paragraph = made.add_paragraph("dose ")
    for font, code in (
        ("Symbol", "F0A3"),
        ("symbol", "B0"),
        ("Wingdings", "F0FE"),
        ("Arial", "2264"),
        ("Webdings", "F063"),
    ):
        run, symbol = OxmlElement("w:r"), OxmlElement("w:sym")
        symbol.set(qn("w:font"), font)
        symbol.set(qn("w:char"), code)
        run.append(symbol)
        paragraph._p.append(run)
    paragraph.add_run(" rate ")
    maths = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    for kind, parts in (("f", {"num": "1", "den": "a+b"}), ("sSup", {"e": "·10", "sup": "6"})):
        formula = paragraph._p.makeelement(f"{{{maths}}}{kind}", nsmap={"m": maths})
        for part, said in parts.items():
            of = formula.makeelement(f"{{{maths}}}{part}")
            run, text = of.makeelement(f"{{{maths}}}r"), of.makeelement(f"{{{maths}}}t")
            text.text = said
            run.append(text)
            of.append(run)
            formula.append(of)
        paragraph._p.append(formula)
    assert [unit.text for unit in saved(tmp_path, made)] == ["dose ≤°☑≤ rate 1/(a+b)·10^6"]


def test_raised_numbers_stand_apart(tmp_path: Path) -> None:
    """A footnote's number isn't the year's last digit, however many runs it is in; the end of "1st" belongs to it."""
    made = docx.Document()
    paragraph = made.add_paragraph("in 2009")
    paragraph.add_run().font.superscript = True  # a part of a field
    for text, raised in (("1", True), ("2", True), (" the 1", False), ("st", True), (" of 10", False), ("6", True)):
        paragraph.add_run(text).font.superscript = raised or None
    paragraph.add_run(" H")
    paragraph.add_run("2").font.subscript = True
    paragraph.add_run("O")
    assert [unit.text for unit in saved(tmp_path, made)] == ["in 2009 12 the 1st of 10 6 H2O"]


def test_brackets_of_formulas_are_read(tmp_path: Path) -> None:
    """Word keeps them as a property of what they enclose; a fraction that is raised has some too, on one line."""
    maths = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    t = "<m:r><m:t>%s</m:t></m:r>"
    one = "<m:f><m:num>" + t % 1 + "</m:num><m:den>" + t % 2 + "</m:den></m:f>"
    square = '<m:dPr><m:begChr m:val="["/><m:endChr m:val="]"/></m:dPr>'
    call = t % "f" + "<m:d><m:e>" + t % "x" + "</m:e></m:d>" + t % "="
    powers = f"<m:sSup><m:e>{one}</m:e><m:sup>{one}</m:sup></m:sSup>" + t % "+"
    cube = f"<m:sSup><m:e><m:d>{square}<m:e>{one}</m:e></m:d></m:e><m:sup>" + t % 3 + "</m:sup></m:sSup>"
    formula = call + powers + cube
    made = docx.Document()
    made.add_paragraph("so ")._p.append(parse_xml(f'<m:oMath xmlns:m="{maths}">{formula}</m:oMath>'))
    assert [unit.text for unit in saved(tmp_path, made)] == ["so f(x)=(1/2)^(1/2)+[1/2]^3"]
