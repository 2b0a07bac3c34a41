"""Pages of a PDF that are pictures, by either engine: named as scans, or recognised, with what stands beside."""

from pathlib import Path

import pytest
from pdf_fixtures import written

from e2erag.extract import Box, ReadError
from e2erag.extract.readers import pdf
from e2erag.extract.readers.pdf import read_pdf

ENGINES = ("pypdf", "pypdfium2")
IMAGE = b"q %d 0 0 %d 0 0 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x80 EI Q "
TEXT = b"BT /F 9 Tf 9 9 Td (one) Tj ET"


@pytest.mark.parametrize("engine", ENGINES)
def test_scan_is_named_and_a_blank_page_is_not(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture over the page is a scan; a small one, lines, spaces or nothing are not."""
    monkeypatch.setattr(pdf, "_ocr", lambda: None)
    pages = TEXT, IMAGE % (600, 800), IMAGE % (60, 80), b"9 9 m 99 9 l S", b"BT /F 9 Tf 9 9 Td (  ) Tj ET", b""
    document = read_pdf(written(tmp_path, *pages), engine)
    assert document.unread == {2: "is a scan: no text layer; to have it recognised, pip install 'e2erag[ocr]'"}
    with pytest.raises(
        ReadError, match=r"no text layer \(2 pages\): scanned pages need OCR, pip install 'e2erag\[ocr\]'"
    ):
        read_pdf(written(tmp_path, pages[1], b""), engine)
    with pytest.raises(ReadError) as error:
        read_pdf(written(tmp_path, *pages[2:]), engine)
    assert error.value.reason == (
        "shows nothing that can be read (4 pages without text, and none is a scan): leave it out"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_scans_are_recognised_where_ocr_is_installed(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recogniser gets the page at 200 dots per inch, its number and its size; its lines are the page's units."""
    path = written(tmp_path, TEXT, IMAGE % (600, 800), IMAGE % (600, 800), TEXT)
    monkeypatch.setattr(pdf, "_ocr", lambda: None)
    line, _ = read_pdf(path, engine)

    class Ocr:
        @staticmethod
        def recognise(image: object, page: int, width: float, height: float) -> tuple[object, ...]:
            assert abs(image.width - 600 * 200 / 72) < 2
            assert (width, height) == (600, 800)
            if page == 3:
                raise RuntimeError("no model")
            return (line._replace(text="seen", page=page, confidence=0.9),)

    monkeypatch.setattr(pdf, "_ocr", lambda: Ocr)
    document = read_pdf(path, engine)
    assert [(unit.text, unit.page) for unit in document] == [("one", 1), ("seen", 2), ("one", 4)]
    assert document.unread == {3: "is a scan: no text layer, and OCR failed on it (RuntimeError: no model)"}


STAMP = b"BT /F 9 Tf 400 9 Td (SMITH 000123 downloaded on 1 May 2020) Tj ET"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stamp_makes_no_text_layer_of_a_scan(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with the way out, and its line kept. Not so for a picture beside text, a small one, or a page of text."""
    monkeypatch.setattr(pdf, "_ocr", lambda: None)
    row = b"BT /F 9 Tf 9 %d Td (a line of a page that has a picture behind all that is printed on it) Tj ET "
    text = b"".join(row % (700 - 12 * n) for n in range(5))
    pages = IMAGE % (600, 800) + STAMP, IMAGE % (600, 800) + text, IMAGE % (300, 300) + STAMP, STAMP
    document = read_pdf(written(tmp_path, *pages), engine)
    way = "to have it recognised, pip install 'e2erag[ocr]'"
    assert document.unread == {1: f"is mostly a picture, with hardly any text beside it; {way}"}
    assert [len(page.units) for page in document.pages] == [1, 5, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_ocr_finds_stands_beside_the_stamp(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp as it was set, once, below the lines found; where OCR finds no more it is a picture, and no failure."""
    path = written(tmp_path, IMAGE % (600, 800) + STAMP, IMAGE % (600, 800) + STAMP)
    monkeypatch.setattr(pdf, "_ocr", lambda: None)
    stamp, _ = read_pdf(path, engine)

    class Ocr:
        @staticmethod
        def recognise(image: object, page: int, width: float, height: float) -> tuple[object, ...]:
            own = stamp._replace(text="5M1TH", page=page, confidence=0.6)
            found = [stamp._replace(text=f"line {n}", page=page, box=Box(50, 12 * n, 99, 12 * n + 9)) for n in (1, 2)]
            return (*found, own) if page == 1 else (own,)

    monkeypatch.setattr(pdf, "_ocr", lambda: Ocr)
    document = read_pdf(path, engine)
    assert [[unit.text for unit in page.units] for page in document.pages] == [
        ["line 1", "line 2", stamp.text], [stamp.text]
    ]  # fmt: skip
    assert [unit.line for unit in document.pages[0].units] == [1, 2, 3]
    assert not document.unread
    aslant = stamp._replace(box=Box(50, 50, 550, 750))
    found = tuple(Ocr.recognise(None, 1, 600, 800))
    assert [unit.text for unit in pdf._beside((aslant,), found)] == ["line 1", "line 2", "5M1TH", stamp.text]
    monkeypatch.setattr(Ocr, "recognise", lambda *given: ())
    assert [unit.text for unit in read_pdf(path, engine)] == [stamp.text] * 2
    assert not read_pdf(path, engine).unread
