"""What only the PDFium engine promises: text from right to left, accents, files that are not its own to read."""

from pathlib import Path

import pytest
from pdf_fixtures import HEBREW, NTSB, as_it_is_read, as_it_stands, canvas, dictionary, set_in_hebrew, written
from pypdf.generic import ArrayObject, NameObject, NumberObject
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import ReadError
from e2erag.extract.readers import pdf
from e2erag.extract.readers.pdf import read_pdf
from e2erag.extract.readers.shown import FORM_DEPTH, Shown


@pytest.mark.parametrize("draw", [as_it_stands, as_it_is_read])
def test_right_to_left_words_come_as_they_are_read(tmp_path: Path, draw: object) -> None:
    """Whatever the order in which they were drawn; the box holds the line."""
    set_in_hebrew()
    (unit,) = read_pdf(canvas(tmp_path, draw), "pypdfium2")
    assert unit.text == HEBREW
    assert abs(unit.box.x1 - unit.box.x0 - stringWidth(HEBREW, "DejaVu", 12)) < 1


def test_accent_drawn_over_its_letter_is_composed(tmp_path: Path) -> None:
    """TeX's way: ¨, then the letter under it."""
    step, over = stringWidth("F", "Helvetica", 10), (stringWidth("a", "Helvetica", 10) - 3.33) / 2
    content = b"BT /F 10 Tf 50 700 Td (F) Tj %f 0 Td (\\310) Tj %f 0 Td (arber is read) Tj ET" % (step + over, -over)
    assert [unit.text for unit in read_pdf(written(tmp_path, content), "pypdfium2")] == ["Färber is read"]


def test_space_that_pdfium_leaves_out_is_read(tmp_path: Path) -> None:
    """A gap of .2 em between two strings in italics."""

    def draw(page: Canvas) -> None:
        page.setFont("Helvetica-Oblique", 10)
        page.drawString(100, 700, "of")
        page.drawString(100 + stringWidth("of", "Helvetica-Oblique", 10) + 2, 700, "Transportation")

    assert [unit.text for unit in read_pdf(canvas(tmp_path, draw), "pypdfium2")] == ["of Transportation"]


def test_file_that_pdfium_cannot_open_is_tried_with_pypdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But only where no engine was asked for."""
    from e2erag.extract.readers import pdf_pdfium

    def fail(path: object, data: bytes) -> None:
        raise ReadError(str(path), "is damaged")

    monkeypatch.setattr(pdf_pdfium, "PdfiumFile", fail)
    assert read_pdf(NTSB[0]).reader.startswith("pypdf ")
    with pytest.raises(ReadError, match="is damaged"):
        read_pdf(NTSB[0], "pypdfium2")


@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
def test_forms_are_followed_to_one_depth(tmp_path: Path, engine: str) -> None:
    """To that of PDFium itself, far more than real files have."""
    nested = b"BT /F 10 Tf 50 %d Td (%d) Tj ET %d 50 m %d 90 l S /X%d Do"
    forms = {f"X{n}": nested % (700 - 15 * n, n, 50 + 9 * n, 50 + 9 * n, n + 1) for n in range(1, FORM_DEPTH + 3)}
    page = read_pdf(written(tmp_path, b"/X1 Do", **forms, **{f"X{FORM_DEPTH + 3}": b""}), engine).pages[0]
    assert [unit.text for unit in page.units] == [str(n) for n in range(1, FORM_DEPTH + 1)]
    assert len(page.rules) == FORM_DEPTH


def test_a_large_sheet_is_rendered_coarser() -> None:
    """Letter at 200 dots an inch; a poster of 100 × 100 inches in as many pixels as are rendered at most."""
    assert pdf._dpi(Shown(612.0, 792.0, [])) == 200
    dots = pdf._dpi(Shown(7200.0, 7200.0, []))
    assert (100 * dots) ** 2 == pytest.approx(pdf.PIXELS)


def test_glyphs_without_characters_are_no_blank_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose text is in private codes is named, with the way out."""
    monkeypatch.setattr(pdf, "_ocr", lambda: None)
    names = ArrayObject([NumberObject(65), NameObject("/uniE000"), NameObject("/uniE001")])
    kind = {"Type": NameObject("/Font"), "Subtype": NameObject("/Type1"), "BaseFont": NameObject("/Helvetica")}
    font = dictionary(**kind, Encoding=dictionary(Type=NameObject("/Encoding"), Differences=names))
    path = written(tmp_path, b"BT /F 9 Tf 9 9 Td (c) Tj ET", b"BT /F 9 Tf 9 9 Td (AB) Tj ET", font=font)
    for engine in ("pypdf", "pypdfium2"):
        assert read_pdf(path, engine).unread[2].startswith("shows glyphs of which its fonts don't say")
