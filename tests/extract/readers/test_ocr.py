"""Text in pictures: recognised for real where the extra is installed, and put in order where pieces stand anywhere."""

import importlib.util
import io
import socket
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import ReadError, read
from e2erag.extract.readers import ocr
from e2erag.extract.readers.pdf import read_pdf
from e2erag.extract.readers.pieces import Piece, in_order

real = pytest.mark.skipif(not ocr.available(), reason="the extra 'ocr' is not installed: pip install 'e2erag[ocr]'")

DOTS = 2.0  # per point

LEFT = ["The harbour was opened in 1912 and", "has been enlarged four times since", "then, at a cost of 3.2 million."]
RIGHT = [
    "The new crane lifts forty tonnes and",
    "is the largest one on this coast; its",
    "jib reaches over three ships.",
]
ROWS = [["Goods", "2019", "2020"], ["Grain", "1,204", "1,310"], ["Coal", "453", "127"], ["Timber", "914", "1,022"]]


def drawn(*texts: tuple[float, float, str], size: float = 11.0, sheet: tuple[int, int] = (480, 200)) -> Image.Image:
    """A white sheet of so many points with texts, each with its top left corner in points."""
    image = Image.new("RGB", (int(sheet[0] * DOTS), int(sheet[1] * DOTS)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size * DOTS)
    for x, y, text in texts:
        pen.text((x * DOTS, y * DOTS), text, fill="black", font=font)
    return image


def page_of_columns() -> Image.Image:
    texts = [(20.0, 10.0 + 15 * i, text) for i, text in enumerate(LEFT)]
    texts += [(250.0, 10.0 + 15 * i, text) for i, text in enumerate(RIGHT)]
    texts += [(20.0 + 130 * j, 90.0 + 17 * i, text) for i, row in enumerate(ROWS) for j, text in enumerate(row)]
    return drawn(*texts)


@real
def test_a_drawn_page_is_recognised() -> None:
    """Columns one after the other, table rows with their cells; boxes are where the text was drawn."""
    units = ocr.recognise(page_of_columns(), 3, 480.0, 200.0)
    assert [unit.text for unit in units] == [*LEFT, *RIGHT, *(" ".join(row) for row in ROWS)]
    assert [[u.text[c.start : c.stop] for c in u.cells] for u in units if u.cells] == ROWS
    assert [(unit.page, unit.line) for unit in units] == [(3, n) for n in range(1, 11)]
    assert all(0.8 < unit.confidence <= 1 for unit in units)
    assert all(abs(unit.font_size - 11) < 3 for unit in units)
    for unit, (x, y) in zip(units, [(20, 10), (20, 25), (20, 40), (250, 10)], strict=False):
        assert abs(unit.box.x0 - x) < 4
        assert y - 3 < unit.box.y0 < unit.box.y1 < y + 18
    for unit in units[6:]:
        assert [round((cell.x0 - 20) / 130) for cell in unit.cells] == [0, 1, 2]


@real
@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
def test_a_scan_with_a_number_stamped_on_it_is_recognised(tmp_path: Path, engine: str) -> None:
    """Below what is recognised stands the number, as it is in the file and not a second time."""
    page_of_columns().save(tmp_path / "page.png")
    sheet = Canvas(str(tmp_path / "stamped.pdf"), pagesize=(480, 200))
    sheet.drawImage(str(tmp_path / "page.png"), 0, 0, 480, 200)
    sheet.setFont("Helvetica", 11)
    sheet.drawString(380, 8, "SMITH-000123")
    sheet.save()
    document = read_pdf(tmp_path / "stamped.pdf", engine)
    *found, stamp = document
    assert stamp.text == "SMITH-000123"
    assert stamp.confidence == 1.0
    assert [unit.text for unit in found][:3] == LEFT
    assert not any("SMITH" in unit.text for unit in found)
    assert not document.unread


@real
@pytest.mark.parametrize("turn", [1, 2])
def test_a_page_on_its_side_or_head_is_turned(turn: int) -> None:
    """The same text; its boxes are where it stands."""
    lines = ["Annual report", "of the harbour", "in three parts"]
    image = drawn(*((20.0, 20.0 + 20 * i, text) for i, text in enumerate(lines)), sheet=(130, 100)).rotate(
        90 * turn, expand=True
    )
    width, height = image.width / DOTS, image.height / DOTS
    units = ocr.recognise(image, 1, width, height)
    assert [unit.text for unit in units] == lines
    first = units[0].box
    place = {1: (first.y1, first.x0), 2: (first.x1, first.y1)}[turn]
    expected = {1: (height - 20, 20.0), 2: (width - 20, height - 20)}[turn]
    assert np.abs(np.subtract(place, expected)).max() < 5
    assert all(0 <= u.box.x0 < u.box.x1 <= width and 0 <= u.box.y0 < u.box.y1 <= height for u in units)


@real
def test_it_is_quiet_and_asks_nobody(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Made anew without a network: nothing is downloaded and nothing said."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    ocr._engine.cache_clear()
    units = ocr.recognise(drawn((20, 20, "Quiet words"), sheet=(110, 80)), 1, 110.0, 80.0)
    assert [unit.text for unit in units] == ["Quiet words"]
    assert ocr.recognise(drawn(sheet=(60, 60)), 1, 60.0, 60.0) == ()
    assert ocr._engine() is ocr._engine()
    assert capfd.readouterr() == ("", "")


@real
def test_frames_of_a_tiff_are_pages(tmp_path: Path) -> None:
    """As large as their resolution says; one without a line says so."""
    frames = [drawn((20, 20, text), sheet=(100, 60)) for text in ("First page", "", "Third page")]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:], dpi=(144, 144))
    document = read(tmp_path / "a.tiff")
    assert [[unit.text for unit in page.units] for page in document.pages] == [["First page"], [], ["Third page"]]
    assert document.unread == {2: "OCR found no line on it"}
    assert (document.pages[0].width, document.pages[0].height) == (100.0, 60.0)
    assert document.reader.startswith("rapidocr ")


def test_a_tiff_of_more_frames_than_are_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame is left out in silence."""
    monkeypatch.setattr(ocr, "available", lambda: True)
    monkeypatch.setattr(ocr, "MOST_PAGES", 2)
    frames = [drawn(sheet=(50, 50))] * 3
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(ReadError, match=r"a\.tiff: has more than 2 pages \(3\): split it"):
        read(tmp_path / "a.tiff")


def test_transparent_is_white_and_sixteen_bits_become_eight() -> None:
    """So that black text stays black on white, whatever the picture's kind."""
    grey = np.array([[0, 30000], [60000, 60000]], np.uint16)
    clear = Image.new("RGBA", (2, 2))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    for image, shown in ((Image.fromarray(grey), [0, 127, 255, 255]), (clear, [0, 255, 255, 255])):
        flat = ocr._flat(image)
        assert flat.mode == "RGB"
        assert np.asarray(flat)[:, :, 1].ravel().tolist() == shown


@real
def test_pictures_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    """Blank, damaged, or no picture at all."""
    whole = io.BytesIO()
    drawn((20, 20, "Some text")).save(whole, "PNG")
    blank = io.BytesIO()
    drawn(sheet=(60, 60)).save(blank, "PNG")
    for data, reason in (
        (blank.getvalue(), "OCR found no line"),
        (b"plain text", "is not a picture"),
        (whole.getvalue()[:500], "save it again"),
        (b"", "is empty"),
    ):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ReadError, match=reason):
            read(tmp_path / "a.png")


def test_without_the_extra_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`available` looks for the packages and loads none of them."""
    drawn(sheet=(60, 60)).save(tmp_path / "a.png")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rapidocr" else found(name))
    assert not ocr.available()
    with pytest.raises(ReadError, match=r"needs OCR: pip install 'e2erag\[ocr\]'"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("pixels", "dpi", "points"),
    [
        ((850, 1100), (100, 100), (612.0, 792.0)),
        ((1700, 2200), (200, 200), (612.0, 792.0)),
        ((960, 480), None, (720.0, 360.0)),  # 96 an inch
        ((960, 480), (1, 1), (720.0, 360.0)),
        ((960, 480), "nonsense", (720.0, 360.0)),
        ((960, 480), (float("nan"), 72), (720.0, 360.0)),
        ((4000, 3000), (72, 72), (792.0, 594.0)),  # a camera's: 55 inches are no sheet
    ],
)
def test_the_size_of_a_page_is_its_resolution_if_that_is_sane(
    pixels: tuple[int, int], dpi: object, points: tuple[float, float]
) -> None:
    """Else 96 dots an inch, and at most Letter."""
    assert ocr.size_in_points(pixels, dpi) == points


# Order.


def piece(text: str, x: float, y: float, width: float = 0.0, height: float = 14.0) -> Piece:
    x1 = x + (width or 5.5 * len(text))
    return Piece.of(text, 0.9, np.array([[x, y], [x1, y], [x1, y + height], [x, y + height]]))


def ordered(pieces: list[Piece]) -> list[str]:
    return [line.unit(1, 1).text for line, _ in in_order(pieces)]


def test_three_columns_and_what_stands_across_them() -> None:
    """A title, columns left to right, and a line below them."""
    columns = [[f"column {c} has its line number {i}" for i in range(5)] for c in "abc"]
    pieces = [piece(t, 20 + 200 * c, 40 + 16 * i) for c, lines in enumerate(columns) for i, t in enumerate(lines)]
    pieces += [piece("A title that stands across all of the three columns of the page", 20, 5, 570)]
    pieces += [piece("And a line that stands across all of the three columns of it too", 20, 130, 570)]
    shown = ordered(pieces[::-1])
    assert shown == [pieces[-2].text, *columns[0], *columns[1], *columns[2], pieces[-1].text]


def test_a_table_is_rows_however_many_cells_a_side_has() -> None:
    """Many short cells are no column of prose."""
    pieces = [piece(f"{i}{j}00", 20 + 60 * j, 20 + 16 * i) for i in range(6) for j in range(12)]
    assert ordered(pieces) == [" ".join(f"{i}{j}00" for j in range(12)) for i in range(6)]


def test_a_tilted_page_is_read_along_its_lines() -> None:
    """Two degrees: the right end of a row is a line's height lower than its left end."""
    tilt = 0.035
    pieces = []
    for i in range(4):
        for j in range(3):
            x, y = 20 + 180 * j, 30 + 18 * i
            box = np.array([[x, y + tilt * x], [x + 80, y + tilt * (x + 80)]])
            pieces.append(Piece.of(f"r{i}c{j} long", 0.9, np.concatenate([box, box[::-1] + np.array([0, 13])])))
    assert ordered(pieces) == [" ".join(f"r{i}c{j} long" for j in range(3)) for i in range(4)]


def test_the_confidence_of_a_line_is_weighted_by_length() -> None:
    """Ten letters at 1 and five at 0.4 make 0.8."""
    pieces = [piece("abcdefghij", 20, 20), piece("abcde", 200, 20)]
    pieces = [Piece(p.text, c, p.x0, p.y0, p.x1, p.y1) for p, c in zip(pieces, (1.0, 0.4), strict=True)]
    assert [sure for _, sure in in_order(pieces)] == [0.8]


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.floats(0, 600), st.floats(0, 800), st.floats(1, 400), st.floats(1, 40), st.integers(1, 60)),
        max_size=40,
    )
)
def test_no_piece_is_lost_or_said_twice(places: list[tuple[float, float, float, float, int]]) -> None:
    """Wherever the pieces stand, lines hold each once, with cells from left to right."""
    pieces = [piece(f"w{i}" + "x" * n, x, y, w, h) for i, (x, y, w, h, n) in enumerate(places)]
    units = [line.unit(1, 1) for line, _ in in_order(pieces)]
    assert sorted(word for unit in units for word in unit.text.split()) == sorted(p.text for p in pieces)
    assert all(a.x0 <= b.x0 for unit in units for a, b in pairwise(unit.cells))
