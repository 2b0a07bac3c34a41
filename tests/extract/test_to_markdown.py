"""Documents as Markdown: what goes in as Markdown comes out, and PDFs' lines become headings and paragraphs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from e2erag.extract import Box, Document, read
from e2erag.extract.document import Cell, Page, Unit
from e2erag.extract.readers import read_markdown

NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))


def round_trip(source: str, path: Path) -> str:
    (path / "a.md").write_text(source)
    return read_markdown(path / "a.md").to_markdown()


SOURCE = """# A title

A paragraph that is long enough to be set on two lines of a nominal page, so that it has to be put together again.

## Part 1

- one
- two
    - two a
    - two b
- three

Before the numbers:

3. c
4. d

| Name | Value |
| --- | --- |
| a \\| b | 1 |
| c |  |
| d_e | 2\\*3 |

Last.
"""


def test_markdown_comes_back_as_it_was(tmp_path: Path) -> None:
    """Headings, paragraphs, nested and numbered items, tables with their pipes."""
    assert round_trip(SOURCE, tmp_path) == SOURCE


word = st.text("abcdefghijklmnopqrstuvwxyzäöü", min_size=1, max_size=10)
short = st.lists(word, min_size=1, max_size=4).map(" ".join)
odd = st.sampled_from(["*x*", "a|b", "_y_", "#", "1.", "-", ">", "`z", "<b>", "a_b", "&amp;", "[k](l)", "~~z", "\\"])
text = st.lists(st.one_of(word, odd), min_size=1, max_size=60).map(" ".join)
block = st.one_of(
    st.builds(lambda n, t: ("heading", n, t), st.integers(1, 6), short),
    st.builds(lambda t: ("paragraph", "so " + t + " end."), text),
    st.builds(lambda ts: ("list", ts), st.lists(short, min_size=1, max_size=4)),
    st.builds(lambda rows: ("table", rows), st.lists(st.tuples(short, short, short), min_size=2, max_size=5)),
)


def written(blocks: Sequence[tuple]) -> str:
    """The blocks as HTML within Markdown, so that nothing needs to be escaped but `<` and `&`."""
    out = []
    for kind, *what in blocks:
        if kind == "heading":
            out.append(f"<h{what[0]}>{what[1]}</h{what[0]}>")
        elif kind == "paragraph":
            out.append(f"<p>{what[0].replace('&', '&amp;').replace('<', '&lt;')}</p>")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{item}</li>" for item in what[0]) + "</ul>")
        else:
            heads = "".join(f"<th>{cell}</th>" for cell in what[0][0])
            rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in what[0][1:])
            out.append(f"<table><tr>{heads}</tr>{rows}</table>")
    return "\n\n".join(out)


def parsed(markdown: str) -> list[tuple]:
    """What Markdown says: headings with their level, paragraphs, items and table cells, as plain text."""
    out: list[tuple] = []
    within: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.nesting:
            within = [*within, token.tag] if token.nesting > 0 else within[:-1]
        if token.type == "inline":
            plain = "".join(" " if t.type == "softbreak" else t.content for t in token.children or [])
            kind = next((tag for tag in within[::-1] if tag in ("th", "td", "li") or tag[0] == "h"), "p")
            out.append((kind, plain))
    return out


def expected(blocks: Sequence[tuple]) -> list[tuple]:
    out: list[tuple] = []
    for kind, *what in blocks:
        if kind == "heading":
            out.append((f"h{what[0]}", what[1]))
        elif kind == "paragraph":
            out.append(("p", what[0]))
        elif kind == "list":
            out += [("li", item) for item in what[0]]
        else:
            out += [("th" if r == 0 else "td", cell) for r, row in enumerate(what[0]) for cell in row]
    return out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blocks=st.lists(block, min_size=1, max_size=6))
@example(blocks=[("paragraph", "so a a a a aa aaa aaaa aaaa aaaaaa aaaaaaaaaa" + " *x*" * 8 + " &amp; &amp; 1. end.")])
@example(
    blocks=[
        ("paragraph", "so a a a a a aa aaa aaa" + " aaaa" * 3 + " aaaaaa aaaaaaa aaaaaaaaaa" + " *x*" * 5 + " b - end.")
    ]
)
def test_what_is_said_in_html_is_said_in_markdown(blocks: list[tuple], tmp_path: Path) -> None:
    """Whatever the text has in it that Markdown would take for its own."""
    (tmp_path / "a.html").write_text(written(blocks), "utf-8")
    document = read(tmp_path / "a.html")
    if len(document.pages) == 1:
        assert parsed(document.to_markdown()) == expected(blocks)


CODE = """def f(x, y):
    if x:
        return compute(x, y, 1, "the longest line")
    return {
        'a':   1,
    }

class A:
    one = 1    # `one`
    two = 22   # ``` two
"""


@pytest.mark.parametrize("name", ["a.md", "b.md", "a.html"])
def test_code_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    """Fenced, indented or in `<pre>`, with its lines and indentation, and never as a table."""
    indented = "".join(f"    {row}\n" for row in CODE.splitlines())
    sources = {"a.md": f"````py\n{CODE}````\n", "b.md": indented, "a.html": f"<pre>{CODE}</pre>"}
    end = "</p><p>After." if name == "a.html" else "\nAfter."
    (tmp_path / name).write_text(f"Before.\n\n{sources[name]}{end}")
    assert read(tmp_path / name).to_markdown() == f"Before.\n\n````\n{CODE}````\n\nAfter.\n"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 20), text.filter(lambda t: len(t) < 100)), min_size=1, max_size=80))
def test_any_code_keeps_its_lines(rows: list[tuple[int, str]], tmp_path: Path) -> None:
    """On one page or several; what all lines are indented by goes."""
    least = min(spaces for spaces, _ in rows)
    (tmp_path / "a.md").write_text("~~~~\n" + "".join(f"{' ' * n}{t}\n" for n, t in rows) + "~~~~\n")
    found = read(tmp_path / "a.md").to_markdown().splitlines()
    assert found[1:-1] == [" " * (n - least) + t for n, t in rows]


def line(text: str, n: int, y: float, size: float = 10.0, bold: bool = False, x: float = 50.0, page: int = 1) -> Unit:
    return Unit(text, page, n, Box(x, float(y), x + 0.5 * size * len(text), y + size), float(size), bold)


def printed(*pages: Sequence[Unit]) -> Document:
    return Document("a.pdf", "0", tuple(Page(n, 600.0, 800.0, tuple(units)) for n, units in enumerate(pages, start=1)))


def test_large_bold_lines_of_a_pdf_are_headings() -> None:
    """The larger the higher; a paragraph in large type is none, and neither is what is a little larger."""
    units = [
        line("Report", 1, 20, 24),
        line("Part one", 2, 60, 14, bold=True),
        line("The first line of a paragraph that goes on in a hyphen-", 3, 90),
        line("ated word, and here it ends.", 4, 102),
        line("A new one begins with a gap above it, and it is longer.", 5, 130),
        line("a little larger, not bold", 6, 160, 11.2),
        line("Part two", 7, 200, 14, bold=True),
    ]
    assert printed(units).to_markdown() == (
        "# Report\n\n## Part one\n\nThe first line of a paragraph that goes on in a hyphenated word, and here it ends."
        "\n\nA new one begins with a gap above it, and it is longer.\n\na little larger, not bold\n\n## Part two\n"
    )


def test_a_line_that_ends_early_ends_there() -> None:
    """Its next word would have fitted: an address, or the end of a paragraph."""
    units = [
        line("1 Harbour Street", 1, 20),
        line("Port Town", 2, 32),
        line("A much longer line that is the widest.", 3, 44),
    ]
    assert printed(units).to_markdown() == "1 Harbour Street  \nPort Town  \nA much longer line that is the widest.\n"


def test_a_sentence_goes_on_after_a_word_that_was_mended() -> None:
    """Also where its line ends short of the others, in an item, over three lines, and in another column."""
    wide = "The line that is the widest one here."
    short = [line("It gives an exam-", 1, 20), line("ple of it", 2, 32), line(wide, 3, 44)]
    assert printed(short).to_markdown() == f"It gives an example of it  \n{wide}\n"
    item = [line("- an inter-", 1, 20), line("na-", 2, 32), line("tional law", 3, 44), line(f"- {wide}", 4, 56)]
    assert printed(item).to_markdown() == f"- an international law\n- {wide}\n"
    aside = [line("It gives an exam-", 1, 700), line("ple of it", 2, 20, x=350.0)]
    assert printed(aside).to_markdown() == "It gives an example of it\n"
    over = printed([line("It gives an exam-", 1, 700)], [line("ple of it", 1, 20, page=2)])
    assert over.to_markdown() == "It gives an example of it\n"
    assert over.to_markdown(pages=True) == "<!-- page 1 -->\n\nIt gives an example\n\n<!-- page 2 -->\n\nof it\n"


def test_pages_are_named_if_asked_for() -> None:
    """And a sentence that goes on over the page is one, unless they are."""
    first = [line("The last line of a page, which does not end a sentence and", 1, 700)]
    second = [line("goes on at the top of the next one.", 1, 50, page=2)]
    document = printed(first, second, ())
    assert document.to_markdown() == f"{first[0].text} {second[0].text}\n"
    assert document.to_markdown(pages=True) == (
        f"<!-- page 1 -->\n\n{first[0].text}\n\n<!-- page 2 -->\n\n{second[0].text}\n"
    )


def test_lines_with_cells_are_a_table_even_where_none_is_found() -> None:
    """Two rows are too few to be sure of a table by their places; their cells say it."""
    rows = [
        line("Name Value", 1, 20, bold=True)._replace(cells=(Cell(0, 4, 50.0, 80.0), Cell(5, 10, 200.0, 230.0))),
        line("a|b 2", 2, 32)._replace(cells=(Cell(0, 3, 50.0, 70.0), Cell(4, 5, 200.0, 205.0))),
    ]
    assert printed(rows).to_markdown() == "| Name | Value |\n| --- | --- |\n| a\\|b | 2 |\n"


def test_a_document_without_a_line_is_empty() -> None:
    """Also with its pages named: there is nothing on them."""
    assert printed(()).to_markdown() == printed((), ()).to_markdown(pages=True) == ""


@pytest.mark.parametrize("file", NTSB[:2], ids=lambda file: file.name)
def test_real_reports_lose_no_word(file: Path) -> None:
    """Every word of every line is somewhere in the Markdown, tables included."""
    document = read(file)
    shown = document.to_markdown().replace("\\", "").replace("|", " ").split()
    assert not {word for text in document.texts for word in text.split()} - set(shown)
    assert "# National Transportation Safety Board" in document.to_markdown()


def test_a_hyphen_at_the_end_of_a_line_of_code_stays(tmp_path: Path) -> None:
    """It is an operator; the reader gets it as well."""
    path = tmp_path / "a.md"
    path.write_text("```\ntotal = gross-\n    net\n```\n")
    document = read(path)
    assert document.texts == ("total = gross-", "net")
    assert "total = gross-\n    net" in document.to_markdown()
    path.write_text("so the exam-\n\n```\nple = 1\n```\n")
    assert read(path).texts == ("so the exam-", "ple = 1")


def test_what_breaks_at_a_dash_or_slash_has_no_space() -> None:
    """Unless a word was mended there, or the sign stands apart."""
    wide = "The line that is the widest one here."
    for begun, rest, said in (
        ("call the number 206–231–", "3500 for it, and then", "206–231–3500"),
        ("https://www.regulations.gov/", "comment is where it is", "gov/comment"),
        ("between one end of it –", "and the other one here", "it – and"),
    ):
        text = printed([line(wide, 1, 20), line(begun.rjust(37), 2, 32), line(rest, 3, 44)]).to_markdown()
        assert said in " ".join(text.split()), text


def test_a_stamp_on_every_page_is_no_heading() -> None:
    """Nor does it push true ones down; numbers in it may differ."""
    pages = [
        [line(f"Proof {n} of 4", 1, 20, 30, page=n), line(f"Part {'ABCD'[n - 1]}", 2, 60, 20, page=n)]
        + [line("Text that is in the size of most of it.", 3 + i, 100 + 12 * i, page=n) for i in range(5)]
        for n in range(1, 5)
    ]
    headings = [row for row in printed(*pages).to_markdown().splitlines() if row.startswith("#")]
    assert headings == ["# Part A", "# Part B", "# Part C", "# Part D"]
    assert "## Part B" in printed(*pages[:2]).to_markdown()  # twice it may be a title
