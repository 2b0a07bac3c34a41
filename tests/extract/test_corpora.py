"""Properties on the real files here: the order of documents changes nothing, and spans, text and boxes lead to one
another."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2erag.extract import KINDS, Document, Extractor, ExtractorConfig, Kind, Passage, propose, read, read_many

NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))
FILES = [*NTSB, *sorted((Path(__file__).parent / "golden").glob("*.pdf"))]


@cache
def document(path: Path) -> Document:
    return read(path)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@given(files=st.lists(st.sampled_from(FILES), min_size=1, max_size=6, unique=True))
@settings(max_examples=8, deadline=None)
def test_documents_come_as_they_are_named_and_are_what_each_is_alone(files: list[Path]) -> None:
    """Read and proposed in any order, in one call: in that order, and none is changed by those before it."""
    found, failed = read_many(files, workers=0, progress=False)
    assert (found, failed) == ([document(path) for path in files], [])
    extractor = Extractor(ExtractorConfig(text_dim=8, hidden=8))
    passages = [extractor(each) for each in found]
    assert passages == [extractor.propose(document(path)) for path in files]


@pytest.mark.parametrize("kind", KINDS)
@given(path=st.sampled_from(FILES), sizes=st.sets(st.integers(1, 12), min_size=1, max_size=2), named=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_passage_leads_to_lines_and_boxes_and_back(kind: Kind, path: Path, sizes: set[int], named: int) -> None:
    """Page and line number find each of its lines again, and so does its box, on the page; its text is theirs, letter
    by letter (as a table's row, and as sentences, word by word); and no line with text is in none."""
    source = document(path)
    passages = propose(source, sorted(sizes), named, kinds=(kind,))
    covered = {i for passage in passages for i in range(passage.start, passage.stop)}
    assert covered >= {i for i, text in enumerate(source.texts) if text}
    for passage in passages:
        own = source.units[passage.start : passage.stop]
        assert passage.units[len(passage.carried) :] == own
        for unit in passage.units:
            page = source.pages[unit.page - 1]
            assert page.units[unit.line - 1] is unit
            assert [u for u in page.units if u.box == unit.box] == [unit]
            assert 0 <= unit.box.x0 < unit.box.x1 <= page.width
            assert 0 <= unit.box.y0 < unit.box.y1 <= page.height
            assert all(unit.text[cell.start : cell.stop].strip() for cell in unit.cells)
        if passage.reading == "lines":
            assert letters(passage.text) == letters("".join(_texts(passage)))
        elif passage.reading == "rows":
            assert Counter(passage.text.replace("|", " ").split()) >= Counter(" ".join(_texts(passage)).split())
        else:
            assert set(words(passage.text)) >= set(words(" ".join(_texts(passage))))
    assert kind != "table" or {passage.reading for passage in passages} in ({"lines"}, {"lines", "rows", "sentences"})


def _texts(passage: Passage) -> list[str]:
    """Its lines' texts, from their units: a broken word is whole where it begins, so what it ends with goes there."""
    units = passage.document.units
    out = []
    for i in [*passage.carried, *range(passage.start, passage.stop)]:
        text, whole = units[i].text, passage.document.texts[i]
        if i and passage.document.texts[i - 1] != units[i - 1].text and letters(text).endswith(letters(whole)):
            text = whole  # its first word ends the line before
        elif whole != text:
            after = units[i + 1].text.split()[0]
            assert letters(whole).startswith(letters(text))
            assert letters(after).startswith(letters(whole)[len(letters(text)) :])
            text = whole
        out.append(text)
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_letter_is_lost_where_words_are_made_whole(path: Path) -> None:
    """Over the document the letters are those printed, in their order; only hyphens go."""
    source = document(path)
    assert letters("".join(source.texts)) == letters("".join(unit.text for unit in source))


def test_some_of_these_words_are_broken() -> None:
    """So that the above says something."""
    assert sum(a != b.text for path in FILES for a, b in zip(document(path).texts, document(path), strict=True)) > 5
