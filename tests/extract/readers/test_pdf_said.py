"""What a PDF says beside the glyphs that it draws: what they stand for, and what is typed into forms and noted."""

from pathlib import Path

import pytest
from pdf_fixtures import HEIGHT, annotated, canvas, dictionary, drawn, near, texts, written
from pypdf import PdfWriter
from pypdf.generic import (
    ArrayObject,
    BooleanObject,
    DictionaryObject,
    NameObject,
    NullObject,
    NumberObject,
    PdfObject,
    TextStringObject,
)
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract.readers.pdf import read_pdf

pytestmark = pytest.mark.usefixtures("engine")


def _span(text: str, shown: bytes) -> bytes:
    return (
        b"/Span <</ActualText <" + ("\ufeff" + text).encode("utf-16-be").hex().encode() + b">>> BDC " + shown + b" EMC "
    )


ACTUAL = {
    "a letter of small capitals": (b"(Hello w) Tj " + _span("o", b"(O) Tj") + b"(rld) Tj", ["Hello world"]),
    "a soft hyphen": (b"(trans) Tj " + _span("\xad", b"(-) Tj") + b"0 -14 Td (form) Tj", ["trans-", "form"]),
    "a word of several strings": pytest.param(
        b"(See ) Tj " + _span("table", b"(f) Tj (i) Tj [(g) -20 (ure)] TJ") + b"( one) Tj", ["See table one"],
        marks=pytest.mark.differs("PDFium tells no glyph of it but the first string's, so that a gap follows"),
    ),
    "a word over two lines": (
        b"(a ) Tj " + _span("transform", b"(trans-) Tj 0 -14 Td (form) Tj") + b"( b) Tj", ["a transform", "b"],
    ),
    "more than is shown": (b"(a ) Tj " + _span("long text indeed", b"(xx) Tj") + b"( b) Tj", ["a long text indeed b"]),
    "nothing, which leaves it": (b"(a) Tj " + _span("", b"(b) Tj") + b"(c) Tj", ["abc"]),
    "what can't be printed": (b"(a) Tj " + _span("\x03", b"(xx) Tj") + b"(c) Tj", ["a c"]),
    "a blank": (b"(a) Tj " + _span(" ", b"(xx) Tj") + b"(c) Tj", ["a c"]),
    "in another encoding": (b"(a ) Tj /Span <</ActualText (zebra)>> BDC (xx) Tj EMC ( c) Tj", ["a zebra c"]),
    "words from the right": (b"(word ) Tj " + _span("שלום", b"(xxxx) Tj") + b"( here) Tj", ["word שלום here"]),
    "of several glyphs": (b"(word ) Tj " + _span("سلام", b"(xx) Tj (yyyyy) Tj") + b"( here) Tj", ["word سلام here"]),
    "in a language": (b"(a ) Tj " + _span("\x1ben\x1bhi", b"(xx) Tj") + b"( c) Tj", ["a hi c"]),
    "what is no text": (b"(a ) Tj /Span <</ActualText /Foo>> BDC (xx) Tj EMC ( c) Tj", ["a xx c"]),
    "by name": (b"(a ) Tj /Span /P BDC (xx) Tj EMC ( c) Tj", ["a named c"]),
    "never closed": pytest.param(
        b"(a ) Tj /Span /P BDC (xx) Tj ( c) Tj", ["a named"],
        marks=pytest.mark.differs("PDFium tells no glyph of it but the first string's"),
    ),
    "of other content": (b"/P <</MCID 1>> BDC (a) Tj /A BMC (b) Tj EMC EMC EMC /Q /None BDC (c) Tj EMC", ["abc"]),
}  # fmt: skip


@pytest.mark.parametrize("properties", [ArrayObject(), NameObject("/P"), NumberObject(1), NullObject()])
def test_broken_properties_cost_only_themselves(tmp_path: Path, properties: PdfObject) -> None:
    reader = PdfWriter(
        clone_from=written(tmp_path, b"BT /F 9 Tf 50 700 Td (a ) Tj /Span /P BDC (xx) Tj EMC ( c) Tj ET")
    )
    reader.pages[0]["/Resources"][NameObject("/Properties")] = properties
    reader.write(tmp_path / "broken.pdf")
    assert [unit.text for unit in read_pdf(tmp_path / "broken.pdf")] == ["a xx c"]


def test_a_forms_marks_are_its_own(tmp_path: Path) -> None:
    """An end too many there doesn't close the page's; one that isn't closed there ends with it."""
    page = b"BT /F 9 Tf 50 700 Td (a ) Tj ET /Span /P BDC /X Do BT /F 9 Tf 57 700 Td (b) Tj ET EMC"
    assert texts(tmp_path, page, X=b"EMC 0 0 m 100 0 l S") == ["a named"]
    page = b"/X Do BT /F 9 Tf 100 700 Td (b) Tj ET EMC BT /F 9 Tf 130 700 Td (c) Tj ET"
    assert texts(tmp_path, page, X=b"/Span /P BDC BT /F 9 Tf 62 700 Td (x) Tj ET") == ["named b c"]


@pytest.mark.parametrize(("content", "expected"), ACTUAL.values(), ids=ACTUAL)
def test_what_a_file_says_stands_there_is_read(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    """Its /ActualText, in the place of the glyphs shown; the words around it stay whole."""
    assert texts(tmp_path, b"BT /F 12 Tf 72 700 Td " + content + b" ET") == expected


def test_what_is_typed_into_a_form_is_read(tmp_path: Path) -> None:
    """A field's value, beside what is printed; a hidden one isn't shown."""

    def draw(c: Canvas) -> None:
        c.setFont("Helvetica", 12)
        c.drawString(72, 700, "Applicant:")
        c.acroForm.textfield(name="a", value="Jane Doe", x=150, y=694, width=200, height=20)
        c.acroForm.textfield(name="b", value="nobody", x=150, y=600, width=200, height=20, annotationFlags="hidden")

    [line] = drawn(tmp_path, draw)
    assert line.text == "Applicant: Jane Doe"


def filled(path: Path, need: bool, keep: bool, multiline: bool = False, **entries: PdfObject) -> Path:
    """A form's text field of 200 x 90 that says "old", with other entries, and with its picture or not."""

    def draw(c: Canvas) -> None:
        c.drawString(72, 700, "printed")
        flags = "multiline" if multiline else ""
        c.acroForm.textfield(name="a", value="old", x=150, y=500, width=200, height=90, fontSize=12, fieldFlags=flags)

    writer = PdfWriter(clone_from=canvas(path, draw))
    form = writer.root_object["/AcroForm"]
    form[NameObject("/NeedAppearances")] = BooleanObject(need)
    field = writer.pages[0]["/Annots"][0].get_object()
    field.update(dictionary(**entries))
    if not keep:
        del field[NameObject("/AP")]
    writer.write(path / "drawn.pdf")
    return path / "drawn.pdf"


LONG = "one two three four four five six seven eight nine ten eleven twelve thirteen\rfourteen\n\nfifteen"
LOOKS = "/Helv %d Tf .1 g"
VALUES = {
    "without a picture": (False, False, {"V": "Jane Doe"}, ["Jane Doe"]),
    "with an old picture that counts": (False, True, {"V": "Jane Doe"}, ["old"]),
    "with an old one that doesn't": (True, True, {"V": "Jane Doe"}, ["Jane Doe"]),
    "on the right": (True, False, {"V": "1,234", "Q": 2}, ["1,234"]),
    "centred, of its own size": (True, False, {"V": "1,234", "Q": 1, "DA": LOOKS % 31}, ["1,234"]),
    "as large as fits": (True, False, {"V": "Jane Doe", "DA": LOOKS % 0}, ["Jane Doe"]),
    "several lines": (True, False, {"V": LONG}, [
        "one two three four four five six", "seven eight nine ten eleven twelve", "thirteen", "fourteen", "fifteen",
    ]),
    "several, as large as fit": (True, False, {"V": LONG * 2, "DA": LOOKS % 0, "MaxLen": 999}, None),
    "that is empty": (True, False, {"V": " "}, []),
    "of three letters at most": (True, False, {"V": "Jane Doe", "MaxLen": 3}, ["Jan"]),
    "that hides what is typed": (True, False, {"V": "secret", "Ff": 1 << 13}, ["******"]),
    "without a font": (True, False, {"V": "Jane Doe", "DA": "0 g"}, ["Jane Doe"]),
    "a choice": (True, False, {"FT": "/Ch", "Ff": 1 << 17, "V": "2", "Opt": [["1", "one"], ["2", "two"]]}, ["two"]),
}  # fmt: skip


def as_pdf(value: object) -> PdfObject:
    if isinstance(value, list):
        return ArrayObject(map(as_pdf, value))
    if isinstance(value, int):
        return NumberObject(value)
    return NameObject(value) if str(value)[:3] in ("/Ch", "/Tx") else TextStringObject(value)


@pytest.mark.parametrize(("need", "keep", "entries", "expected"), VALUES.values(), ids=VALUES)
def test_a_value_that_is_left_to_the_viewer_is_read(
    need: bool, keep: bool, entries: dict[str, object], expected: list[str] | None, tmp_path: Path
) -> None:
    """Of a field without a picture, or in a form that says that its pictures are old; where PDFium sets it."""
    several = "\n" in str(entries["V"])
    path = filled(tmp_path, need, keep, several, **{name: as_pdf(value) for name, value in entries.items()})
    printed, *typed = [unit.text for unit in read_pdf(path)]
    assert printed == "printed"
    assert typed == expected if expected is not None else " ".join(typed).split() == (LONG * 2).split()


@pytest.mark.parametrize("form", [NullObject(), NumberObject(1), ArrayObject(), DictionaryObject()], ids=str)
def test_a_broken_form_costs_its_fields_alone(form: PdfObject, tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=annotated(tmp_path))
    field = writer.pages[0]["/Annots"][2].get_object().clone(writer, force_duplicate=True)
    field.update(dictionary(Subtype=NameObject("/Widget"), FT=NameObject("/Tx"), V=TextStringObject("typed")))
    del field[NameObject("/AP")]
    writer.pages[0]["/Annots"].insert(0, writer._add_object(field))
    writer.root_object[NameObject("/AcroForm")] = form
    writer.write(tmp_path / "written.pdf")
    assert [unit.text for unit in read_pdf(tmp_path / "written.pdf", "pypdf")] == ["printed", "noted"]


def test_a_note_on_the_page_is_read_where_it_stands(tmp_path: Path) -> None:
    """Its 100 x 50 fill a rectangle of 200 x 100, so that 10 points at (10, 10) are 20 points at (220, 320)."""
    first, noted = sorted(read_pdf(annotated(tmp_path)), key=lambda unit: unit.text, reverse=True)
    assert (first.text, noted.text) == ("printed", "noted")
    assert noted.font_size == pytest.approx(20)
    assert near(
        noted.box, 220, HEIGHT - 320 - 20 * 0.718, 220 + stringWidth("noted", "Helvetica", 20), HEIGHT - 320 + 4.1
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"F": NumberObject(2)}, {"F": NumberObject(32)}, {"Subtype": NameObject("/Highlight")}, {"AP": NullObject()},
        {"AP": DictionaryObject()},
    ],
    ids=["hidden", "not to be viewed", "of another kind", "without an appearance", "with none"],
)  # fmt: skip
def test_a_note_that_shows_nothing_is_not_read(entries: dict[str, PdfObject], tmp_path: Path) -> None:
    assert [unit.text for unit in read_pdf(annotated(tmp_path, **entries))] == ["printed"]


def test_a_note_may_lie_on_its_side(tmp_path: Path) -> None:
    """By its matrix: a quarter turn, whose bounds then fill the rectangle."""
    turn = ArrayObject(NumberObject(v) for v in (0, 1, -1, 0, 0, 0))
    texts = {unit.text for unit in read_pdf(annotated(tmp_path, Matrix=turn))}
    assert "printed" in texts
