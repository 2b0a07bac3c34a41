"""The contract of the two PDF engines: the same words, lines and cells, boxes and ruling lines within a point.

`conftest.py` holds every PDF that tests of this folder draw to it as well."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from pdf_fixtures import (
    DRAWN,
    ENGINES,
    HEBREW,
    HEIGHT,
    LEFTWARDS,
    NTSB,
    PROSE,
    accents,
    apart,
    assert_same,
    canvas,
    of_tex,
    set_in_hebrew,
    with_codes,
    with_ligatures,
    written,
)
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NullObject, NumberObject
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import ReadError, read
from e2erag.extract.readers.lines import clean
from e2erag.extract.readers.pdf import READER_VERSION, read_pdf

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.pdf"))


@pytest.mark.parametrize("path", [*NTSB, *GOLDEN], ids=lambda path: path.stem)
def test_engines_agree_on_real_files(path: Path) -> None:
    """Every report in examples/ntsb, and the files of golden texts."""
    assert len(assert_same(path)) > 20


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_engines_agree_on_drawn_pages(tmp_path: Path, draw: Callable[[Canvas], None]) -> None:
    """Columns, a table with ruling lines, a rotated page, raised text, forms."""
    assert len(assert_same(canvas(tmp_path, draw)))


@pytest.mark.parametrize("draw", LEFTWARDS.values(), ids=LEFTWARDS)
def test_engines_agree_on_right_to_left_words(tmp_path: Path, draw: Callable[[Canvas], None]) -> None:
    """Drawn from either end, alone or among lines from the left; read as they are spoken."""
    set_in_hebrew()
    texts = [unit.text for unit in assert_same(canvas(tmp_path, draw))]
    if draw is LEFTWARDS["among others"]:
        first, second, *several, last = texts
        assert first == "A report of 2019, in full"
        assert second == f"called {HEBREW[:3]} there, of 17 pages"
        assert last == "and a line after it"
        assert several == [HEBREW] * 3
    else:
        assert texts == [HEBREW]


LAM_ALIF, GOD, BEH, HEH = "\u0644\u0627", "\u0627\u0644\u0644\u0647", "\u0628", "\u0647"


@pytest.mark.parametrize(
    ("content", "glyph", "text"),
    [
        (b"50 700 Td (AB) Tj", LAM_ALIF, BEH + LAM_ALIF),
        (b"50 700 Td (CAB) Tj", LAM_ALIF, BEH + LAM_ALIF + HEH),
        (b"50 700 Td (AB) Tj", GOD, BEH + GOD),
        (b"50 700 Td (AB) Tj", "\u0644\u064e", BEH + "\u0644\u064e"),
        (b"50 700 Td (oDce AB) Tj", LAM_ALIF, "office " + BEH + LAM_ALIF),
    ],
    ids=["at the end", "inside", "four letters", "with a mark", "beside a ligature"],
)
def test_letters_of_one_glyph_are_not_turned_round_with_the_line(
    tmp_path: Path, content: bytes, glyph: str, text: str
) -> None:
    """Words from the right, drawn from their left ends."""
    font = with_codes(A=glyph, B=BEH, C=HEH, D="ffi")
    path = written(tmp_path, b"BT /F 10 Tf " + content + b" ET", font=font)
    assert [unit.text for unit in assert_same(path)] == [text]


@pytest.mark.parametrize("glyph", [LAM_ALIF, GOD, "\u05d5"])
def test_a_line_drawn_as_it_is_read_stays_so(tmp_path: Path, glyph: str) -> None:
    """Glyphs from the right on, by moves inside one array: how word processors write."""
    font = with_codes(A=glyph, B=BEH, C=HEH)
    path = written(tmp_path, b"BT /F 10 Tf 90 700 Td [(B) 1400 (A) 1400 (C)] TJ ET", font=font)
    [line] = assert_same(path)
    assert line.text == BEH + glyph + HEH
    assert (line.box.x0, line.box.x1) == pytest.approx((75.3, 96.7), abs=0.1)


@pytest.mark.parametrize("shown", [b"(Hello world) Tj", b"(A) Tj", b"[(Hel) 20 (lo)] TJ ( world) Tj"])
def test_a_negative_size_draws_to_the_other_side(tmp_path: Path, shown: bytes) -> None:
    """With a matrix that turns it back, as some programs write."""
    turned = written(tmp_path, b"BT /F -10 Tf -1 0 0 -1 50 700 Tm " + shown + b" ET")
    [line] = assert_same(turned)
    [plain] = read_pdf(written(tmp_path, b"BT /F 10 Tf 50 700 Td " + shown + b" ET"), "pypdf")
    assert line.text == plain.text
    assert apart(line.box, plain.box) < 0.1


def test_engines_agree_on_ligatures(tmp_path: Path) -> None:
    """Glyphs fi and fl are two letters each."""
    path = written(tmp_path, b"BT /F 10 Tf 50 700 Td (of\\001ce \\002ight) Tj ET", font=with_ligatures())
    assert [unit.text for unit in assert_same(path)] == ["office flight"]


@pytest.mark.parametrize(
    ("halves", "text"), [("D835", "B BB"), ("0041D835", "A BA BB"), ("DC00", "B BB"), ("D83DDE00", "😀B😀BB")]
)
def test_characters_of_two_halves_and_halves_of_none(tmp_path: Path, halves: str, text: str) -> None:
    """Beyond 16 bits a character is two; a font's map may end within it, and no encoding would take a half."""
    font = with_codes(A="A", B="B")
    font["/ToUnicode"]._data = font["/ToUnicode"]._data.replace(b"<0041>", f"<{halves}>".encode())
    [line] = assert_same(written(tmp_path, b"BT /F 10 Tf 50 700 Td (ABABB) Tj ET", font=font))
    assert line.text == text
    assert line.text.encode()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"50 700 Td (ABCD) Tj", "x😀בא"),
        (b"50 700 Td (ACB D) Tj", "x ב😀א"),
        (b"120 700 Td [(BA) 2400 (C) 1400 (AB)] TJ", "בא😀אב"),
        (b"30 Tc 50 700 Td (CDCD) Tj", "😀 x 😀 x"),
        (b"0 1 -1 0 50 300 Tm (C) Tj", "😀"),
        (b"0 1 -1 0 50 300 Tm (hCD iC) Tj (next) Tj", "h😀x i😀next"),
    ],
)
def test_characters_of_two_halves_stand_anywhere(tmp_path: Path, content: bytes, text: str) -> None:
    """In words from the right, in cells, in short words, upwards."""
    font = with_codes(A="א", B="ב", C="😀", D="\U0001d465")
    [line] = assert_same(written(tmp_path, b"BT /F 10 Tf " + content + b" ET", font=font))
    assert line.text == text


def test_letters_of_formulas_are_letters(tmp_path: Path) -> None:
    """Word sets them in a plane of their own, beyond 16 bits."""
    font = with_codes(A="\U0001d465", B="\U0001d466")
    [line] = assert_same(written(tmp_path, b"BT /F 10 Tf 50 700 Td (if ABAB = A then B) Tj ET", font=font))
    assert line.text == "if xyxy = x then y"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_title_that_is_no_text_costs_no_document(tmp_path: Path, engine: str) -> None:
    """Half a character, in UTF-16."""
    path = canvas(tmp_path, lambda c: (c.setTitle("A title!"), c.drawString(9, 9, "text")))
    data = path.read_bytes()
    assert b"(A title!)" in data
    path.write_bytes(data.replace(b"(A title!)", b"<FEFFD800>"))
    document = read_pdf(path, engine)
    assert [unit.text for unit in document] == ["text"]
    assert "A title" not in document.title
    document.title.encode()


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        ([(400, 700, "Page 3 of 4"), (72, 700, "Annual report")], ["Annual report Page 3 of 4"]),
        ([(200, 700, "N103JT"), (72, 700, "Registration:"), (200, 680, "Latrobe"), (72, 680, "Location:")],
         ["Registration: N103JT", "Location: Latrobe"]),
        ([(300, 700, "c"), (72, 700, "a"), (180, 700, "b"), (72, 680, "d")], ["a b c", "d"]),
        ([(400, 700, "right"), (400, 680, "column"), (72, 700, "left"), (72, 680, "one")], None),
    ],
)  # fmt: skip
def test_what_stands_on_one_baseline_is_a_line_in_whatever_order_it_is_drawn(
    texts: list[tuple[int, int, str]], lines: list[str] | None, tmp_path: Path
) -> None:
    """A page number before its running head, a value before its label; columns drawn one after the other stay so."""

    def draw(page: Canvas) -> None:
        for x, y, text in texts:
            page.drawString(x, y, text)

    document = assert_same(canvas(tmp_path, draw))
    if lines:
        assert [unit.text for unit in document] == lines


@pytest.mark.parametrize("spacing", [-0.3, 0.5, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize(("font", "size"), [("Helvetica", 12.0), ("Times-Bold", 24.0)])
def test_spaced_letters_are_words(font: str, size: float, spacing: float, tmp_path: Path) -> None:
    """A heading set wide, by Tc."""

    def draw(page: Canvas) -> None:
        page.setFont(font, size)
        page.drawString(72, 700, "ANNUAL REPORT OF A LAW", charSpace=spacing)

    assert [unit.text for unit in assert_same(canvas(tmp_path, draw))] == ["ANNUAL REPORT OF A LAW"]


@pytest.mark.parametrize("corners", [(0, 0, 612, 792), (612, 792, 0, 0), (0, 792, 612, 0)])
def test_a_pages_box_may_name_any_two_corners(corners: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, b"BT /F 12 Tf 72 700 Td (word) Tj ET")
    writer = PdfWriter(path)
    writer.pages[0][NameObject("/MediaBox")] = ArrayObject(map(NumberObject, corners))
    writer.write(tmp_path / "turned.pdf")
    document = assert_same(tmp_path / "turned.pdf")
    assert (document.pages[0].width, document.pages[0].height) == (612, 792)
    [unit] = document
    assert 71 < unit.box.x0 < unit.box.x1 < 110
    assert 80 < unit.box.y0 < unit.box.y1 < 100


@pytest.mark.parametrize("box", [None, [], [0, 0, 0, 0], [0, 0, 600, 0], [9, 9, 9], [NameObject("/a")] * 4])
def test_a_page_without_a_box_is_a_letter(box: list[int] | None, tmp_path: Path) -> None:
    """None, none of four numbers, or one without an area: in both engines 8.5 by 11 inches, with its words."""
    writer = PdfWriter(written(tmp_path, b"BT /F 12 Tf 72 700 Td (word) Tj ET"))
    [page] = writer.pages
    page[NameObject("/MediaBox")] = (
        NullObject() if box is None else ArrayObject(v if isinstance(v, NameObject) else NumberObject(v) for v in box)
    )
    writer.write(tmp_path / "boxless.pdf")
    document = assert_same(tmp_path / "boxless.pdf")
    assert [unit.text for unit in document] == ["word"]
    assert (document.pages[0].width, document.pages[0].height) == (612, 792)


def test_accents_belong_to_their_letters(tmp_path: Path) -> None:
    [line] = assert_same(canvas(tmp_path, accents))
    assert line.text == "Fix(W\u0303 → ãpa f\u0303) = 0"


@pytest.mark.parametrize(
    ("font", "shown", "text"),
    [
        (of_tex("ABCDEF+CMSY10", **{"0": "prime", "k": "bardbl", "7": "mapsto"}), b"00 k0k 7", "′′ ‖′‖ ↦"),
        (of_tex("CMEX10", X="summationdisplay", S="uniontext", f="tildewide"), b"X S", "∑ ⋃"),
        (of_tex("MSAM10", **{"\x04": "squaresolid", "\x00": "squaredot"}), b"\x04\x00", "■⊡"),
        (of_tex("CMSY10", **{"`": "turnstileleft", "4": "triangle", "\r": "circlecopyrt"}), b"`4 \\r", "⊢△ ©"),
        (of_tex("Other", **{"0": "zero", "X": "g23"}), b"0X", "0X"),
    ],
    ids=("symbols", "large", "squares", "misnamed", "another font"),
)
def test_fonts_of_tex_show_what_their_codes_mean(
    tmp_path: Path, font: DictionaryObject, shown: bytes, text: str
) -> None:
    """′ isn't 0, and ‖ no k, though neither engine's map from names to characters has all of theirs."""
    pieces = b" ".join(b"(" + piece + b") Tj 24 0 Td" for piece in shown.split())
    [line] = assert_same(written(tmp_path, b"BT /F 12 Tf 100 700 Td " + pieces + b" ET", font=font))
    assert line.text == text


@pytest.mark.parametrize(
    ("drawn", "text"),
    [
        ("˜γ ¯x ˙∪", "γ\u0303 x\u0304 ∪\u0307"),
        ("A ⁄= B ⁄∈ C", "A ≠ B ∉ C"),
        ("x ↦→ y ↪→ z", "x ↦ y ↪ z"),
        ("©c 2020", "© 2020"),
        ("©company", "©company"),
        ("it´s l´été п´ять", "it´s l´été п´ять"),
        ("¨Ángel¨ 25 ˚С ㄋㄧˇㄏㄠˇ", "¨Ángel¨ 25 ˚С ㄋㄧˇㄏㄠˇ"),
        ("´ˆe 1⁄2", "´ê 1⁄2"),
        ("\uf731\uf739\uf730\uf734", "1904"),
    ],
)
def test_what_tex_draws_in_two_parts_is_one_and_other_text_stays(drawn: str, text: str) -> None:
    assert clean(drawn) == text


@pytest.mark.parametrize("engine", ENGINES)
def test_columns_drawn_line_by_line_are_read_one_after_the_other(tmp_path: Path, engine: str) -> None:
    """The heading, the left column, the right column; no line has cells."""
    document = read_pdf(canvas(tmp_path, DRAWN["two_columns"]), engine)
    heading, *rest = document
    assert heading.text.startswith("History")
    assert [unit.text for unit in rest] == [*PROSE, *reversed(PROSE)]
    assert not any(unit.cells for unit in document)
    assert {unit.box.x0 for unit in rest[: len(PROSE)]} == {50.0}


@pytest.mark.parametrize("engine", ENGINES)
def test_brackets_open_where_a_line_is_read_from(tmp_path: Path, engine: str) -> None:
    """A year in brackets after a right-to-left word stands left of it; its brackets look as in any line."""
    set_in_hebrew()

    def draw(page: Canvas) -> None:
        page.setFont("DejaVu", 12)
        page.drawString(100, 700, f"(2019) {HEBREW[:3][::-1]}")

    assert [unit.text for unit in read_pdf(canvas(tmp_path, draw), engine)] == [f"{HEBREW[:3]} (2019)"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [0, 6])
@pytest.mark.parametrize(
    ("count", "left", "right"),
    [
        (4, PROSE, ("Paid in full", "Not paid at all so far", "Paid in two rates", "Paid in the year after")),
        (8, PROSE, ("NAME OF A TOWN", "ANOTHER TOWN WITH A LONG NAME", "AN ISLE", "THE LAST OF THE TOWNS") * 2),
        (8, ("Of the Town", "Of an Isle") * 4, PROSE),
    ],
)
def test_rows_that_look_like_columns_stay_rows(
    tmp_path: Path, engine: str, step: int, count: int, left: tuple[str, ...], right: tuple[str, ...]
) -> None:
    """Few or many, side by side or one lower than the other: cells that are no sentences are drawn row by row."""

    def draw(page: Canvas) -> None:
        page.setFont("Times-Roman", 10)
        for row in range(count):
            page.drawString(50, 720 - 12 * row, left[row])
            page.drawString(300, 720 - step - 12 * row, right[row])

    found = [unit.text for unit in read_pdf(canvas(tmp_path, draw), engine)]
    rows = list(zip(left[:count], right, strict=False))
    assert found == ([cell for row in rows for cell in row] if step else [" ".join(row) for row in rows])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("right", ["1,204", "Paid in the Year:", "A Name of Four Words"])
def test_rows_of_a_table_stay_rows(tmp_path: Path, engine: str, right: str) -> None:
    """However long the text on the left is: numbers, labels and titles are no prose."""

    def draw(page: Canvas) -> None:
        page.setFont("Times-Roman", 10)
        for row, left in enumerate(PROSE):
            page.drawString(50, 720 - 12 * row, left)
            page.drawString(320, 720 - 12 * row, right)

    document = read_pdf(canvas(tmp_path, draw), engine)
    assert [unit.text for unit in document] == [f"{left} {right}" for left in PROSE]
    assert all(len(unit.cells) == 2 for unit in document)


@pytest.mark.parametrize("engine", ENGINES)
def test_ruling_lines_of_a_table(tmp_path: Path, engine: str) -> None:
    """The thin bar and the grid's five lines, from the top; then its four uprights, from the left. A line is whole."""
    rules = read_pdf(canvas(tmp_path, DRAWN["ruled_table"]), engine).pages[0].rules
    level, upright = rules[:6], rules[6:]
    assert [round(HEIGHT - (rule.y0 + rule.y1) / 2) for rule in level[1:]] == [715, 700, 680, 660, 640]
    assert apart(level[0], (50, HEIGHT - 720.5, 350, HEIGHT - 719)) < 0.1
    assert [round((rule.x0 + rule.x1) / 2) for rule in upright] == [50, 150, 250, 350]
    assert all(apart((rule.x0, rule.x1), (50, 350)) < 1 for rule in level)
    assert all(apart((rule.y0, rule.y1), (HEIGHT - 715, HEIGHT - 640)) < 1 for rule in upright)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_no_ruling_line(tmp_path: Path, engine: str) -> None:
    """Areas, short strokes, slanting lines, curves, paths that are not painted, and what lies beside the page."""
    content = (
        b"0 0 300 40 re f 10 10 m 13 10 l S 10 10 m 90 50 l S 100 100 m 150 100 200 100 300 100 c S "
        b"50 50 200 1 re n 900 10 m 990 10 l S 20 20 m 70 20 l S BT /F 9 Tf 9 700 Td (x) Tj ET"
    )
    (rule,) = read_pdf(written(tmp_path, content), engine).pages[0].rules
    assert apart(rule, (20, HEIGHT - 20.5, 70, HEIGHT - 19.5)) < 0.6


@pytest.mark.parametrize("engine", ENGINES)
def test_ruling_lines_are_bounded(tmp_path: Path, engine: str) -> None:
    """Five thousand strokes leave two thousand."""
    places = [(10 * (i % 50), 2 + i // 10) for i in range(5000)]
    strokes = b"".join(b"%d %d m %d %d l S " % (x, y, x + 7, y) for x, y in places)
    page = read_pdf(written(tmp_path, strokes + b"BT /F 9 Tf 9 700 Td (x) Tj ET"), engine).pages[0]
    assert len(page.rules) == 2000
    assert page.units


@pytest.mark.parametrize("engine", ENGINES)
def test_dot_leaders_are_no_words(tmp_path: Path, engine: str) -> None:
    """Glued or spaced they go; an ellipsis stays."""
    content = b"BT /F 9 Tf 14 TL 9 700 Td (Introduction............... 5) Tj T* (Results . . . . . . . 17) Tj "
    document = read_pdf(written(tmp_path, content + b"T* (and so ...) Tj ET"), engine)
    assert [unit.text for unit in document] == ["Introduction 5", "Results 17", "and so ..."]


# The engine


def test_document_says_what_read_it() -> None:
    """The engine's version and ours."""
    for engine in ENGINES:
        name, version, dot, ours = read_pdf(NTSB[0], engine).reader.split()
        assert (name, dot, ours) == (engine, "·", str(READER_VERSION))
        assert version[0].isdigit()


def test_engine_by_default_is_the_faster_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pypdfium2 it is pypdf, and asking for the other says how to get it."""
    assert read(NTSB[0]).reader.startswith("pypdfium2 ")
    assert read(NTSB[0], engine="pypdf").reader.startswith("pypdf ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert read(NTSB[0]).reader.startswith("pypdf ")
    with pytest.raises(ImportError, match=r"pip install 'e2erag\[fast\]'"):
        read(NTSB[0], engine="pypdfium2")


def test_unknown_engine_is_an_error_that_names_the_engines() -> None:
    """As a ValueError; it's the caller's mistake, not the file's."""
    with pytest.raises(ValueError, match="engine is one of 'pypdf', 'pypdfium2' or None, not 'mupdf'") as error:
        read(NTSB[0], engine="mupdf")
    assert not isinstance(error.value, ReadError)
