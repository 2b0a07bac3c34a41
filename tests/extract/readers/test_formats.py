"""Formats without pages: every word kept, in order, on nominal pages; what a format says becomes headings and cells."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import pytest
from format_fixtures import WRITERS, blocks, cells, few, read_as, spoken, words
from hypothesis import given
from hypothesis import strategies as st

from e2erag.extract import Document, ReadError
from e2erag.extract.readers import read_docx, read_html, read_markdown, read_text


@pytest.mark.parametrize("name", WRITERS)
@few
@given(given=blocks)
def test_no_word_is_lost_and_the_order_stays(name: str, given: Sequence[tuple], tmp_path: Path) -> None:
    """Whatever blocks a file has, their words come back in order; only list markers come on top."""
    document = read_as(tmp_path, name, WRITERS[name](given))
    assert [word for word in words(document) if word != "•"] == spoken(given)


@pytest.mark.parametrize("name", ["a.html", "a.md", "a.docx"])
@few
@given(given=blocks)
def test_headings_and_rows_come_back(name: str, given: Sequence[tuple], tmp_path: Path) -> None:
    """Levels of headings are in `Unit.heading`, and each table row is one line with its cells.

    Word by word: a heading wider than the page stands on two lines."""
    document = read_as(tmp_path, name, WRITERS[name](given))
    levels = [(unit.heading, word) for unit in document if unit.heading for word in unit.text.split()]
    assert levels == [(level[0], word) for kind, what, *level in given if kind == "heading" for word in what.split()]
    assert cells(document) == [row for kind, what, *_ in given if kind == "table" for row in what]


# Whole pages.

PAGE = """<!doctype html><html lang=en><head><meta charset="utf-8"><title>Harbour
 report</title><style>p {color: red}</style><script>var hidden = "words";</script></head><body>
<!-- a comment --><nav><ul><li><a href="/">Home</a><li><a href="/about">About us</a></ul></nav>
<h1>Harbour <em>report</em></h1>
<p>The <b>harbour</b> was opened in 1912 &amp; has 10<sup>6</sup> m<sup>2</sup> of water, H<sub>2</sub>O,
trans&shy;parent.<br>
Second line.<br><br>Third line.
<p style="font-weight: bold">All of this is bold.</p>
<div style="DISPLAY : none">unseen</div><p hidden>unseen too</p><noscript>enable scripts</noscript>
<ol start="3"><li>third<ul><li>inner</ul><li value="7">seventh</ol>
<table><caption>Ships by year</caption>
<thead><tr><th>Goods<th>Year<th colspan="2">Tonnes in and out</thead>
<tr><td rowspan="2">Grain<td>2019<td>120<td>131
<tr><td>2020<td>9<td>10
<tr><td>Coal<td><td>45<td>12</table>
<pre>
if x:
    y = 1   # why
</pre>
<dl><dt>Quay<dd>where ships lie</dl><blockquote>Said so.</blockquote><img src="a.png" alt="A chart">
<table><tr><td><h3>Box</h3><table><tr><td>in<td>ner</table></td><td>beside</td></tr></table>
<footer>© 2021 Port</footer></body></html>"""

LINES = [
    (0, "• Home"), (0, "• About us"), (1, "Harbour report"),
    (0, "The harbour was opened in 1912 & has 10 6 m 2 of water, H2O, transparent."),
    (0, "Second line."), (0, "Third line."), (0, "All of this is bold."),
    (0, "3. third"), (0, "• inner"), (0, "7. seventh"), (0, "Ships by year"),
    (0, "Goods Year Tonnes in and out"), (0, "Grain 2019 120 131"), (0, "Grain 2020 9 10"), (0, "Coal 45 12"),
    (0, "if x:"), (0, "y = 1 # why"), (0, "Quay"), (0, "where ships lie"), (0, "Said so."), (0, "A chart"),
    (3, "Box"), (0, "in ner"), (0, "beside"), (0, "© 2021 Port"),
]  # fmt: skip


def test_a_page_as_a_browser_shows_it(tmp_path: Path) -> None:
    """Menus and footers too, hidden parts not; headings, lists with their numbers, tables, indented code."""
    document = read_as(tmp_path, "a.html", PAGE)
    assert [(unit.heading, unit.text) for unit in document] == LINES
    assert document.title == "Harbour report"
    assert document.reader.startswith("lxml ")
    by_text = {unit.text: unit for unit in document}
    assert by_text["All of this is bold."].bold
    assert not by_text[LINES[3][1]].bold
    assert by_text["Harbour report"].font_size == 24
    assert by_text["• inner"].box.x0 > by_text["3. third"].box.x0
    assert by_text["where ships lie"].box.x0 > by_text["Quay"].box.x0
    assert by_text["y = 1 # why"].box.x0 > by_text["if x:"].box.x0
    assert [u.text[c.start : c.stop] for u in [by_text["Coal 45 12"]] for c in u.cells] == ["Coal", "45", "12"]


def test_a_table_of_a_page_is_found_as_one(tmp_path: Path) -> None:
    """Its frame is drawn, so that rows, header and spans come out as the file has them."""
    (_, table), *_ = read_as(tmp_path, "a.html", PAGE).tables
    assert table.header == 1
    assert table.rows == (
        ("Goods", "Year", "Tonnes in and out", "Tonnes in and out"),
        ("Grain", "2019", "120", "131"),
        ("Grain", "2020", "9", "10"),
        ("Coal", "", "45", "12"),
    )


def test_markdown_with_front_matter_and_tables(tmp_path: Path) -> None:
    """The title comes from the front matter, which stays as lines; HTML in the text is read, and a pipe in a cell."""
    source = (
        "---\ntitle: 'The report'\ndate: 2020-01-01\n---\n# One\n\nA *b* `c`\nd\n\n1. x\n2. y\n   - z\n\n"
        "| A | B |\n|---|--:|\n| 1 \\| 2 | 3 |\n| 4 | 5 |\n\n```py\nx = 1\n```\n<b>HTML</b> too\n<!-- unseen -->\n"
    )
    document = read_as(tmp_path, "a.md", source)
    assert document.title == "The report"
    assert [unit.text for unit in document] == [
        "title: 'The report'", "date: 2020-01-01", "One", "A b c d", "1. x", "2. y", "• z", "A B", "1 | 2 3", "4 5",
        "x = 1", "HTML too",
    ]  # fmt: skip
    assert cells(document) == [["A", "B"], ["1 | 2", "3"], ["4", "5"]]


def test_footnotes_of_markdown_stay(tmp_path: Path) -> None:
    """One word, an address or a text, each a paragraph; definitions of links are none, and go."""
    source = (
        "# A\nText[^1], [more][b][^n].\n[^1]: https://example.org/source\n[^n]:   Ibid.\nand on\n[^2]: See *there*.\n\n"
        "- item\n\n  [^3]: <http://c.d>\n\n[b]: http://a.b\n\n> quoted\n[^4]: e\n\n    [^5]: code\n\n[^ 6]: no\n"
    )
    assert [unit.text for unit in read_as(tmp_path, "a.md", source)] == [
        "A", "Text[^1], more[^n].", "[^1]: https://example.org/source", "[^n]: Ibid. and on", "[^2]: See there.",
        "• item", "[^3]: http://c.d", "quoted", "[^4]: e", "[^5]: code", "[^ 6]: no",
    ]  # fmt: skip


def test_a_rule_at_the_top_is_no_front_matter(tmp_path: Path) -> None:
    """Only lines that look like `key: value` are."""
    document = read_as(tmp_path, "a.md", "---\nJust a paragraph\n\n---\n\nmore")
    assert words(document) == ["Just", "a", "paragraph", "more"]


def test_text_keeps_its_lines_tabs_and_pages(tmp_path: Path) -> None:
    """Short lines stay, long ones wrap, tabs and runs of spaces part cells, a form feed begins a page."""
    source = "Title\n  indented\n\n\n\n" + "word " * 40 + "\n\fName     Age\tCity\r\nAnn      12     Oslo\n"
    document = read_as(tmp_path, "a.txt", source)
    assert [len(page.units) for page in document.pages] == [5, 2]
    assert cells(document) == [["Name", "Age", "City"], ["Ann", "12", "Oslo"]]
    assert document.units[1].box.x0 > document.units[0].box.x0
    first, second = document.units[-2:]
    assert [round(cell.x0) for cell in first.cells[:2]] == [round(cell.x0) for cell in second.cells[:2]]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("naïve café".encode("utf-8-sig"), "naïve café"),
        ("naïve café".encode("utf-16"), "naïve café"),
        ("naïve café and more".encode("utf-16-be"), "naïve café and more"),
        ("naïve café “so”".encode("cp1252"), "naïve café “so”"),
        ("naïve café".encode("latin-1"), "naïve café"),
        ("é".encode() * 20 + b"\xc3", "é" * 20 + "\ufffd"),  # cut off within a character
    ],
)
def test_encodings_are_found(data: bytes, shown: str, tmp_path: Path) -> None:
    """A byte order mark, UTF-16 by its zeros, UTF-8, and Windows-1252 for the rest."""
    assert read_as(tmp_path, "a.txt", data).units[0].text == shown


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Привет, это обычный текст", "cp1251"), ("你好世界，这是测试", "gbk"), ("こんにちは、テストです", "shift_jis")],
)
@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.md"])
def test_an_encoding_that_is_not_told_is_no_garbage(text: str, encoding: str, name: str, tmp_path: Path) -> None:
    """As Windows-1252 it would be signs and accents."""
    page = f"<p class='long enough to be most of it'>{text}</p>" if name == "a.html" else text
    with pytest.raises(ReadError, match="is text in an encoding that it doesn't tell: save it as UTF-8"):
        read_as(tmp_path, name, page.encode(encoding))
    french = "Déjà vu, c’est très « joli » à l’été"
    assert read_as(tmp_path, name, french.encode("cp1252")).units[0].text == french


def test_how_a_word_is_spoken_stands_in_no_word(tmp_path: Path) -> None:
    """Ruby text is set above it; the same in Word."""
    page = "<p>see <ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp>字<rt>ji</rt></ruby> here</p>"
    assert read_as(tmp_path, "a.html", page.encode()).units[0].text == "see 漢字 here"


def test_a_fraction_stands_on_one_line(tmp_path: Path) -> None:
    """1/2 isn't 12; what is more than a number or a name is in brackets."""
    page = (
        "<p>a <math><mfrac><mn>1</mn><mn>2</mn></mfrac></math> b <math><mfrac>"
        "<mrow><mi>x</mi><mo>+</mo><mi>y</mi></mrow><mi>z</mi></mfrac></math></p>"
    )
    assert read_as(tmp_path, "a.html", page.encode()).units[0].text == "a 1/2 b (x+y)/z"


def test_a_power_is_no_further_digit(tmp_path: Path) -> None:
    """10⁶ isn't 106; white space between a formula's parts is none of it, and a prime says enough as it is."""
    page = (
        "<p><math><msup> <mn>10</mn>\n <mn>6</mn> </msup></math> and <math><msup><mi>x</mi><mrow><mi>n</mi><mo>+</mo>"
        "<mn>1</mn></mrow></msup></math>, <math><msup><mi>f</mi><mo>′</mo></msup></math>, "
        "<math><msubsup><mi>a</mi><mi>i</mi><mn>2</mn></msubsup></math>; 10<sup>6</sup> on the 1<sup>st</sup></p>"
        "<p><math><msup><mi>x</mi><mfrac><mn>1</mn><mn>2</mn></mfrac></msup></math>, <math><msup><mrow>\n<mfrac>"
        "<mn> 1 </mn><mn>2</mn></mfrac> </mrow><mn>2</mn></msup></math>, <math><munderover><mo>∑</mo><mi>i</mi>"
        "<mi>n</mi></munderover></math>, <math><msup><mi>a</mi></msup></math></p>"
    )
    first, second = read_as(tmp_path, "a.html", page.encode()).units
    assert first.text == "10^6 and x^(n+1), f′, ai^2; 10 6 on the 1st"
    assert second.text == "x^(1/2), (1/2)^2, ∑i^n, a"


@pytest.mark.parametrize("charset", ["koi8-r", "windows-1251", "utf-8"])
def test_the_encoding_that_a_page_declares_counts(charset: str, tmp_path: Path) -> None:
    """`<meta charset>`, where the bytes agree with it."""
    page = f"<html><head><meta http-equiv=Content-Type content='text/html; charset={charset}'></head>Привет"
    assert words(read_as(tmp_path, "a.html", page.encode(charset))) == ["Привет"]
    lied = "<meta charset=utf-16><p>Grüße</p>".encode()
    assert words(read_as(tmp_path, "b.html", lied)) == ["Grüße"]


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<p>a<table><tr><td>x<td>y</table>b", ["a", "x y", "b"]),
        ("<td>loose</td><li>item</li>", ["loose", "• item"]),
        ("<b><p>open", ["open"]),
        ("<table>stray<tr><td>x<td>y", ["stray", "x y"]),
        ("a<div>b<span>c</span>d</div>e", ["a", "bcd", "e"]),
        ("<p>x &lt;b&gt; &#x41; &bogus; AT&T", ["x <b> A &bogus; AT&T"]),
        ("<select><option>a<option>b</select>", ["a b"]),
        ("<table><tr><td colspan=99999999 rowspan=0>x<td>y<tr><td>z", ["x y", "z"]),
        ("<textarea>kept\n  so</textarea>", ["kept", "so"]),
        ("<svg><title>no</title><text>yes</text></svg>", ["yes"]),
        ("<h2>a<br>b</h2>", ["a b"]),
        ("<a href=1>a</a><button>b</button>c", ["a b c"]),
    ],
)
def test_broken_and_odd_html_keeps_its_words(page: str, shown: list[str], tmp_path: Path) -> None:
    """As a browser would show it, more or less."""
    assert [unit.text for unit in read_as(tmp_path, "a.html", page)] == shown


def test_spans_cannot_blow_a_page_up(tmp_path: Path) -> None:
    """Cells that reach over rows are said again, but not without end."""
    row = "<td rowspan=99>x</td>" * 300
    document = read_as(tmp_path, "a.html", f"<table><tr>{row}</tr>{'<tr></tr>' * 200}</table>" * 3)
    assert 40_000 < sum(len(unit.text) for unit in document) < 60_000


def test_a_page_nested_too_deep_is_refused_not_cut(tmp_path: Path) -> None:
    """The parser stops at 2048 levels: then there is an error, up to there is every word."""
    assert words(read_as(tmp_path, "a.html", "<div>" * 1500 + "deep" + "</div>" * 1500 + "after")) == ["deep", "after"]
    with pytest.raises(ReadError, match="nested too deep"):
        read_as(tmp_path, "b.html", "<div>" * 5000 + "deep")
    with pytest.raises(ReadError, match=r"nests .* deep"):
        read_as(tmp_path, "b.md", ">" * 300 + "deep")


def test_entities_of_a_document_type_are_not_expanded(tmp_path: Path) -> None:
    """A billion laughs stay one reference."""
    lol = '<!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><html><body>x &b;</body></html>'
    assert "haha" not in " ".join(words(read_as(tmp_path, "a.xhtml", f"<?xml version='1.0'?>{lol}")))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t \f ", "only white space"),
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "PNG image: name it .png"),
        ("a.md", b"%PDF-1.7\n" + bytes(range(32)) * 9, "a PDF: name it .pdf"),
        *(
            (f"a.{kind}", b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\n" * 9, "a PDF: name it .pdf")
            for kind in ("html", "md", "txt")
        ),
        ("a.html", b"\xd0\xcf\x11\xe0" + bytes(range(32)) * 9, "save it as .docx"),
        ("a.html", b"<script>only()</script>", "save it from a browser"),
        ("a.html", b"<!-- nothing -->", "save it from a browser"),
        ("a.md", b"<!-- nothing -->\n", "has no text"),
        ("a.docx", b"\xd0\xcf\x11\xe0" + b"x" * 600, "old .doc or encrypted"),
        ("a.docx", b"no zip at all", "save it as .docx"),
        ("a.docx", b"PK\x03\x04 cut off", "save it as .docx"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    """The rule, what came, and the way out."""
    with pytest.raises(ReadError, match=reason.replace(".", r"\.")):
        read_as(tmp_path, name, data)


@pytest.mark.parametrize("reader", [read_html, read_markdown, read_text, read_docx])
def test_missing_files_and_folders_say_so(reader: Callable[[Path], Document], tmp_path: Path) -> None:
    """As a PDF that is not there does."""
    with pytest.raises(ReadError, match="no such file"):
        reader(tmp_path / "none")
    with pytest.raises(ReadError, match="is a folder"):
        reader(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "lxml.etree", None)
    with pytest.raises(ReadError, match="pip install lxml"):
        read_as(tmp_path, "a.html", "<p>x")


@few
@given(data=st.binary(max_size=300), name=st.sampled_from(["a.html", "a.md", "a.txt", "a.docx"]))
def test_any_bytes_give_a_document_or_a_reason(data: bytes, name: str, tmp_path: Path) -> None:
    """Never another error, and nothing that isn't a line."""
    try:
        document = read_as(tmp_path, name, data)
    except ReadError:
        return
    assert all(unit.text.strip() for unit in document)


@few
@given(given=st.text("<>/abtdrhpreul =\"'&;#1-!", max_size=200))
def test_any_tag_soup_is_read(given: str, tmp_path: Path) -> None:
    """Elements in any order, open and shut as they please."""
    page = given.replace("t", "<table><tr><td>").replace("u", "<ul><li>").replace("h", "</td>").replace("e", "</ul>")
    document = read_as(tmp_path, "a.html", f"<p>start</p>{page}<!-- --><p>{escape('end')}</p>")
    assert words(document)[0] == "start"
