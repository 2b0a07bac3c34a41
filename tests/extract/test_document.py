"""Words that a line's end breaks, and documents as plain data."""

import json

import pytest

from e2erag.extract.document import Box, Cell, Document, Page, Unit, dehyphenated


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        (("an exam-", "ple of it"), ("an example", "of it")),
        (("an exam-", "ple, then"), ("an example,", "then")),
        (("in-", "ter-", "national law"), ("international", "", "law")),
        (("Smith-", "Jones"), ("Smith-", "Jones")),  # a name, not a break
        (("from 1990-", "1995"), ("from 1990-", "1995")),
        (("a dash -", "so"), ("a dash -", "so")),
        (("x-", "ray"), ("x-", "ray")),  # one letter is no syllable
        (("well-known and well-", "known"), ("well-known and well-known", "")),
        (("state-of-the-", "art"), ("state-of-the-art", "")),
        (("self-regu-", "lation, that is"), ("self-regulation,", "that is")),
        (("the art: state-of-the-", "art"), ("the art: state-of-the-art", "")),
        (
            ("based on its life-", "saving value, a life of saving"),
            ("based on its life-saving", "value, a life of saving"),
        ),
        (("a per-", "son, per son, one person"), ("a person,", "per son, one person")),
        (("the per-", "son and a per-", "son"), ("the person", "and a person", "")),  # parts of words are no words
        (("it is in-", "side, in a side"), ("it is inside,", "in a side")),  # two letters tell little
        (("in pre-", "and post-war times"), ("in pre-", "and post-war times")),
        (("a thous-", "and, one thousand"), ("a thousand,", "one thousand")),
        (("see http://a.b/foo-", "bar for it"), ("see http://a.b/foo-bar", "for it")),
        (("at www.a.b/foo-", "bar.html"), ("at www.a.b/foo-bar.html", "")),
        (("an exam\u2010", "ple of"), ("an example", "of")),
        (("an exam\u00ad", "ple of"), ("an example", "of")),
        (("the end-",), ("the end-",)),
        ((), ()),
    ],
)
def test_words_broken_at_a_line_end_are_made_whole(lines: tuple[str, ...], whole: tuple[str, ...]) -> None:
    """The whole word stands on the line where it begins; names, numbers and dashes are left alone."""
    if lines == ("state-of-the-", "art"):
        lines, whole = (*lines, "a state-of-the-art thing"), (*whole, "a state-of-the-art thing")
    assert dehyphenated(lines) == whole


def test_units_keep_what_is_printed() -> None:
    """Only the text that is read on changes; boxes and units don't."""
    units = tuple(
        Unit(text, 1, i, Box(0.0, float(i), 9.0, i + 1.0), 1.0) for i, text in enumerate(("an exam-", "ple"), 1)
    )
    document = Document("a.pdf", "0", (Page(1, 10.0, 10.0, units),))
    assert document.texts == ("an example", "")
    assert [unit.text for unit in document] == ["an exam-", "ple"]


def test_everything_of_a_document_survives_json() -> None:
    """Cells, rules, headings, confidence, code and why a page is unread included."""
    row = Unit(
        "a b", 1, 1, Box(1.0, 2.0, 3.0, 4.0), 9.5, True, (Cell(0, 1, 1.0, 2.0), Cell(2, 3, 2.5, 3.0)), 2, 0.5, True
    )
    pages = (Page(1, 10.0, 20.0, (row,), (Box(0.0, 5.0, 10.0, 5.5),)), Page(2, 10.0, 20.0, (), (), "is a scan"))
    document = Document("a.pdf", "f00", pages, "Title", "pypdf")
    again = Document.from_json(json.loads(json.dumps(document.to_json())))
    assert again == document
    assert again.unread == {2: "is a scan"}
    assert isinstance(again.units[0].cells[0], Cell)
