"""What `benchmarks/extraction.py` compares, and what it says where there is nothing."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
sys.path.append(str(Path(__file__).parents[1] / "extract" / "readers"))
import extraction
from extraction import measured
from pdf_fixtures import of_tex, written


def drawn(path: Path, *lines: str) -> Path:
    canvas = Canvas(str(path))
    for n, line in enumerate(lines):
        canvas.drawString(72, 700 - 20 * n, line)
    canvas.save()
    return path


@pytest.mark.parametrize("given", ["nothing", "broken", "too short", "no PDF", "not there"])
def test_where_no_page_can_be_compared_it_stops(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error, in place of figures that are all zero."""
    place = tmp_path / "in"
    if given != "not there":
        place.mkdir()
    if given == "broken":
        (place / "a.pdf").write_bytes(b"%PDF-1.7\n")
    if given == "too short":
        drawn(place / "a.pdf", "the pilot")
    if given == "no PDF":
        place = place / "a.txt"
        place.write_text("the pilot")
    monkeypatch.setattr(sys, "argv", ["extraction.py", str(place)])
    with pytest.raises(SystemExit, match=rf"nothing to compare: of {place} {int(given == 'too short')} pages .*; name"):
        extraction.main()


def test_a_file_is_compared_as_a_folder_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines read the same words of a plain page."""
    file = drawn(tmp_path / "a.pdf", *["the pilot was 85 and the engine was a lycoming"] * 4)
    for given in (file, tmp_path):
        monkeypatch.setattr(sys, "argv", ["extraction.py", str(given)])
        extraction.main()
        told = capsys.readouterr().out
        assert "word_f1              1.0000" in told
        assert "engines_f1           1.0000" in told


def test_words_are_compared_where_pdfium_can_tell_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page of TeX's symbols counts among those born digital alone, and where there is no other there is no word_f1;
    an accent that is drawn beside its letter counts as raw words do, and not in word_f1."""
    symbols = b"BT /F 10 Tf 50 700 Td [%b] TJ ET" % (b"(0) -1000 " * 30)
    (tmp_path / "tex").mkdir()
    file = written(tmp_path / "tex", symbols, font=of_tex("CMSY10", **{"0": "prime"}))
    tex = measured(file, None)
    assert (tex.digital, tex.mapped, tex.f1("raw") < 1) == (1, 0, True)
    monkeypatch.setattr(sys, "argv", ["extraction.py", str(file), "--json", str(tmp_path / "figures.json")])
    extraction.main()
    assert "word_f1              nan" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["word_f1"] is None
    step, over = 6.11, (5.56 - 3.33) / 2  # of F, and from where a stands to where its accent does
    accent = b"BT /F 10 Tf 50 700 Td (F) Tj %f 0 Td (\\310) Tj %f 0 Td (arber) Tj" % (step + over, -over)
    accent += b" 0 -20 Td (%b) Tj ET" % (b"word " * 20)
    tally = measured(written(tmp_path, accent), None)
    assert (tally.digital, tally.mapped) == (1, 1)
    assert tally.f1("pypdf") == tally.f1("engines") == 1 > tally.f1("raw")


def test_bare_words_have_no_accents_and_all_else() -> None:
    words = {"Färber": 1, "dı´a": 2, "día": 1, "ˇ": 3, "x^2": 1, "`a`": 1, "की": 1, "é": 1, "½": 1}
    expected = {"Farber": 1, "dia": 3, "x^2": 1, "`a`": 1, "की": 1, "e": 1, "½": 1}
    assert extraction.bare(Counter(words)) == expected
