"""PDFs made for the tests of the PDF reader: drawn with reportlab, or written instruction by instruction."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    NameObject,
    NullObject,
    NumberObject,
    PdfObject,
    TextStringObject,
)
from reportlab.pdfbase.pdfmetrics import registerFont, stringWidth
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Box, Document
from e2erag.extract.readers.pdf import read_pdf

ENGINES = ("pypdf", "pypdfium2")
NTSB = sorted((Path(__file__).parents[3] / "examples" / "ntsb").glob("*.pdf"))
WIDTH, HEIGHT = 600.0, 800.0


def canvas(path: Path, draw: Callable[[Canvas], None], **options: str) -> Path:
    """A PDF of one page of 600 x 800 points that reportlab draws."""
    page = Canvas(str(path / "drawn.pdf"), pagesize=(WIDTH, HEIGHT), **options)
    draw(page)
    page.save()
    return path / "drawn.pdf"


def dictionary(**entries: object) -> DictionaryObject:
    return DictionaryObject({NameObject(f"/{key}"): value for key, value in entries.items()})


def stream(content: bytes) -> DecodedStreamObject:
    stream = DecodedStreamObject()
    stream.set_data(content)
    return stream


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def assert_same(path: Path) -> Document:
    """That both engines read a file alike; gives what pypdf read."""
    one, other = (read_pdf(path, engine) for engine in ENGINES)
    assert_alike(one, other)
    return one


def assert_alike(one: Document, other: Document) -> None:
    """What the contract says, unit by unit."""
    assert [unit.text for unit in one] == [unit.text for unit in other]
    for a, b in zip(one, other, strict=True):
        assert apart(a.box, b.box) < 1, a.text
        assert abs(a.font_size - b.font_size) < 0.1
        assert [cell[:2] for cell in a.cells] == [cell[:2] for cell in b.cells]
        assert all(apart(x[2:], y[2:]) < 1 for x, y in zip(a.cells, b.cells, strict=True))
        assert a.page == b.page
    assert sum(a.bold != b.bold for a, b in zip(one, other, strict=True)) <= 0.03 * len(one)
    for a, b in zip(one.pages, other.pages, strict=True):
        assert apart((a.width, a.height), (b.width, b.height)) < 0.01
        assert len(a.rules) == len(b.rules)
        assert all(apart(x, y) < 1 for x, y in zip(a.rules, b.rules, strict=True))
        assert a.unread == b.unread


def written(path: Path, *contents: bytes, font: DictionaryObject | None = None, **forms: bytes) -> Path:
    """A PDF with these content streams as pages, a font /F (Helvetica), properties /P (that it reads "named"), and form
    XObjects by name."""
    writer = PdfWriter()
    font = font or dictionary(Type=NameObject("/Font"), Subtype=NameObject("/Type1"), BaseFont=NameObject("/Helvetica"))
    if "/ToUnicode" in font:
        font[NameObject("/ToUnicode")] = writer._add_object(font["/ToUnicode"])
    if "/FontDescriptor" in font:
        descriptor = font["/FontDescriptor"]
        descriptor[NameObject("/FontFile")] = writer._add_object(descriptor["/FontFile"])
    properties = dictionary(P=dictionary(ActualText=TextStringObject("named")))
    resources = dictionary(Font=dictionary(F=font), XObject=dictionary(), Properties=properties)
    for name, content in forms.items():
        form = stream(content)
        box = ArrayObject(NumberObject(v) for v in (0, 0, int(WIDTH), int(HEIGHT)))
        form.update(dictionary(Type=NameObject("/XObject"), Subtype=NameObject("/Form"), Resources=resources, BBox=box))
        resources["/XObject"][NameObject(f"/{name}")] = writer._add_object(form)
    for content in contents:
        page = writer.add_blank_page(WIDTH, HEIGHT)
        page[NameObject("/Contents")] = writer._add_object(stream(content))
        page[NameObject("/Resources")] = resources
    writer.write(path / "written.pdf")
    return path / "written.pdf"


def annotated(path: Path, content: bytes = b"(noted) Tj", **entries: PdfObject) -> Path:
    """A page that says "printed", and a note whose appearance, 100 x 50, says "noted" 10 from its left and bottom."""
    writer = PdfWriter()
    page = writer.add_blank_page(WIDTH, HEIGHT)
    font = dictionary(Type=NameObject("/Font"), Subtype=NameObject("/Type1"), BaseFont=NameObject("/Helvetica"))
    resources = dictionary(Font=dictionary(F=font))
    page[NameObject("/Resources")] = resources
    page[NameObject("/Contents")] = writer._add_object(stream(b"BT /F 10 Tf 50 700 Td (printed) Tj ET"))
    shown = stream(b"BT /F 10 Tf 10 10 Td " + content + b" ET")
    box, corners = (ArrayObject(map(NumberObject, each)) for each in ((0, 0, 100, 50), (200, 300, 400, 400)))
    shown.update(dictionary(Subtype=NameObject("/Form"), Resources=resources, BBox=box))
    shown.update(dictionary(**{name: value for name, value in entries.items() if name == "Matrix"}))
    note = dictionary(Type=NameObject("/Annot"), Subtype=NameObject("/FreeText"), Rect=corners, F=NumberObject(4))
    note.update(dictionary(AP=dictionary(N=writer._add_object(shown))))
    note.update(dictionary(**{name: value for name, value in entries.items() if name != "Matrix"}))
    page[NameObject("/Annots")] = ArrayObject([NullObject(), NumberObject(1), writer._add_object(note)])
    writer.write(path / "written.pdf")
    return path / "written.pdf"


def drawn(path: Path, draw: Callable[[Canvas], None], **options: str) -> Document:
    """What is read of one page of 600 x 800 points that reportlab drew."""
    return read_pdf(canvas(path, draw, **options))


def texts(path: Path, content: bytes, **forms: bytes) -> list[str]:
    return [unit.text for unit in read_pdf(written(path, content, **forms))]


def near(box: Box, *expected: float) -> bool:
    return all(abs(a - b) < 1 for a, b in zip(box, expected, strict=True))


def with_ligatures() -> DictionaryObject:
    """Helvetica whose codes 1 and 2 are fi and fl."""
    names = ArrayObject([NumberObject(1), NameObject("/fi"), NameObject("/fl")])
    encoding = dictionary(Type=NameObject("/Encoding"), BaseEncoding=NameObject("/WinAnsiEncoding"), Differences=names)
    kind = {"Type": NameObject("/Font"), "Subtype": NameObject("/Type1"), "BaseFont": NameObject("/Helvetica")}
    return dictionary(**kind, Encoding=encoding)


def with_codes(**codes: str) -> DictionaryObject:
    """Helvetica in which these codes stand for these characters."""
    pairs = "\n".join(f"<{ord(code):02x}> <{text.encode('utf-16-be').hex()}>" for code, text in codes.items())
    head = "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
    ranges = "1 begincodespacerange <00> <ff> endcodespacerange\n"
    cmap = f"{head}{ranges}{len(codes)} beginbfchar\n{pairs}\nendbfchar\nendcmap end end"
    kind = {"Type": NameObject("/Font"), "Subtype": NameObject("/Type1"), "BaseFont": NameObject("/Helvetica")}
    return dictionary(**kind, Encoding=NameObject("/WinAnsiEncoding"), ToUnicode=stream(cmap.encode()))


def of_tex(name: str, **codes: str) -> DictionaryObject:
    """A font as TeX embeds them: its file alone names the glyphs of its codes. Each is a bar half an em wide."""
    bar = _encrypted(bytes([0, 0, 0, 0, 139, 248, 136, 13, 248, 136, 6, 249, 80, 7, 252, 136, 6, 9, 14]), 4330)
    glyphs = b" ".join(b"/%s %d RD %s ND" % (glyph.encode(), len(bar), bar) for glyph in (".notdef", *codes.values()))
    named = "".join(f"dup {ord(code)} /{glyph} put\n" for code, glyph in codes.items())
    head = f"""%!PS-AdobeFont-1.0: {name}
11 dict begin /FontType 1 def /PaintType 0 def /FontMatrix [0.001 0 0 0.001 0 0] def /FontBBox {{0 -10 500 700}} def
/FontName /{name} def /Encoding 256 array 0 1 255 {{1 index exch /.notdef put}} for
{named}readonly def currentdict end
currentfile eexec
""".encode()
    private = b"""dup /Private 8 dict dup begin /RD {string currentfile exch readstring pop} def /ND {def} def
/BlueValues [] def /lenIV 4 def /password 5839 def 2 index /CharStrings %d dict dup begin
%s
end end readonly put put dup /FontName get exch definefont pop mark currentfile closefile
""" % (len(codes) + 1, glyphs)
    body = _encrypted(b"\0\0\0\0" + private, 55665)
    file = stream(head + body)
    file.update(dictionary(Length1=NumberObject(len(head)), Length2=NumberObject(len(body)), Length3=NumberObject(0)))
    box = ArrayObject(NumberObject(v) for v in (0, -10, 500, 700))
    named = {"FontName": NameObject(f"/{name}"), "Flags": NumberObject(4), "FontBBox": box}
    descriptor = dictionary(Type=NameObject("/FontDescriptor"), FontFile=file, **named)
    kind = {"Type": NameObject("/Font"), "Subtype": NameObject("/Type1"), "BaseFont": NameObject(f"/{name}")}
    widths = ArrayObject([NumberObject(500)] * 128)
    ends = {"FirstChar": NumberObject(0), "LastChar": NumberObject(127), "Widths": widths}
    return dictionary(**kind, **ends, FontDescriptor=descriptor)


def _encrypted(plain: bytes, key: int) -> bytes:
    """As a Type 1 font's parts are (Adobe Type 1 Font Format, chapter 7)."""
    out = bytearray()
    for byte in plain:
        out.append(byte ^ key >> 8)
        key = (out[-1] + key) * 52845 + 22719 & 0xFFFF
    return bytes(out)


PROSE = (
    "the airplane departed from a private strip in the",
    "early morning and was seen to climb until it had",
    "reached the height of the trees beyond the field,",
    "where it turned to the left and began to descend",
    "without a change in the sound of the engine that",
    "could be heard by either of the two people who",
    "were standing near the road; they both ran to the",
    "place and found the pilot beside the wreckage, not",
)


def two_columns(page: Canvas) -> None:
    """A heading over both, then line by line across the gutter."""
    page.setFont("Times-Roman", 10)
    page.drawString(50, 750, "History of the flight and of the airplane")
    for row, (left, right) in enumerate(zip(PROSE, reversed(PROSE), strict=True)):
        page.drawString(50, 720 - 12 * row, left)
        page.drawString(320, 720 - 12 * row, right)


def ruled_table(page: Canvas) -> None:
    """Three columns and four rows with a grid of lines, and a thin filled bar above it."""
    page.setFont("Helvetica", 9)
    page.rect(50, 719, 300, 1.5, stroke=0, fill=1)
    page.grid([50, 150, 250, 350], [640, 660, 680, 700, 715])
    for row, cells in enumerate((("Item", "2022", "2023"), ("Cash", "36,220", "34,947"), ("Debt", "(1,204)", "$ 8"))):
        for column, cell in enumerate(cells):
            page.drawString(55 + 100 * column, 703 - 20 * row, cell)


def rotated(page: Canvas) -> None:
    """A page that is turned by 90 degrees to be read, with a line along its other edge."""
    page.setPageRotation(90)
    page.setFont("Times-Italic", 12)
    page.saveState()
    page.translate(300, 200)
    page.rotate(90)
    page.drawString(0, 0, "Upright once the page is turned")
    page.line(0, -10, 200, -10)
    page.restoreState()
    page.drawString(100, 700, "along the edge")


def unturned(page: Canvas, angle: int) -> None:
    """Text as it is set without it on a page that is turned: on its side or its head, a row of cells last."""
    page.setPageRotation(angle)
    page.setFont("Times-Roman", 10)
    for row, line in enumerate(PROSE):
        page.drawString(50, 500 - 12 * row, line)
    for x, cell in ((50, "left cell"), (300, "right cell"), (450, "1,204")):
        page.drawString(x, 300, cell)


def sideways(page: Canvas) -> None:
    """The same up along a page that isn't turned, its number upright."""
    page.saveState()
    page.translate(500, 50)
    page.rotate(90)
    unturned(page, 0)
    page.restoreState()
    page.drawString(300, 20, "17")


def raised(page: Canvas) -> None:
    """A footnote mark after a year, an ordinal, a formula."""
    text = page.beginText(50, 700)
    text.setFont("Times-Roman", 12)
    for rise, size, piece in (
        (0, 12, "In 2009"), (5, 7, "6"), (0, 12, " on the 1"), (5, 7, "st"), (0, 12, " of May H"), (-3, 7, "2"),
        (0, 12, "O was found"),
    ):  # fmt: skip
        text.setFont("Times-Roman", size)
        text.setRise(rise)
        text.textOut(piece)
    page.drawText(text)


def forms(page: Canvas) -> None:
    """A form inside a form, moved and scaled by both matrices, between two lines of the page."""
    page.beginForm("inner")
    page.setFont("Courier-Bold", 8)
    page.drawString(10, 10, "inner words")
    page.line(10, 5, 90, 5)
    page.endForm()
    page.beginForm("outer")
    page.translate(100, 100)
    page.scale(1.5, 1.5)
    page.doForm("inner")
    page.endForm()
    page.drawString(50, 700, "before it")
    page.translate(20, 300)
    page.doForm("outer")
    page.drawString(30, 30, "after it")


def accents(page: Canvas) -> None:
    """As TeX sets them: an accent, raised for a capital, and then its letter, which may begin before it."""
    page.setFont("Times-Roman", 12)
    page.drawString(100, 700, "Fix(")
    wide, accent = stringWidth("Fix(", "Times-Roman", 12), stringWidth("˜", "Times-Roman", 12)
    for letter, rise, rest in (("W", 3, " →"), ("a", 0, "pa"), ("f", 2.5, ") = 0")):
        aside = (stringWidth(letter, "Times-Roman", 12) - accent) / 2
        page.drawString(100 + wide + aside, 700 + rise, "˜")
        page.drawString(100 + wide, 700, letter + rest)
        wide += stringWidth(letter + rest, "Times-Roman", 12) + 6


HEBREW = "דוח על תאונה 1234 בשדה"


def set_in_hebrew() -> None:
    """A font with such letters, or the test is skipped."""
    matplotlib = pytest.importorskip("matplotlib")
    registerFont(TTFont("DejaVu", str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")))


def as_it_stands(page: Canvas) -> None:
    """The line as a string from the left: words and letters turned round, the number not."""
    page.setFont("DejaVu", 12)
    page.drawString(100, 700, HEBREW[::-1].replace("4321", "1234"))


def as_it_is_read(page: Canvas) -> None:
    """A glyph after the other from the right, as some word processors do; the number in one piece."""
    page.setFont("DejaVu", 12)
    x = 300.0
    for piece in [*HEBREW.split("1234")[0], "1234", *HEBREW.split("1234")[1]]:
        x -= stringWidth(piece, "DejaVu", 12)
        page.drawString(x, 700, piece)


def among_others(page: Canvas) -> None:
    """Such a word in a line from the left, between lines without any, and lines of such words one below the other."""
    page.setFont("DejaVu", 12)
    page.drawString(100, 740, "A report of 2019, in full")
    page.drawString(100, 720, f"called {HEBREW[:3][::-1]} there, of 17 pages")
    for row in range(3):
        page.drawString(100, 700 - 20 * row, HEBREW[::-1].replace("4321", "1234"))
    page.drawString(100, 620, "and a line after it")


LEFTWARDS = {"as it stands": as_it_stands, "as it is read": as_it_is_read, "among others": among_others}


DRAWN = {
    "two_columns": two_columns,
    "ruled_table": ruled_table,
    "rotated": rotated,
    "unturned 90": partial(unturned, angle=90),
    "unturned 180": partial(unturned, angle=180),
    "unturned 270": partial(unturned, angle=270),
    "sideways": sideways,
    "raised": raised,
    "accents": accents,
    "forms": forms,
}
