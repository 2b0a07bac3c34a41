"""What the extractor does to a corpus, to look at."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import table_document
from PIL import Image, ImageDraw

from e2erag import RAG, draw
from e2erag.draw import SCALE, draw_page
from e2erag.extract import READINGS, Box, Document, Extractor, ExtractorConfig, Page, Unit, read
from e2erag.report import dropped, page_text, saved, write_report
from e2erag.testing import tiny_document, tiny_rag
from e2erag.view import Span, kept_above, look_at

NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))
FOOT = "page {} of 3"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> RAG:
    """Two documents of three pages, the foot of every page shut for finding and for reading."""
    rag = tiny_rag()
    pages = [["the pilot was 85", "seats 4", FOOT.format(n)] for n in (1, 2, 3)]
    rag.index([tiny_document(pages, "a.pdf"), tiny_document(pages[:2], "b.pdf")])
    corpus, judge = rag.corpus, rag.model.extractor.forward
    assert corpus is not None
    texts = [text for document in corpus.documents for text in document.texts]
    shut = torch.tensor([text.startswith("page") for text in texts])

    def forward(*given: torch.Tensor) -> object:
        out = judge(*given)
        closed = torch.where(shut, -9.0, 9.0)
        return out._replace(retrieve=closed, read=closed)

    monkeypatch.setattr(rag.model.extractor, "forward", forward)
    return rag


def test_what_is_dropped_most_is_counted_without_its_digits(told: RAG) -> None:
    """Five feet of pages are one line that is dropped five times, and nothing else is."""
    (row,) = dropped(told)
    assert (row.count, row.seen, row.gate) == (5, 5, pytest.approx(0.0, abs=1e-3))
    assert str(row).startswith("dropped 5 times: 'page ")
    assert str(row).endswith(", in 3 forms (gate 0.00, kept above 0.61)")


def test_lines_dropped_most_often_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three feet, then two heads, and the one note only where so many are asked for."""
    rag = tiny_rag()
    rag.index([tiny_document([["head 1", "foot 1"], ["head 2", "foot 2"], ["note", "foot 3"]], "a.pdf")])
    judge = rag.model.extractor.forward
    monkeypatch.setattr(
        rag.model.extractor,
        "forward",
        lambda *given: judge(*given)._replace(retrieve=torch.full((6,), -9.0), read=torch.full((6,), -9.0)),
    )
    assert [(row.count, row.text[:4]) for row in dropped(rag)] == [(3, "foot"), (2, "head"), (1, "note")]
    assert [row.count for row in dropped(rag, most=2)] == [3, 2]


def test_what_is_saved_is_counted_in_lines_tokens_and_candidates(told: RAG) -> None:
    """By hand from the corpus' own lines."""
    corpus, told_ = told.corpus, saved(told)
    assert corpus is not None
    sizes = corpus.retriever_lines.sizes[: len(corpus)]
    texts = [text for document in corpus.documents for text in document.texts]
    kept = sum(size for size, text in zip(sizes, texts, strict=True) if not text.startswith("page"))
    assert (told_.lines, told_.kept_lines) == (15, 10)
    assert (told_.tokens, told_.retrieve_tokens, told_.read_tokens) == (sizes.sum(), kept, kept)
    assert told_.candidates == len(corpus.passages)
    pages = [(span[0], corpus.page[span[1]].item()) for span in corpus.spans.spans.tolist()]
    assert told_.per_page == pytest.approx((len(pages) / 5, max(pages.count(page) for page in pages)))


def test_candidates_per_page_are_told_of_pages_of_unequal_length() -> None:
    """A window of two lines at each of its lines: a page of six has more than one of a line."""
    rag = tiny_rag(extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), kinds=(), identity_lines=0))
    rag.index([tiny_document([[f"line {i}" for i in range(6)], ["alone"]], "a.pdf")])
    assert saved(rag).per_page == (3.5, 6)


def test_a_page_for_the_terminal_marks_what_is_dropped(told: RAG) -> None:
    """Two full bars before what is kept, a cross before what isn't; colour dims it."""
    head, *rows = page_text(told, "a.pdf", 2).splitlines()
    assert head == "a.pdf, page 2: finding | reading"
    assert rows == ["██   the pilot was 85", "██   seats 4", "   × page 2 of 3"]
    assert page_text(told, "a.pdf", 2, colour=True).splitlines()[-1] == "\x1b[2m   × page 2 of 3\x1b[0m"


def test_cuts_and_candidates_are_drawn(told: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that hard mode takes is a dashed line above its line, in both; a bracket per candidate of the page."""
    corpus, judge = told.corpus, told.model.extractor.forward
    cut = torch.tensor([text == "seats 4" for document in corpus.documents for text in document.texts])

    def forward(*given: torch.Tensor) -> object:
        return judge(*given)._replace(cut=torch.where(cut, level, -9.0))

    monkeypatch.setattr(told.model.extractor, "forward", forward)
    level = -9.0
    plain = Image.open(draw_page(told, "a.pdf", 2, tmp_path / "plain.png"))
    level = 9.0
    rows = page_text(told, "a.pdf", 2).splitlines()
    assert rows[1] == "██   the pilot was 85"
    assert rows[2].startswith("     - - -")
    assert rows[2].endswith("cut 1.00")
    assert rows[3] == "██   seats 4"
    picture = Image.open(draw_page(told, "a.pdf", 2, tmp_path / "page.png"))
    view = look_at(told, "a.pdf", 2)
    width = round(SCALE * view.page.width)
    differ = (np.asarray(plain) != np.asarray(picture)).any(2)[:, :width].nonzero()
    top = SCALE * view.page.units[1].box.y0 - 3
    assert set(differ[0]) <= {round(top) - 1, round(top), round(top) + 1}
    assert len(differ[0]) > 40
    spans = {(span[1] - 3, span[2] - 3) for span in corpus.spans.spans.tolist() if span[0] == 0 and 3 <= span[1] < 6}
    assert {(start, stop) for start, stop, _, _ in view.spans} == {(a, b) for a, b in spans if b <= 3}
    margin = np.asarray(picture)[:, width:].min(2) < 250
    for start, stop, _, _ in view.spans:
        units = view.page.units[start:stop]
        y0, y1 = (round(SCALE * y) for y in (units[0].box.y0, units[-1].box.y1))
        assert (margin[y0 + 3 : y1 - 3].sum(0) == y1 - y0 - 6).any()
    monkeypatch.setattr(draw, "_brackets", lambda *_: None)
    without = np.asarray(Image.open(draw_page(told, "a.pdf", 2, tmp_path / "without.png")))
    assert (without[:, width:] == 255).all()


def test_what_goes_on_on_another_page_is_drawn_open_and_a_tables_readings_in_their_colour(
    told: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page in the middle of a span has an upright alone; where it begins or ends it has that tick."""
    corpus, extractor = told.corpus, told.model.extractor
    assert corpus is not None
    over = torch.tensor([[0, 1, 4, 0], [0, 2, 8, 0], [0, 4, 9, 0]])
    corpus.take(over, extractor, 0.5)
    assert [span[:2] for span in look_at(told, "a.pdf", 1).spans] == [(1, 4), (2, 8)]
    assert [span[:2] for span in look_at(told, "a.pdf", 2).spans] == [(-2, 1), (-1, 5), (1, 6)]
    view = look_at(told, "a.pdf", 2)
    width, units = round(SCALE * view.page.width), view.page.units

    def drawn(*spans: tuple[int, int], reading: str = "lines") -> np.ndarray:
        shown = view._replace(spans=[Span(*span, 0.0, reading) for span in spans])
        monkeypatch.setattr(draw, "look_at", lambda *_: shown)
        return np.asarray(Image.open(draw_page(told, "a.pdf", 2, tmp_path / "page.png")))[:, width:]

    def ticks(picture: np.ndarray) -> list[int]:
        """The rows in which the bracket is wider than its upright."""
        wide = (picture.min(2) < 250).sum(1)
        return (wide > wide[wide > 0].min()).nonzero()[0].tolist()

    top, bottom = SCALE * units[0].box.y0 + 2, SCALE * units[2].box.y1 - 2
    assert ticks(drawn((-1, 5))) == []
    assert ticks(drawn((0, 5))) == pytest.approx([top, top], abs=1.5)
    assert ticks(drawn((-1, 3))) == pytest.approx([bottom, bottom], abs=1.5)
    assert len(ticks(drawn((0, 3)))) == 4
    lines, rows = drawn((0, 3)), drawn((0, 3), reading="rows")
    assert np.ptp(lines.astype(int), axis=2).max() < 20  # grey
    assert np.ptp(rows.astype(int), axis=2).max() > 100
    both = view._replace(spans=[Span(1, 3, 0.0, reading) for reading in READINGS])
    monkeypatch.setattr(draw, "look_at", lambda *_: both)
    picture = np.asarray(Image.open(draw_page(told, "a.pdf", 2, tmp_path / "page.png")))[:, width:]
    upright = (picture[round(SCALE * units[1].box.y1)].min(1) < 250).nonzero()[0]
    assert len(upright) == 3 * 2  # none on top of another


def test_a_page_without_lines_is_drawn_though_a_passage_runs_over_it(tmp_path: Path) -> None:
    rag = tiny_rag(extractor=ExtractorConfig(text_dim=32, hidden=16, identity_lines=0, chunk=(99, 0)))
    rag.index([tiny_document([["the pilot was 85"], [], ["seats 4"]], "a.pdf")])
    assert [len(look_at(rag, "a.pdf", page).spans) for page in (1, 2, 3)] == [1, 0, 1]
    assert draw_page(rag, "a.pdf", 2, tmp_path / "page.png").exists()


def test_the_readings_of_a_table_are_among_a_pages_candidates() -> None:
    rag = tiny_rag(extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(2,), kinds=("table",), identity_lines=0))
    rag.index([table_document()])
    assert {span.reading for span in look_at(rag, "t.pdf", 1).spans} == set(READINGS)


def test_the_gate_for_carrying_is_a_third_bar(told: RAG) -> None:
    """Beside finding and reading, which are always there."""
    head, *rows = page_text(told, "a.pdf", 2, gate="carry").splitlines()
    assert head == "a.pdf, page 2: finding | reading | carrying"
    assert rows[0] == "███   the pilot was 85"
    assert rows[2] == "  █ × page 2 of 3"


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_a_shown_gate_is_told_beside_what_it_would_have_to_exceed(temperature: float, threshold: float) -> None:
    """Hard mode's threshold is on σ(logit), and what is shown is σ(logit / T) / σ(open / T): a line is dropped just
    where what is shown of it is not above the bound."""
    extractor = Extractor(ExtractorConfig(text_dim=8, threshold=threshold, carry_threshold=threshold / 2))
    extractor.temperature.fill_(temperature)
    logits = torch.linspace(-3, 1.4, 89)
    for gate, own in (("read", threshold), ("carry", threshold / 2)):
        shown = extractor.log_gates(logits, "soft").exp()
        kept = extractor.log_gates(logits, "hard", threshold=own) == 0
        assert torch.equal(shown > kept_above(extractor, gate), kept)
        assert 0 < kept.sum() < len(kept)
    assert kept_above(Extractor(ExtractorConfig(text_dim=8)), "retrieve") == pytest.approx(0.5 / 0.8176, abs=1e-4)
    assert kept_above(Extractor.fixed(9), "read") == 0


def test_the_report_has_a_picture_of_every_page(told: RAG, tmp_path: Path) -> None:
    """`pages` of each document, and what was dropped, as a page that opens by itself."""
    page = write_report(told, tmp_path / "report", pages=2)
    text = page.read_text(encoding="utf-8")
    names = [path.name for path in sorted(page.parent.glob("*.png"))]
    assert names == ["0001-0001.png", "0001-0002.png", "0002-0001.png", "0002-0002.png"]
    assert all(f'src="{name}"' in text for name in names)
    assert "<ul><li>dropped 5 times: &#x27;page " in text
    with Image.open(page.parent / names[0]) as picture:
        seen = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert any(r > g + 20 and r > b + 20 for r, g, b in seen)  # the foot, in red
    assert any(g > r + 20 and g > b + 20 for r, g, b in seen)


@pytest.mark.parametrize(("gate", "name", "bound"), [("read", "reading", ".61"), ("carry", "carrying", ".24")])
def test_the_report_draws_the_gate_that_is_asked_for(
    told: RAG, gate: str, name: str, bound: str, tmp_path: Path
) -> None:
    """The feet of pages are shut for reading and open for carrying; the legend says which it is, and its bound."""
    page = write_report(told, tmp_path / "report", pages=1, gate=gate)
    assert f"soft gates for {name}, " in (text := page.read_text(encoding="utf-8"))
    assert f"hard gates keep a line above 0{bound}" in text
    with Image.open(page.parent / "0001-0001.png") as picture:
        seen = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert any(r > g + 20 and r > b + 20 for r, g, b in seen) == (gate == "read")


@pytest.mark.parametrize("now", ["damaged", "shorter", "gone"])
def test_a_file_that_has_changed_is_written_out(now: str, tmp_path: Path) -> None:
    """Its lines are drawn, and the report is written."""
    file = tmp_path / "a.pdf"
    shutil.copy(NTSB[0], file)
    rag = tiny_rag()
    rag.index([read(file)])
    if now == "gone":
        file.unlink()
    else:
        from reportlab.pdfgen.canvas import Canvas

        canvas = Canvas(str(file))
        canvas.drawString(9, 9, "x")
        canvas.save()
        if now == "damaged":
            file.write_bytes(b"%PDF-1.4\n" + b"x" * 99)
    write_report(rag, tmp_path / "report", pages=2)
    assert len(list((tmp_path / "report").glob("*.png"))) == 2


def test_a_table_that_is_written_out_has_its_columns_and_lines(tmp_path: Path) -> None:
    """Of a web page, which has no look of its own: each cell where it stands, between its ruling lines."""
    rows = "<tr><th>Fruit<th>Where it is from<tr><td>Pear<td>A garden<tr><td>A very long name of a fruit<td>Here"
    (tmp_path / "a.html").write_text(f"<table>{rows}</table>")
    rag = tiny_rag()
    (sheet,) = (document := read(tmp_path / "a.html")).pages
    rag.index([document])
    with Image.open(draw_page(rag, document.file, 1, tmp_path / "page.png")) as picture:
        scale = picture.height / sheet.height
        pixels = np.asarray(picture.convert("L")).astype(int)
    pear = sheet.units[1]
    low, high = (round(scale * y) for y in (pear.box.y0, pear.box.y1))
    ink = [int((pixels[low:high, round(scale * c.x0) : round(scale * c.x1)] < 60).sum()) for c in pear.cells]
    between = pixels[low:high, round(scale * pear.cells[0].x1) + 6 : round(scale * pear.cells[1].x0) - 9]
    assert min(ink) > 20
    assert (between < 60).sum() == 0
    inner = next(rule for rule in sheet.rules if rule.y1 - rule.y0 > 5 and rule.x0 > pear.cells[0].x1)
    assert pixels[round(scale * inner.y1) - 3, round(scale * inner.x0)] < 200


def test_nothing_but_pictures_needs_pillow(tmp_path: Path) -> None:
    """The command line runs without it; what draws says what to install."""
    code = (
        "import sys, e2erag.__main__, e2erag.report\n"
        "assert 'e2erag.draw' not in sys.modules\n"
        "sys.modules['PIL'] = None\n"
        "try:\n    import e2erag.draw\n"
        "except ImportError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "pictures of pages need Pillow: pip install 'e2erag[draw]'\n"


@pytest.mark.parametrize("size", [(14_400.0, 14_400.0), (9e4, 10.0), (9e4, 9e4), (1e9, 0.001)])
def test_a_poster_is_drawn_smaller(size: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 200 inches would be a sheet of 830 million pixels, a cut over its wide line millions of dashes."""
    lines = (Unit("a poster", 1, 1, Box(100, 1, 5e7, 9), 8.0), Unit("seats 4", 1, 2, Box(-9e6, -9e6, 9e6, 9e6), 8.0))
    rag = tiny_rag()
    rag.index([Document("poster.pdf", "0", (Page(1, *size, lines),))])
    judge, cut, dashes = rag.model.extractor.forward, torch.full((2,), 9.0), []
    monkeypatch.setattr(rag.model.extractor, "forward", lambda *given: judge(*given)._replace(cut=cut))
    line = ImageDraw.ImageDraw.line
    monkeypatch.setattr(ImageDraw.ImageDraw, "line", lambda *given, **how: dashes.append(1) or line(*given, **how))
    with Image.open(draw_page(rag, "poster.pdf", 1, tmp_path / "page.png")) as picture:
        assert max(picture.size) <= draw.SIDE
        assert len(dashes) <= 2 * (picture.width / 12 + 2) + 9


def test_a_picture_of_a_page_shows_what_is_typed_into_its_form(tmp_path: Path) -> None:
    """The same field with a value and without one."""
    from reportlab.pdfgen.canvas import Canvas

    dark = []
    for value in ("", "Jane Doe"):
        page = Canvas(str(tmp_path / "form.pdf"), pagesize=(600, 800))
        page.drawString(72, 750, "Applicant:")
        page.acroForm.textfield(name="a", value=value, x=150, y=600, width=200, height=20, borderWidth=0)
        page.save()
        rendered = draw._rendered(str(tmp_path / "form.pdf"), 1, 2.0)
        assert rendered is not None
        inside = np.asarray(rendered.convert("L"))[2 * 181 : 2 * 199, 2 * 151 : 2 * 349]
        dark.append(int((inside < 100).sum()))
    assert dark[0] == 0
    assert dark[1] > 50
