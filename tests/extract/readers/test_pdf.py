"""What the PDF reader promises, against files made here by hand arithmetic and against PDFium on real reports."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pdf_fixtures import HEIGHT, NTSB, WIDTH, drawn, near, texts, with_ligatures, written
from pypdf import PdfWriter
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Document, ReadError, read, read_many
from e2erag.extract.readers import lines
from e2erag.extract.readers.pdf import read_pdf

pytestmark = pytest.mark.usefixtures("engine")


def words(text: str) -> Counter[str]:
    return Counter(lines.clean(text).split())


# Words, places, sizes


def test_box_reaches_from_the_first_glyph_to_the_last(tmp_path: Path) -> None:
    """Horizontally it is what reportlab says the string takes; vertically Helvetica's ascent .718 and descent .207."""
    (unit,) = drawn(tmp_path, lambda c: (c.setFont("Helvetica", 20), c.drawString(100, 700, "Flight level")))
    assert unit.text == "Flight level"
    assert near(unit.box, 100, 100 - 20 * 0.718, 100 + stringWidth("Flight level", "Helvetica", 20), 100 + 20 * 0.207)
    assert (unit.page, unit.line, unit.font_size, unit.bold, unit.cells) == (1, 1, 20.0, False, ())


def test_spaces_around_a_string_are_not_in_its_box(tmp_path: Path) -> None:
    """A space of Helvetica is .278 em: two before the word move its box by 5.56 points at size 10."""
    (unit,) = drawn(tmp_path, lambda c: (c.setFont("Helvetica", 10), c.drawString(100, 700, "  word   ")))
    assert abs(unit.box.x0 - 105.56) < 0.01
    assert abs(unit.box.x1 - 105.56 - stringWidth("word", "Helvetica", 10)) < 0.01


def test_bold_is_what_most_of_the_line_is(tmp_path: Path) -> None:
    """A bold label before a longer value doesn't make the line bold."""

    def draw(c: Canvas) -> None:
        for y, label, value in ((700, "Engine:", "1 Reciprocating"), (680, "Engine Manufacturer:", "Lycoming")):
            c.setFont("Helvetica-Bold", 10)
            c.drawString(50, y, label)
            c.setFont("Helvetica", 10)
            c.drawString(250, y, value)

    first, second = drawn(tmp_path, draw)
    assert (first.bold, second.bold) == (False, True)


@pytest.mark.parametrize(("angle", "x", "baseline"), [(0, 300, 600), (90, 200, 300), (180, 300, 200), (270, 400, 500)])
def test_boxes_are_those_of_the_page_as_displayed(tmp_path: Path, angle: int, x: float, baseline: float) -> None:
    """Text from (300, 200) on, upright once the page is turned; to show 600 x 800, reportlab lays 800 x 600."""

    def draw(c: Canvas) -> None:
        c.setPageRotation(angle)
        c.translate(300, 200)
        c.rotate(angle)
        c.setFont("Helvetica", 10)
        c.drawString(0, 0, "upright")

    document = drawn(tmp_path, draw)
    (unit,) = document
    width = stringWidth("upright", "Helvetica", 10)
    assert near(unit.box, x, baseline - 7.18, x + width, baseline + 2.07)
    page = document.pages[0]
    assert (page.width, page.height) == (WIDTH, HEIGHT)


def test_boxes_start_at_the_crop_box(tmp_path: Path) -> None:
    """A page cut to (50, 100)-(550, 700) shows the point (100, 600) 50 from its left and 100 from its top."""

    def draw(c: Canvas) -> None:
        c.setCropBox((50, 100, 550, 700))
        c.drawString(100, 600, "cut")

    document = drawn(tmp_path, draw)
    assert abs(document.units[0].box.x0 - 50) < 0.01
    assert document.units[0].box.y0 < 100 < document.units[0].box.y1
    assert (document.pages[0].width, document.pages[0].height) == (500, 600)


def test_size_is_font_size_times_text_matrix_times_ctm(tmp_path: Path) -> None:
    """1 point x 6 x 2 is 12 points on the page, and the width of "word" at 12 points."""
    path = written(tmp_path, b"q 2 0 0 2 10 20 cm BT /F 1 Tf 6 0 0 6 30 40 Tm (word) Tj ET Q")
    (unit,) = read_pdf(path)
    assert unit.font_size == 12
    assert abs(unit.box.x0 - (30 * 2 + 10)) < 0.01
    assert abs(unit.box.x1 - unit.box.x0 - stringWidth("word", "Helvetica", 12)) < 0.01
    assert unit.box.y0 < HEIGHT - (40 * 2 + 20) < unit.box.y1


def test_text_state_operators_move_the_pen(tmp_path: Path) -> None:
    """Tc, Tw and Tz: (5 glyphs of "aa aa" + 5 x 1 + 1 space x 3) x 50 %; the next string follows there."""
    (unit,) = read_pdf(written(tmp_path, b"BT /F 10 Tf 1 Tc 3 Tw 50 Tz 100 700 Td (aa aa) Tj 0 Tc (b) Tj ET"))
    start = 100 + (stringWidth("aa aa", "Helvetica", 10) + 5 + 3) * 0.5
    assert unit.text == "aa aab"
    assert abs(unit.box.x1 - start - stringWidth("b", "Helvetica", 10) * 0.5) < 0.01


def test_q_saves_the_text_state(tmp_path: Path) -> None:
    """The font size set between q and Q is gone after Q, and Q without q does nothing."""
    content = b"Q /F 10 Tf q /F 20 Tf BT 1 0 0 1 50 700 Tm (large) Tj ET Q BT 1 0 0 1 50 600 Tm (small) Tj ET"
    assert [unit.font_size for unit in read_pdf(written(tmp_path, content))] == [20, 10]


# Lines and cells


def test_every_way_to_a_new_line_makes_one(tmp_path: Path) -> None:
    """Td, TD, T*, ' and " as in PDF 32000-1, 9.4.2 and 9.4.3: 14 points down each."""
    content = b"BT /F 10 Tf 50 700 Td (a) Tj 0 -14 TD (b) Tj T* (c) Tj (d) ' 1 0 (e) \" 0 -14 Td [(f)] TJ ET"
    document = read_pdf(written(tmp_path, content))
    assert [unit.text for unit in document] == list("abcdef")
    assert [unit.line for unit in document] == [1, 2, 3, 4, 5, 6]
    tops = [unit.box.y0 for unit in document]
    assert all(abs(below - above - 14) < 0.01 for above, below in pairwise(tops))


def test_kerning_is_no_space_and_a_word_gap_is_one(tmp_path: Path) -> None:
    """In a TJ, 20 and 80 thousandths are kerning; 250 is as wide as a space."""
    assert texts(tmp_path, b"BT /F 10 Tf 50 700 Td [(K) 20 (er) -80 (ning) -250 (gap)] TJ ET") == ["Kerning gap"]


def test_a_move_before_the_first_glyph_of_a_string_is_no_space(tmp_path: Path) -> None:
    """It may undo a Td that has stepped back."""
    back = stringWidth("Per", "Helvetica", 10) / 10 * 1000
    content = b"BT /F 10 Tf 50 700 Td (Per) Tj 0 0 Td [%f (for) -80 (m)] TJ ET" % -back
    assert texts(tmp_path, content) == ["Perform"]


@pytest.mark.parametrize(
    ("content", "text", "left", "right"),
    [
        (b"[(A) 3000 (B)] TJ", "AB", 148.67, 178.67),
        (b"[(A) 3000 (B) 3000 (C)] TJ", "ABC", 125.34, 178.67),
        (b"[(Hello) 6000 (World)] TJ", "HelloWorld", 134.78, 194.78),
        (b"(x ) Tj [(A) 1500 (B) 1500 (C)] TJ", "x ABC", 163.12, 186.45),
    ],
)
def test_an_array_that_moves_leftwards_has_a_box_around_all_of_it(
    tmp_path: Path, content: bytes, text: str, left: float, right: float
) -> None:
    """From 172 on; A and B of Helvetica are .667 em, C .722, Hello 2.278, World 2.722, x and a space .778."""
    (unit,) = read_pdf(written(tmp_path, b"BT /F 10 Tf 172 700 Td " + content + b" ET"))
    assert unit.text == text
    assert (unit.box.x0, unit.box.x1) == pytest.approx((left, right), abs=0.02)


def test_gap_is_measured_in_ems_not_in_points(tmp_path: Path) -> None:
    """Two points are a word space at size 8 and kerning at size 40."""
    content = b"BT /F %d Tf 50 700 Td (a) Tj %f 0 Td (b) Tj ET"
    for size, expected in ((8, ["a b"]), (40, ["ab"])):
        assert texts(tmp_path, content % (size, stringWidth("a", "Helvetica", size) + 2)) == expected


def test_words_placed_with_cm_only_stay_whole(tmp_path: Path) -> None:
    """EDGAR's way: a q/cm/BT/Tj/ET/Q for every piece, here cut within the word."""
    step = stringWidth("con", "Helvetica", 10)
    piece = b"q 1 0 0 1 %f 700 cm BT /F 10 Tf (%s) Tj ET Q "
    assert texts(tmp_path, piece % (50, b"con") + piece % (50 + step, b"sider")) == ["consider"]


def test_table_row_is_one_line_with_its_cells_counted(tmp_path: Path) -> None:
    """Label, value, label, value on one baseline: one unit of four cells, whatever draws the gaps."""
    placed = b"BT /F 10 Tf 50 700 Td (Location:) Tj 100 0 Td (Elyria, OH) Tj 150 0 Td (Number:) Tj 90 0 Td (C48) Tj ET"
    blanks = b"BT /F 10 Tf 50 700 Td (Location:          Elyria, OH        Number:      C48) Tj ET"
    moved = b"BT /F 10 Tf 50 700 Td [(Location:) -3000 (Elyria, OH) -4000 (Number:) -2000 (C48)] TJ ET"
    for content in (placed, blanks, moved):
        (unit,) = read_pdf(written(tmp_path, content))
        assert (unit.text, len(unit.cells)) == ("Location: Elyria, OH Number: C48", 4)


def test_glyphs_far_apart_by_character_spacing_are_cells(tmp_path: Path) -> None:
    """A Tc of five ems is how some tables put a row of one-digit numbers into one string."""
    (unit,) = read_pdf(written(tmp_path, b"BT /F 10 Tf 50 Tc 50 700 Td (000) Tj ET"))
    assert (unit.text, len(unit.cells)) == ("0 0 0", 3)


def test_cell_after_a_wrapped_cell_goes_on_its_row(tmp_path: Path) -> None:
    """Written as cell 1, both lines of cell 2, cell 3: the row stays together."""
    content = b"""BT /F 9 Tf 1 0 0 1 50 700 Tm (Operator:) Tj 1 0 0 1 300 700 Tm (Certificate\\(s\\)) Tj
        1 0 0 1 300 689 Tm (Held:) Tj 1 0 0 1 420 700 Tm (None) Tj ET"""
    assert texts(tmp_path, content) == ["Operator: Certificate(s) None", "Held:"]


def test_columns_of_prose_are_not_glued(tmp_path: Path) -> None:
    """Two columns of twenty lines, written one after the other, are forty lines in that order."""

    def draw(c: Canvas) -> None:
        for column, x in enumerate((50, 320)):
            for row in range(20):
                c.drawString(x, 700 - 12 * row, f"column {column} row {row}")

    found = [unit.text for unit in drawn(tmp_path, draw)]
    assert found == [f"column {column} row {row}" for column in range(2) for row in range(20)]


def test_raised_number_is_a_word_of_its_own(tmp_path: Path) -> None:
    """A footnote mark is no part of the year before it; a raised "st" belongs to its number."""
    content = (
        b"BT /F 10 Tf 50 700 Td (in 2009) Tj /F 6 Tf 4 Ts (6) Tj /F 10 Tf 0 Ts ( on the 1) Tj /F 6 Tf 4 Ts (st) Tj ET"
    )
    assert texts(tmp_path, content) == ["in 2009 6 on the 1st"]


def test_text_drawn_twice_to_look_bold_is_read_once(tmp_path: Path) -> None:
    """The second copy stands .3 points aside."""
    assert texts(tmp_path, b"BT /F 10 Tf 50 700 Td (Bold) Tj ET BT /F 10 Tf 50.3 700 Td (Bold) Tj ET") == ["Bold"]


def test_slightly_skewed_text_is_one_line(tmp_path: Path) -> None:
    """As in the text layer of a scan that lay askew: three words whose baseline falls .013 per point."""
    content = b"BT 3 Tr /F 10 Tf 1 .013 -.013 1 50 700 Tm (one) Tj 1 .013 -.013 1 90 700.52 Tm (two) Tj "
    assert texts(tmp_path, content + b"1 .013 -.013 1 130 701.04 Tm (three) Tj ET") == ["one two three"]


# Form XObjects


def test_form_xobjects_are_read_in_place(tmp_path: Path) -> None:
    """A form inside a form, moved by both matrices, between two lines of the page."""

    def draw(c: Canvas) -> None:
        c.beginForm("inner")
        c.drawString(10, 10, "inner")
        c.endForm()
        c.beginForm("outer")
        c.translate(100, 100)
        c.doForm("inner")
        c.endForm()
        c.drawString(50, 700, "before")
        c.translate(20, 300)
        c.doForm("outer")
        c.drawString(30, 30, "after")

    before, inner, after = drawn(tmp_path, draw)
    assert (before.text, inner.text, after.text) == ("before", "inner", "after")
    assert abs(inner.box.x0 - 130) < 0.01
    assert inner.box.y0 < HEIGHT - 410 < inner.box.y1


# Characters


def test_ligatures_are_opened(tmp_path: Path) -> None:
    """The glyph "fi", named by the font's /Differences, becomes two letters."""
    path = written(tmp_path, b"BT /F 10 Tf 50 700 Td (of\\001ce \\002ight) Tj ET", font=with_ligatures())
    assert [unit.text for unit in read_pdf(path)] == ["office flight"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("ﬁnal ﬂight", "final flight"),
        ("F¨arber, Mitrovi´c, Dogan", "Färber, Mitrović, Dogan"),
        ("Rodr´ıguez and Franc¸ois", "Rodríguez and François"),
        ("it´s 7½ % of 10² m", "it´s 7½ % of 10² m"),
        ("a\u00a0b \x00c\u00add", "a b c-d"),
    ],
)
def test_clean_keeps_what_is_read(raw: str, text: str) -> None:
    """Ligatures open and accents compose, but numbers and apostrophes stay as they are printed."""
    assert lines.clean(raw) == text


# Against PDFium


@pytest.mark.parametrize("path", NTSB, ids=lambda path: path.stem)
def test_words_of_real_reports_are_those_pdfium_finds(path: Path) -> None:
    """Word F1 of at least .999 over every report in examples/ntsb."""
    with pypdfium2.PdfDocument(path) as document:
        theirs = words("\n".join(page.get_textpage().get_text_range() for page in document))
    ours = words("\n".join(unit.text for unit in read_pdf(path)))
    assert 2 * (ours & theirs).total() / (ours.total() + theirs.total()) >= 0.999


@pytest.mark.parametrize("word", ["Accident Number", "Registration", "Medical Certification", "Record Management"])
def test_boxes_of_real_reports_hold_the_glyphs_pdfium_draws(word: str) -> None:
    """Every glyph of the word, as PDFium sees its ink, lies in the box of the unit that has it, within a point."""
    (units,) = [[u for u in read_pdf(NTSB[0]) if word in u.text]]
    assert units
    with pypdfium2.PdfDocument(NTSB[0]) as document:
        for unit in units[:1]:
            page = document[unit.page - 1]
            text = page.get_textpage()
            index, count = text.search(word).get_next()
            for left, bottom, right, top in (text.get_charbox(i) for i in range(index, index + count)):
                assert left >= unit.box.x0 - 1
                assert right <= unit.box.x1 + 1
                assert page.get_height() - top >= unit.box.y0 - 1
                assert page.get_height() - bottom <= unit.box.y1 + 1


def test_label_value_rows_of_real_reports_are_one_unit() -> None:
    """The first report's table rows, four cells each."""
    rows = {unit.text: len(unit.cells) or 1 for unit in read_pdf(NTSB[0])}
    assert rows["Location: Tallahassee, FL Accident Number: NYC08CA055"] == 4
    medical = "Medical Certification: Class 3 With Waivers/Limitations Last FAA Medical Exam: 06/01/2007"
    assert rows[medical] == 4


# The document


def test_title_and_digest_come_with_the_document(tmp_path: Path) -> None:
    """The metadata's title; the digest is that of the bytes."""
    document = drawn(tmp_path, lambda c: (c.setTitle("A title"), c.drawString(9, 9, "text")))
    assert document.title == "A title"
    assert len(document.sha256) == 64
    assert document.name == "drawn.pdf"


def test_document_survives_json() -> None:
    """Through json.dumps and back, nothing is lost."""
    document = read_pdf(NTSB[0])
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def test_empty_lines_are_no_units(tmp_path: Path) -> None:
    """Spaces alone make no unit, and lines are counted without them."""
    found = read_pdf(written(tmp_path, b"BT /F 9 Tf 9 700 Td (a) Tj 0 -20 Td (   ) Tj 0 -20 Td (b) Tj ET"))
    assert [(unit.text, unit.line) for unit in found] == [("a", 1), ("b", 2)]


# Bad input


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encrypted(path: Path, user: str) -> Path:
    writer = PdfWriter(clone_from=NTSB[0])
    writer.encrypt(user, "owner", algorithm="AES-256")
    writer.write(path)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p / "none.pdf", "no such file: check the path"),
        (lambda p: p, "is a folder: read_many reads the files in it"),
        (lambda p: write(p / "a.pdf", b""), "is empty (0 bytes)"),
        (lambda p: write(p / "a.pdf", b"<html>"), "is not a PDF: no %PDF header in its first 1024 bytes"),
        (lambda p: write(p / "a.pdf", NTSB[0].read_bytes()[:9000]), "is damaged or cut off (PdfStreamError"),
        (lambda p: encrypted(p / "a.pdf", "secret"), "is encrypted: it opens only with a password"),
        (lambda p: written(p, b"0 0 9 9 re f", b""), "shows nothing that can be read (2 pages without text"),
    ],
    ids=["missing", "folder", "empty", "no pdf", "cut off", "encrypted", "blank"],
)
def test_bad_file_says_what_is_wrong_and_the_way_out(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    """A ReadError of one line, with the file's path in front."""
    path = make(tmp_path)
    with pytest.raises(ReadError) as error:
        read_pdf(path)
    assert error.value.reason.startswith(reason)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_empty_user_password_just_opens(tmp_path: Path) -> None:
    """Such a file is protected against changes only; viewers don't ask either."""
    assert [unit.text for unit in read_pdf(encrypted(tmp_path / "a.pdf", ""))] == [u.text for u in read_pdf(NTSB[0])]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_a_document_or_a_read_error(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes overwritten anywhere, and the end cut off anywhere, raise nothing else."""
    whole = bytearray(written(tmp_path, b"BT /F 9 Tf 9 700 Td (a) Tj ET /A Do", A=b"BT /F 9 Tf (b) Tj ET").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path / "bad.pdf", bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ReadError):
            assert isinstance(read_pdf(path), Document)


def test_wrong_operands_cost_only_their_operation(tmp_path: Path) -> None:
    """A Td without numbers, an unknown form and an unknown font: the rest is read."""
    found = texts(tmp_path, b"BT /F 9 Tf 50 700 Td (a) Tj /x Td /None Do ET BT /G 9 Tf 50 600 Td (b) Tj ET")
    assert found == ["a", "b"]


# read and read_many


def test_read_names_the_kinds_that_can_be_read(tmp_path: Path) -> None:
    """A format without a reader is an error that lists those with one."""
    with pytest.raises(ReadError, match=r"a\.xyz: is a \.xyz: only .*\.pdf.* can be read"):
        read(write(tmp_path / "a.xyz", b"PK"))


def test_read_knows_a_pdf_without_its_suffix(tmp_path: Path) -> None:
    """The first bytes say so."""
    assert read(write(tmp_path / "download", NTSB[0].read_bytes())).units


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.pdf", "a.PDF", "deep/er/c.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path, b"BT /F 9 Tf 9 9 Td (x) Tj ET").rename(tmp_path / name)
    write(tmp_path / "notes.xyz", b"x")
    write(tmp_path / "deep" / "bad.pdf", b"x")
    return tmp_path


def test_read_many_takes_files_folders_patterns_and_mixtures(folder: Path) -> None:
    """Sorted within each, read once each; the bad file comes back as an error."""
    documents, errors = read_many(folder)
    assert [document.name for document in documents] == ["a.PDF", "b.pdf", "c.pdf"]
    assert [Path(error.file).name for error in errors] == ["bad.pdf"]
    assert [document.name for document in read_many(f"{folder}/**/*.pdf")[0]] == ["b.pdf", "c.pdf"]
    assert [document.name for document in read_many(folder / "b.pdf")[0]] == ["b.pdf"]
    mixed = [folder / "b.pdf", str(folder), f"{folder}/b*", folder / "deep" / ".." / "b.pdf"]
    assert [document.name for document in read_many(mixed)[0]] == ["b.pdf", "a.PDF", "c.pdf"]


def test_pattern_that_matches_nothing_is_an_error_in_the_list(folder: Path) -> None:
    """And so is a path that isn't there; neither stops the others."""
    documents, errors = read_many([folder / "*.djvu", folder / "none.pdf", folder / "b.pdf"])
    assert [document.name for document in documents] == ["b.pdf"]
    assert [error.reason.split(":")[0] for error in errors] == ["matches no file", "no such file"]
