"""Upright ruling lines as edges of cells, with either engine."""

from pathlib import Path

import pytest
from pdf_fixtures import written
from reportlab.pdfbase.pdfmetrics import stringWidth

from e2erag.extract.readers.pdf import read_pdf

pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.parametrize("one_string", [False, True])
def test_upright_rules_part_cells_however_near(tmp_path: Path, engine: str, one_string: bool) -> None:
    """Nine points of white with a rule in it, drawn string by string or in one array: two cells. One that stands beside
    another line or through a word parts nothing."""
    first, second = 50 + stringWidth("7/14", "Helvetica", 10), 59 + stringWidth("7/149/18", "Helvetica", 10)

    def row(y: int) -> bytes:
        placed = b"(7/14) Tj 1 0 0 1 %.2f %d Tm (9/18) Tj 1 0 0 1 %.2f %d Tm (open now) Tj"
        array = b"[(7/14) -900 (9/18) -900 (open now)] TJ"
        shown = array if one_string else placed % (first + 9, y, second + 9, y)
        return b"BT /F 10 Tf 1 0 0 1 50 %d Tm " % y + shown + b" ET "

    rules = b"".join(b"%.2f 690 m %.2f 715 l S " % (x, x) for x in (first + 4, second + 5, second + 15))
    above, unit, below = read_pdf(written(tmp_path, row(718) + row(700) + row(676) + rules))
    assert [unit.text[cell.start : cell.stop] for cell in unit.cells] == ["7/14", "9/18", "open now"]
    assert abs(unit.cells[1].x0 - first - 9) + abs(unit.cells[1].x1 - second) < 1
    assert {(line.text, line.cells) for line in (above, below)} == {("7/14 9/18 open now", ())}


def test_a_rule_beside_letters_of_one_word_parts_nothing(tmp_path: Path) -> None:
    """Drawn string by string, as some programs do, and letter by letter."""
    at = 50 + stringWidth("con", "Helvetica", 10)
    rule = b"%.2f 690 m %.2f 715 l S " % (at, at)
    for shown in (b"(con) Tj (sider) Tj", b"(c) Tj (o) Tj (n) Tj (s) Tj (i) Tj (d) Tj (e) Tj (r) Tj"):
        (unit,) = read_pdf(written(tmp_path, rule + b"BT /F 10 Tf 50 700 Td " + shown + b" ET"))
        assert (unit.text, unit.cells) == ("consider", ())


@pytest.mark.parametrize(
    ("place", "end"),
    [
        (b"1 0 0 1 50 700 Tm", 0.0), (b"3 Tc 1 0 0 1 50 700 Tm", 9.0), (b"150 Tz 1 0 0 1 50 700 Tm", 10.007),
        (b".99966 .02618 -.02618 .99966 50 700 Tm", -0.007),
    ],
    ids=["plain", "letters apart", "wide", "aslant"],
)  # fmt: skip
@pytest.mark.parametrize("twice", [False, True])
def test_a_string_that_a_rule_parts_stays_one_line(tmp_path: Path, place: bytes, end: float, twice: bool) -> None:
    """However its letters are set, and drawn twice for bold type; its cells end with their letters."""
    array = b" [(7/14) -900 (9/18)] TJ "
    again = place.replace(b" 50 700 Tm", b" 50.3 700 Tm") + array if twice else b""
    stop = 50 + stringWidth("7/14", "Helvetica", 10) + end
    rule = b"%.2f 690 m %.2f 715 l S " % (stop + 5, stop + 5)
    (unit,) = read_pdf(written(tmp_path, rule + b"BT /F 10 Tf " + place + array + again + b" ET"))
    assert [unit.text[cell.start : cell.stop] for cell in unit.cells] == ["7/14", "9/18"]
    assert abs(unit.cells[0].x1 - stop) < 1


def test_rules_that_lie_apart_are_no_longer_one(tmp_path: Path) -> None:
    """Strips of a shaded table above, and of one below: what stands between them isn't beside a rule."""
    strips = b"".join(b"%.1f %d 1 30 re f " % (x, y) for x, y in ((74, 600), (74.6, 740)))
    (unit,) = read_pdf(written(tmp_path, strips + b"BT /F 10 Tf 50 700 Td [(7/14) -900 (9/18)] TJ ET"))
    assert (unit.text, unit.cells) == ("7/14 9/18", ())


def test_a_box_to_tick_parts_nothing(tmp_path: Path, engine: str) -> None:
    """Its sides are upright rules, no higher than a letter."""
    box = b" 71 699 8 8 re S"
    (unit,) = read_pdf(written(tmp_path, b"BT /F 10 Tf 50 700 Td (Yes,) Tj 32 0 Td (it is) Tj ET" + box))
    assert (unit.text, unit.cells) == ("Yes, it is", ())
