"""What only the pypdf engine promises: its limits, its errors, its way round pypdf's private parts."""

import logging
import tracemalloc
from pathlib import Path

import pypdf
import pytest
from pdf_fixtures import NTSB, annotated, written
from pypdf import PdfReader
from pypdf.generic import ArrayObject, DecodedStreamObject, DictionaryObject, NameObject, NullObject, NumberObject

from e2erag.extract import ReadError, read_many
from e2erag.extract.readers import pdf, pdf_objects, pdf_walk, thinned
from e2erag.extract.readers.pdf import read_pdf

ONE, THREE = b"BT /F 9 Tf 9 9 Td (one) Tj ET", b"BT /F 9 Tf 9 9 Td (three) Tj ET"


@pytest.mark.differs("PDFium draws it as often as it lets forms nest")
def test_form_that_draws_itself_ends(tmp_path: Path) -> None:
    """Directly or through another form, each is read once per drawing."""
    show = b"BT /F 10 Tf 50 %d Td (%s) Tj ET /%s Do"
    path = written(tmp_path, b"/A Do", A=show % (700, b"a", b"B"), B=show % (600, b"b", b"A"))
    assert [unit.text for unit in read_pdf(path, "pypdf")] == ["a", "b"]


def test_page_over_the_budget_stays_empty_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second page has 99 colours: the others are read, and it says why it is not and what to do."""
    path = written(tmp_path, ONE, b"1 0 0 rg 0 0 m " * 99 + b"BT /F 9 Tf 9 9 Td (two) Tj ET", THREE)
    monkeypatch.setattr(pdf_walk, "PAGE_BYTES", 1000)
    document = read_pdf(path, "pypdf")
    assert [(unit.text, unit.page) for unit in document] == [("one", 1), ("three", 3)]
    assert [len(page.units) for page in document.pages] == [1, 0, 1]
    assert (document.pages[1].width, document.pages[1].height) == (600, 800)
    (reason,) = document.unread.values()
    assert reason.startswith("more than 1,000 bytes of drawing instructions: try engine='pypdfium2'")
    assert [unit.text for unit in read_pdf(path, "pypdfium2")] == ["one", "two", "three"]


def test_a_note_that_cannot_be_parsed_costs_no_page(tmp_path: Path) -> None:
    """The page's own words stay, and the page isn't called unread."""
    document = read_pdf(annotated(tmp_path, b"[(noted) TJ"), "pypdf")
    assert [unit.text for unit in document] == ["printed"]
    assert not document.unread


STREET = b"q 0.5 -.5 m 9 9 l 1 2 3 4 5 6 c\n1 2 3 4 v h S 9 9 9 9 re f Q "
STREETS = STREET * 100
WORDS = b"BT /F 9 Tf 9 99 Td (1 2 m 3 4 l ) Tj 0 -20 Td (a \\) (b) 1 2 m 3 4 l ( h ) 9 h ) Tj ET "


@pytest.mark.parametrize("parts", [{"A": b""}, {"A": WORDS}])
def test_lines_and_curves_over_the_budget_leave_the_words(
    parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map's words are read without its streets, in a form behind them too; a string with a path's letters is none."""
    words = b"" if parts["A"] else WORDS
    path = written(tmp_path, STREETS + words + STREET * 50 + THREE + b" /A Do", **parts)
    plain = read_pdf(path, "pypdf")
    monkeypatch.setattr(pdf_walk, "PAGE_BYTES", 3 * len(STREETS) // 2 + len(words) + len(parts["A"]))
    document = read_pdf(path, "pypdf")
    assert not document.unread
    assert {unit.text for unit in document} == {"1 2 m 3 4 l", "a ) (b) 1 2 m 3 4 l ( h ) 9 h", "three"}
    assert [(u.text, u.box) for u in document] == [(u.text, u.box) for u in plain]


@pytest.mark.parametrize("data", [b"\\(", b"(", b"h ", b"1 2 l ", b"1 2 ", b"1", b"1" * 20 + b" " * 9, b"(1 2 l "])
def test_leaving_lines_out_takes_memory_and_time_in_proportion(data: bytes) -> None:
    """What of a stream is looked at anew from every place in it wouldn't end here."""
    tracemalloc.start()
    thinned.without_paths(data * (1_000_000 // len(data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000


def test_lines_and_curves_count_for_a_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a form of them that is drawn again and again ends."""
    monkeypatch.setattr(pdf_walk, "PAGE_BYTES", 10 * len(STREETS))
    document = read_pdf(written(tmp_path, b"/A Do " * 20 + THREE, A=STREETS), "pypdf")
    assert [unit.text for unit in document] == ["three"]
    path = written(tmp_path, b"/A Do " * 200 + THREE, A=STREETS)
    with pytest.raises(ReadError, match="bytes of drawing instructions"):
        read_pdf(path, "pypdf")


def test_what_a_form_draws_counts_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"BT /F 9 Tf (two) Tj ET " + b"1 0 0 rg " * 199
    path = written(tmp_path, ONE, b"/A Do", THREE, A=lines)
    monkeypatch.setattr(pdf_walk, "PAGE_BYTES", 1000)
    document = read_pdf(path, "pypdf")
    assert [(unit.text, unit.page) for unit in document] == [("one", 1), ("three", 3)]
    assert list(document.unread) == [2]


def test_document_of_unreadable_pages_is_not_called_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the first page."""
    monkeypatch.setattr(pdf_walk, "PAGE_BYTES", 10)
    with pytest.raises(ReadError, match=r"has no page with text that can be read \(1 page; page 1: more than 10 bytes"):
        read_pdf(written(tmp_path, ONE), "pypdf")


@pytest.mark.differs("PDFium goes on where pypdf cannot, and is what the page says to try")
def test_page_that_cannot_be_parsed_stays_empty_and_is_named(tmp_path: Path) -> None:
    """An array that never closes on page 1 doesn't take page 2 with it."""
    document = read_pdf(written(tmp_path, b"BT /F 9 Tf [(one) TJ ET", THREE), "pypdf")
    assert [unit.text for unit in document] == ["three"]
    assert document.pages[0].unread.startswith("can't be parsed (Pdf")


def test_pypdf_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong startxref is repaired without a word, and pypdf's logger keeps its level."""
    data, path = NTSB[0].read_bytes(), tmp_path / "a.pdf"
    path.write_bytes(data[: data.rindex(b"startxref")] + b"startxref\n7\n%%EOF\n")
    with caplog.at_level(logging.WARNING, logger="pypdf"):
        PdfReader(path)
        noise = len(caplog.records)
        assert read_pdf(path, "pypdf").units
        assert logging.getLogger("pypdf").level == logging.WARNING
    assert noise
    assert len(caplog.records) == noise


@pytest.mark.parametrize("kind", [RecursionError, KeyError, OSError, AttributeError])
def test_whatever_pypdf_raises_is_a_read_error(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """Only running out of memory passes."""

    def fail(*_: object) -> None:
        raise kind("inside")

    monkeypatch.setattr(pypdf, "PdfReader", fail)
    with pytest.raises(ReadError, match=rf"is damaged or cut off \({kind.__name__}: .*inside"):
        read_pdf(NTSB[0], "pypdf")
    monkeypatch.setattr(pypdf, "PdfReader", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        read_pdf(NTSB[0], "pypdf")


class Moved:
    """A font class of a pypdf that names its parts otherwise."""

    @classmethod
    def from_font_resource(cls, resource: object) -> "Moved":
        return cls()


@pytest.mark.parametrize("internal", [None, Moved], ids=["gone", "changed"])
def test_where_pypdfs_fonts_have_moved_its_own_text_is_read(monkeypatch: pytest.MonkeyPatch, internal: object) -> None:
    """Nearly the same words, in lines whose boxes begin within three points of where they do otherwise."""
    usual = read_pdf(NTSB[0], "pypdf")
    monkeypatch.setattr(pdf_objects, "PypdfFont", internal)
    plain = read_pdf(NTSB[0], "pypdf")
    ours, theirs = (set(" ".join(unit.text for unit in document).split()) for document in (usual, plain))
    assert len(ours & theirs) > 0.95 * len(ours)
    places = {unit.text: unit.box for unit in usual}
    same = [(unit.box, places[unit.text]) for unit in plain if unit.text in places]
    assert len(same) > 0.6 * len(usual)
    near = [abs(a.x0 - b.x0) < 3 and abs(a.y1 - b.y1) < 3 for a, b in same]
    assert sum(near) > 0.9 * len(near)


def test_it_is_said_where_pypdfs_fonts_have_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once in a process, also where another has read the file; each document says it, and others don't."""
    assert read_pdf(NTSB[0], "pypdf").reader == f"pypdf {pypdf.__version__} · {pdf.READER_VERSION}"
    with monkeypatch.context() as moved:
        moved.setattr(pdf_objects, "PypdfFont", None)
        pdf._warn_once.cache_clear()
        with pytest.warns(UserWarning, match=r"without cells, bold .*; install an older pypdf, or pip install") as told:
            documents, _ = read_many(NTSB[:2], workers=0, engine="pypdf", cache=tmp_path)
        assert len(told) == 1
        assert {d.reader for d in documents} == {f"pypdf {pypdf.__version__} · {pdf.READER_VERSION} · fallback"}
    pdf._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="ends in '· fallback'") as told:
        read_many(NTSB[:2], engine="pypdf", cache=tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (None, "XYC"),  # the font file's own encoding, and the standard one where it says nothing
        ("/WinAnsiEncoding", "ABC"),
        ({"/Differences": [65, "/Z"]}, "ZYC"),
        ({"/Differences": [66, "/Z", 67, "/zero", "/g23"]}, "XZ0"),
        ({"/Differences": [66, "/g23"]}, "XYC"),  # a name that means nothing
        ({"/BaseEncoding": "/WinAnsiEncoding", "/Differences": [66, "/Z"]}, "AZC"),
        ({"/Differences": None}, "XYC"),
    ],
)
def test_a_font_file_has_no_say_in_what_the_font_names(named: object, shown: str) -> None:
    """ISO 32000-1, 9.6.6.2: a name replaces the file's own encoding, differences change it."""

    def objects(value: object) -> object:
        if isinstance(value, dict):
            return DictionaryObject({NameObject(key): objects(item) for key, item in value.items()})
        if isinstance(value, list):
            return ArrayObject([objects(item) for item in value])
        return NullObject() if value is None else NameObject(value) if isinstance(value, str) else NumberObject(value)

    file = DecodedStreamObject()
    file.set_data(b"%!PS-AdobeFont-1.0\n/Encoding 256 array\ndup 65 /X put\ndup 66 /Y put\ncurrentfile eexec\n")
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/ABCDEF+Some"}
    resource = objects(font | ({} if named is None else {"/Encoding": named}))
    assert isinstance(resource, DictionaryObject)
    descriptor = {"/Type": "/FontDescriptor", "/FontName": "/ABCDEF+Some", "/Flags": 4}
    resource[NameObject("/FontDescriptor")] = objects(descriptor)
    resource["/FontDescriptor"][NameObject("/FontFile")] = file
    assert pdf_objects.Font(resource).decode(b"ABC")[0] == shown
