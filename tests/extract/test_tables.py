"""Tables: found by rules and by alignment, their headers, their two readings; and where there is none."""

import io
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Box, Cell, Page, Unit, read, tables
from e2erag.extract.tables import Table, as_rows, as_sentences, find_tables

STOCK = [["Fruit", "Boxes", "Price"], ["Apples", "12", "3.50"], ["Pears", "7", "4.25"], ["Quinces", "140", "9.00"]]


def line(number: int, y: float, pieces: list[tuple[str, float]], size: float = 10.0, bold: bool = False) -> Unit:
    """A line whose pieces begin at the given x, a letter half an em wide."""
    cells, at = [], 0
    for text, x in pieces:
        cells.append(Cell(at, at + len(text), float(x), x + 0.5 * size * len(text)))
        at += len(text) + 1
    box = Box(cells[0].x0, float(y), cells[-1].x1, y + size)
    text = " ".join(text for text, _ in pieces)
    return Unit(text, 1, number + 1, box, size, bold, tuple(cells) if len(cells) > 1 else ())


def page(
    lines: list[list[tuple[str, float]]],
    rules: tuple[Box, ...] = (),
    bold: tuple[int, ...] = (),
    pitch: float = 12.0,
    ys: list[float] | None = None,
) -> Page:
    ys = ys or [50 + pitch * i for i in range(len(lines))]
    units = tuple(line(i, y, pieces, bold=i in bold) for i, (y, pieces) in enumerate(zip(ys, lines, strict=True)))
    return Page(1, 595.0, 842.0, units, rules)


def set_at(rows: list[list[str]], xs: list[float]) -> list[list[tuple[str, float]]]:
    return [[(cell, x) for cell, x in zip(row, xs, strict=True) if cell] for row in rows]


def only(found: tuple[Table, ...]) -> Table:
    assert len(found) == 1
    return found[0]


def test_aligned_columns_are_a_table_and_prose_around_it_is_not() -> None:
    """Words above numbers name the columns."""
    prose = [[("A line of running text that is as wide as the whole table and wider", 50)]]
    table = only(find_tables(page([*prose, *set_at(STOCK, [50, 150, 250]), *prose])))
    assert (table.start, table.stop, table.header) == (1, 5, 1)
    assert [list(row) for row in table.rows] == STOCK
    assert as_rows(table)[1] == "Apples | 12 | 3.50"
    assert as_sentences(table) == (
        "",
        "Fruit: Apples; Boxes: 12; Price: 3.50.",
        "Fruit: Pears; Boxes: 7; Price: 4.25.",
        "Fruit: Quinces; Boxes: 140; Price: 9.00.",
    )


def test_a_first_column_without_a_name_names_the_row() -> None:
    """Years stand over numbers; what is empty is left out."""
    rows = [["", "2012", "2013"], ["Revenue", "5", "6"], ["Costs", "", "4"], ["Profit", "5", "2"]]
    table = only(find_tables(page(set_at(rows, [50, 200, 260]))))
    assert table.header == 1
    assert as_sentences(table)[1:] == ("Revenue — 2012: 5; 2013: 6.", "Costs — 2013: 4.", "Profit — 2012: 5; 2013: 2.")
    assert as_rows(table)[2] == "Costs |  | 4"


def test_a_form_has_no_header_and_reads_as_label_and_value() -> None:
    """Bold throughout, labels with colons, an empty value."""
    rows = [
        ["Location:", "Elyria, OH", "Number:", "C48"],
        ["Date:", "12/08/2007", "Aircraft:", "Piper"],
        ["Event:", "", "Injuries:", "1 Minor"],
        ["Seats:", "4", "Engines:", "1"],
    ]
    table = only(find_tables(page(set_at(rows, [50, 150, 300, 400]), bold=(0, 1, 2, 3))))
    assert table.header == 0
    assert as_sentences(table)[0] == "Location: Elyria, OH; Number: C48."
    assert as_sentences(table)[2] == "Event: –; Injuries: 1 Minor."


def test_signs_of_money_and_brackets_join_their_numbers() -> None:
    """Each in a cell of its own, or at the end of the column before."""
    lines = [
        [("Year", 50), ("2021", 210), ("2022", 310)],
        [("Sales", 50), ("$", 200), ("63,355 $", 210), ("63,948", 310)],
        [("Costs", 50), ("41,485", 210), ("41,286", 310)],
        [("Other", 50), ("(", 215), ("10", 225), (")", 250), ("243", 325)],
        [("Income", 50), ("$", 200), ("21,860 $", 210), ("22,905", 310)],
    ]
    table = only(find_tables(page(lines)))
    assert table.rows[1] == ("Sales", "$ 63,355", "$ 63,948")
    assert table.rows[3] == ("Other", "( 10 )", "243")


def test_a_header_over_two_columns_names_both() -> None:
    """Two header rows, bold; the upper cell spans."""
    lines = [
        [("Three months ended", 205), ("Nine months ended", 405)],
        [("June 2021", 200), ("June 2022", 260), ("June 2021", 400), ("June 2022", 460)],
        *set_at(
            [[w, "1,000", "2,000", "3,000", "4,000"] for w in ("Sales", "Costs", "Taxes")], [50, 200, 260, 400, 460]
        ),
    ]
    table = only(find_tables(page(lines, bold=(0, 1))))
    assert table.header == 2
    assert table.rows[0] == ("", *["Three months ended"] * 2, *["Nine months ended"] * 2)
    assert as_rows(table)[0].count("Three months ended") == 1
    assert "Three months ended June 2022: 2,000; Nine months ended June 2021: 3,000" in as_sentences(table)[2]


@pytest.mark.parametrize("bold", [(), (0, 1)])
def test_rows_above_a_rule_with_numbers_as_below_are_no_header(bold: tuple[int, ...]) -> None:
    """One's own results, set off by a rule or in bold type; one such row may be units or column numbers."""
    rows = [
        [name, papers, "full text", "yes"]
        for name, papers in (("Ours", "8.1M"), ("Ours, wide", "1.5M"), ("Ann", "1.0M"), ("Bob", "2.6M"), ("Cy", "5k"))
    ]
    rule = Box(50.0, 73.5, 330.0, 74.0)
    for head, header in ((2, 0), (1, 1)):
        lines = set_at(rows[2 - head :], [50, 150, 220, 300])
        ruled = rule if head == 2 else rule._replace(y0=61.5, y1=62.0)
        table = only(find_tables(page(lines, rules=(ruled,), bold=bold[:head])))
        assert (table.header, len(table.rows)) == (header, len(lines))


def test_a_cell_that_goes_on_is_one_row_and_whole() -> None:
    """A continuation says nothing of its own, and a word that its line's end breaks is joined."""
    lines = set_at(STOCK, [50, 150, 250])
    lines[2:2] = [[("and a very long exam-", 50)], [("ple of them", 50)]]
    lines[1] = [("Apples,", 50), ("12", 150), ("3.50", 250)]
    ys = [50.0, 70.0, 81.0, 92.0, 112.0, 132.0]
    table = only(find_tables(page(lines, ys=ys)))
    assert table.row_units == ((0,), (1, 2, 3), (4,), (5,))
    assert table.rows[1] == ("Apples, and a very long example of them", "12", "3.50")
    assert as_rows(table)[1:4] == ("Apples, and a very long example of them | 12 | 3.50", "", "")


def test_a_table_written_column_by_column_is_read_in_rows() -> None:
    """Units share baselines but come one column after the other."""
    lines = [[(row[j], x)] for j, x in enumerate((50, 150, 250)) for row in STOCK]
    table = only(find_tables(page(lines, ys=[50.0 + 12 * r for _ in range(3) for r in range(4)])))
    assert [list(row) for row in table.rows] == STOCK
    assert table.row_units[1] == (1, 5, 9)


def test_nothing_may_stand_above_the_labels() -> None:
    """Of a table of words too; not where the first row has a label and others don't."""
    rows = [["", "Ann", "Bob"], ["Job", "pilot", "nurse"], ["City", "Oslo", ""], ["Car", "Volvo", "Fiat"]]
    table = only(find_tables(page(set_at(rows, [50, 150, 250]))))
    assert table.header == 1
    assert as_sentences(table)[1] == "Job — Ann: pilot; Bob: nurse."
    rows = [["", "Ann", "Bob"], ["", "pilot", "nurse"], ["City", "Oslo", "Rome"], ["Car", "Volvo", "Fiat"]]
    assert only(find_tables(page(set_at(rows, [50, 150, 250])))).header == 0


@pytest.mark.parametrize("signs", ["", "$"])
def test_amounts_set_close_have_a_column_each(signs: str) -> None:
    """As statements of cash flows have them: the next sign right behind a number, the first by itself or not."""
    amounts = [["1,200", "2,300", "3,400"], ["4,500", "5,600", "6,700"], ["7,800", "8,900", "9,100"]]
    rows = [["Item", "March", "June", "July"], *(["Sales", *each] for each in amounts)]
    xs = [50.0, 150.0, 190.0, 230.0]
    close = [("Cash at end", 50.0)] + ([("$", 140.0)] if signs else []) + [("10,000 $ 11,000 $ 12,000", 150.0)]
    if not signs:
        close[-1] = ("$ 10,000 $ 11,000 $ 12,000", 140.0)
    table = only(find_tables(page([*set_at(rows, xs), close])))
    assert table.rows[-1] == ("Cash at end", "$ 10,000", "$ 11,000", "$ 12,000")
    assert "July: $ 12,000" in as_sentences(table)[-1]


def test_a_grid_parts_words_that_a_ruling_line_parts() -> None:
    """Cells too near each other for the reader, and a row of two lines between two rules."""
    xs, ys = [50.0, 100.0, 150.0], [50.0, 70.0, 100.0, 120.0]
    rules = (*(Box(xs[0], y, xs[-1], y + 0.5) for y in ys), *(Box(x, ys[0], x + 0.5, ys[-1]) for x in xs))
    units = [
        Unit("Name Colour", 1, 1, Box(54.0, 55.0, 134.0, 65.0), 10.0, True),
        Unit("Apple bright", 1, 2, Box(54.0, 73.0, 134.0, 83.0), 10.0),
        Unit("red", 1, 3, Box(104.0, 85.0, 120.0, 95.0), 10.0),
        Unit("Pear green", 1, 4, Box(54.0, 105.0, 132.0, 115.0), 10.0),
    ]
    table = only(find_tables(Page(1, 595.0, 842.0, tuple(units), rules)))
    assert table.rows == (("Name", "Colour"), ("Apple", "bright red"), ("Pear", "green"))
    assert (table.header, [(round(a), round(b)) for a, b in table.columns]) == (1, [(50, 100), (100, 150)])


@pytest.mark.parametrize(
    "lines",
    [
        [[("a first column of running prose that goes", 50), ("and a second one that is as long here", 300)]] * 6,
        [[(f"{i}.", 50), ("An item of a list, with its number before it", 80)] for i in range(6)],
        [[("Signed", 50), ("Witness", 300)], [("Jane", 50), ("John", 300)]],
        [[(f"word {'x' * (7 * i % 5)}", 50 + 37 * (i % 4)), ("number", 200 + 53 * (i % 5))] for i in range(8)],
    ],
    ids=["columns of prose", "a numbered list", "two lines", "nothing aligned"],
)
def test_what_is_no_table(lines: list[list[tuple[str, float]]]) -> None:
    """In doubt there is none."""
    assert find_tables(page(lines)) == ()


def test_ruled_pdf_with_wrapped_cells(tmp_path: Path) -> None:
    """Through the reader: a grid, its cells in the middle of their rows."""
    data = io.BytesIO()
    canvas = Canvas(data, pagesize=(595, 842), invariant=True)
    canvas.drawString(60, 800, "Results of the season are given below.")
    canvas.grid([60, 160, 260, 360], [700, 720, 760, 780])
    for x, y, text in [
        (65, 765, "Team"), (165, 765, "Coach"), (265, 765, "Points"),
        (65, 744, "Rovers of the"), (65, 728, "Western Shore"), (165, 736, "A. Smith"), (265, 736, "31"),
        (65, 705, "United"), (165, 705, "B. Jones"), (265, 705, "28"),
    ]:  # fmt: skip
        canvas.drawString(x, y, text)
    canvas.save()
    file = tmp_path / "grid.pdf"
    file.write_bytes(data.getvalue())
    first = read(file).pages[0]
    table = only(find_tables(first))
    assert table.rows == (
        ("Team", "Coach", "Points"),
        ("Rovers of the Western Shore", "A. Smith", "31"),
        ("United", "B. Jones", "28"),
    )
    assert (table.start, table.stop, table.header) == (1, len(first.units), 1)


WORD = st.sampled_from(
    ["", "12", "3,400", "(7)", "$", "Total", "Location:", "a long cell of words", "2012", "–", "fin-"]
)
LINE = st.lists(st.tuples(WORD, st.integers(0, 6)), min_size=1, max_size=5)


@given(
    lines=st.lists(LINE, max_size=14),
    steps=st.lists(st.sampled_from([12.0, 12.0, 12.0, 6.0, 30.0, -60.0]), min_size=14, max_size=14),
    ruled=st.booleans(),
    bold=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_any_page(lines: list[list[tuple[str, int]]], steps: list[float], ruled: bool, bold: int) -> None:
    """Tables stay on the page and apart, rows share out their units, both readings keep the cells; twice the same."""
    placed = []
    for cells in lines:
        at = {column: text for text, column in cells if text}
        placed.append([(at[column], 40.0 + 75 * column) for column in sorted(at)] or [("word", 40.0)])
    ys = [200.0 + sum(steps[:i]) for i in range(len(placed))]
    rules = tuple(Box(40.0 + 75 * i - 4, 150.0, 40.0 + 75 * i - 3.5, 600.0) for i in range(8)) if ruled else ()
    rules += tuple(Box(36.0, 190.0 + 36 * i, 561.0, 190.5 + 36 * i) for i in range(10)) if ruled else ()
    made = page(placed, rules, tuple(range(bold)), ys=ys) if placed else Page(1, 595.0, 842.0, (), rules)
    found = find_tables(made)
    assert found == find_tables(made)
    last = 0
    for table in found:
        assert last <= table.start < table.stop <= len(made.units)
        last = table.stop
        check(table)


def check(table: Table) -> None:
    """What holds for every table and its readings."""
    units = sorted(unit for row in table.row_units for unit in row)
    assert units == list(range(table.start, table.stop))
    assert len(table.rows) == len(table.row_units)
    assert all(len(row) == len(table.columns) for row in table.rows)
    rows, sentences = as_rows(table), as_sentences(table)
    assert len(rows) == len(sentences) == table.stop - table.start
    for r, (cells, taken) in enumerate(zip(table.rows, table.row_units, strict=True)):
        at = min(taken) - table.start
        assert all(cell in rows[at] for cell in cells)
        assert all(cell in sentences[at] for cell in cells) or r < table.header
        assert bool(sentences[at]) == (r >= table.header)


def test_a_page_of_more_lines_than_are_looked_at_has_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no page takes seconds."""
    stock = page(set_at(STOCK, [50, 150, 250]))
    only(find_tables(stock))
    monkeypatch.setattr(tables, "MOST_LINES", 3)
    assert find_tables(stock) == ()


def test_a_page_without_tables_costs_little() -> None:
    """Two columns of prose, 100 lines, cost less than a table of 40; and ten times the lines of a table take not much
    more than ten times as long."""
    text = [("some words of a column of running prose, line by line", 50.0)]
    other = [(text[0][0], 320.0)]
    prose = page([text] * 50 + [other] * 50, ys=[40.0 + 14 * i for i in range(50)] * 2)
    assert find_tables(prose) == ()
    small, large = (page(set_at(STOCK * n, [50, 150, 250])) for n in (10, 100))
    assert best(prose) < best(small)
    assert best(large) < 40 * best(small)


def best(made: Page) -> float:
    times = []
    for _ in range(5):
        start = perf_counter()
        find_tables(made)
        times.append(perf_counter() - start)
    return min(times)
