"""Tables of WikiTableQuestions as their pages have them, and as they are printed."""

import sys
from pathlib import Path
from random import Random

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from table_pdf import FOLDER, STYLES, of_html, render, tables  # noqa: E402 - beside its own scripts

PAGE = """<table><tr><th rowspan="2">Year</th><th colspan="2">Goods <b>moved</b></th></tr>
<tr><th>Coal</th><th>Grain</th></tr>
<tr><td rowspan=2>2019</td><td>1,204</td><td><style>td {}</style>7</td></tr>
<tr><td colspan="2">none</td></tr><tr></tr><tr><td>2020</td><td>3</td><td>&nbsp;</td></tr></table>"""


def test_cells_over_several_columns_and_rows_are_said_once() -> None:
    """Where they begin; both rows of headings count as header, styles and empty rows as nothing."""
    table = of_html("a", PAGE)
    assert table.rows == [
        ("Year", "Goods moved", ""), ("", "Coal", "Grain"), ("2019", "1,204", "7"), ("", "none", ""), ("2020", "3", "")
    ]  # fmt: skip
    assert table.header == 2


@pytest.mark.parametrize("style", STYLES)
def test_every_header_row_stands_on_every_page(style: str) -> None:
    """A table longer than a page is printed with all of its header on each; no row is lost between them."""
    rows = [("Year", "Goods"), ("", "Coal"), *((str(1900 + n), str(n)) for n in range(120))]
    _, printed = render(rows, iter(["a line of prose"] * 500), style, 3, header=2)
    assert len(printed) > 1
    assert all(part.header == 2 and list(part.rows[:2]) == rows[:2] for part in printed)
    assert [row for part in printed for row in part.rows[2:]] == rows[2:]


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "csv-html.tar.gz").is_file(), reason="WikiTableQuestions isn't there")
def test_most_tables_come_from_their_pages() -> None:
    """Names are sorted, so that the halves that rules were made and are judged on stay what they are."""
    found = tables()
    assert [table.name for table in found] == sorted(table.name for table in found)
    assert sum(table.header > 1 for table in found) > 20
    some = Random(0).sample(found, 20)
    assert all(2 <= len(table.rows[0]) <= 8 and len(table.rows) > 3 for table in some)
