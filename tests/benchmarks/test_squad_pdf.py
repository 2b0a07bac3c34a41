"""The printed articles hold what they claim: every line's role and place, every word of the text, the same bytes."""

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from e2erag.extract import Document, Unit, read

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
import squad_pdf
from printed.faces import Face
from printed.phrases import PHRASES
from squad_pdf import Article, Line, Paragraph, clean, render

WORDS = (
    "the well-known settlement of Großenbrück measured administrative temperatures, (uninterrupted) populations and "
    "5,500,000 documents of Łódź in nineteenth-century transportation; international Π observatories were described as "
    "fundamental—institutions—by historians of the naïve commonwealth from 1858 to 1876"
).split()


def article(title: str, paragraphs: int, step: int = 7) -> Article:
    """Paragraphs of 40 to 130 words, each beginning with its number; the order of words changes with `step`."""
    texts = [
        " ".join([f"No.{i}", *(WORDS[(i + step * j) % len(WORDS)] for j in range(40 + 30 * i % 91))])
        for i in range(paragraphs)
    ]
    return Article(title, tuple(Paragraph(f"{title}:{i}", text) for i, text in enumerate(texts)))


ARTICLE, OTHERS = article("Weights and measures", 16), [article("Canals", 3, 5), article("Salt", 3, 11)]
CASES = [(style, seed) for style in squad_pdf.STYLES for seed in (0, 3, squad_pdf.UNSEEN)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, list[Line]]:
    """One document per style and seed, as it was printed and as it is read."""
    style, seed = request.param
    path = tmp_path_factory.mktemp("printed") / "article.pdf"
    gold = render(ARTICLE, path, seed, style, OTHERS)
    return read(path), gold


def apart(line: Line, unit: Unit) -> float:
    """The largest distance of two edges, in points."""
    return max(abs(a - b) for a, b in zip(line.box, unit.box, strict=True))


def letters(text: str) -> str:
    return "".join(text.split())


def test_lines_read_are_the_lines_printed(printed: tuple[Document, list[Line]]) -> None:
    """By page and box; 99 of 100 lines also say the same, and stand within 3 points of where they were printed."""
    document, gold = printed
    found = squad_pdf.match(document, gold)
    assert len(document) == pytest.approx(len(gold), rel=0.01)
    same = [
        line is not None and line.text == unit.text and apart(line, unit) < 3
        for line, unit in zip(found, document, strict=True)
    ]
    assert sum(same) >= 0.99 * len(same)


def test_text_lines_hold_every_word(printed: tuple[Document, list[Line]]) -> None:
    """The lines read whose role is text, put together again, are the paragraphs and nothing else."""
    document, gold = printed
    roles, owners = squad_pdf.roles(document, gold), squad_pdf.paragraphs(document, gold)
    assert [owner is not None for owner in owners] == [role == "text" for role in roles]
    for paragraph in ARTICLE.paragraphs:
        assert squad_pdf.joined([line for line in gold if line.paragraph == paragraph.id]) == paragraph.text
        read_back = [unit.text for unit, owner in zip(document, owners, strict=True) if owner == paragraph.id]
        assert letters("".join(read_back)).replace("-", "") == letters(paragraph.text).replace("-", "")


def test_a_fifth_to_two_fifths_is_not_text(printed: tuple[Document, list[Line]]) -> None:
    """... of the lines, it stands between the lines of the text, and most of it isn't the same line again."""
    _, gold = printed
    other = [line.text for line in gold if line.role != "text"]
    assert 0.18 < len(other) / len(gold) < 0.45
    assert len(set(other)) > 0.5 * len(other)
    text = [i for i, line in enumerate(gold) if line.role == "text"]
    assert sum(b - a > 1 for a, b in pairwise(text)) >= 2


def test_no_line_stands_on_another(printed: tuple[Document, list[Line]]) -> None:
    """Boxes of one page share no more than a sliver, and all are on the page."""
    document, gold = printed
    for page in document.pages:
        boxes = [line.box for line in gold if line.page == page.number]
        assert all(0 < b.x0 < b.x1 < page.width and 0 < b.y0 < b.y1 < page.height for b in boxes)
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert wide < 0.5 or high < 0.5, (a, b)


@pytest.mark.parametrize("style", squad_pdf.STYLES)
def test_clean_prints_the_same_text_lines(tmp_path: Path, style: str) -> None:
    """Under the title, line for line, and they are read in that order."""
    gold = render(ARTICLE, tmp_path / "full.pdf", 5, style, OTHERS)
    bare = clean(ARTICLE, tmp_path / "bare.pdf", 5, style)
    assert {line.role for line in bare} == {"text", "heading"}
    assert [line.text for line in bare if line.role == "heading"] == [ARTICLE.title]
    texts = [(line.text, line.paragraph, line.ends) for line in bare if line.role == "text"]
    assert texts == [(line.text, line.paragraph, line.ends) for line in gold if line.role == "text"]
    assert [unit.text for unit in read(tmp_path / "bare.pdf")] == [line.text for line in bare]


def test_a_seed_fixes_the_bytes(tmp_path: Path) -> None:
    """Also after other documents were printed; another seed prints another document."""
    render(ARTICLE, tmp_path / "a.pdf", 1)
    for seed in (2, 3):
        render(OTHERS[0], tmp_path / "b.pdf", seed)
    render(ARTICLE, tmp_path / "b.pdf", 1)
    render(ARTICLE, tmp_path / "c.pdf", 2)
    a, b, c = ((tmp_path / f"{name}.pdf").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_unseen_seeds_say_other_things(tmp_path: Path) -> None:
    """A third of the phrases is theirs alone: of the labels, which nothing is filled into, some are new."""
    labels = {*PHRASES["related label"], *PHRASES["facts label"]}

    def said(first: int) -> set[str]:
        runs = [render(ARTICLE, tmp_path / "a.pdf", first + i, "report", OTHERS) for i in range(12)]
        return labels & {line.text for gold in runs for line in gold}

    seen, unseen = said(0), said(squad_pdf.UNSEEN)
    assert seen & unseen
    assert unseen - seen
    assert seen - unseen


def test_a_broken_word_says_how_it_goes_on() -> None:
    """ "-" was added, "" goes on as it is: a word's own hyphen stays."""
    face = Face("Times-Roman", 10, 12)
    lines = squad_pdf.wrap("a nineteenth-century population", face, 64)
    assert lines == [("a nineteenth-", ""), ("century popula-", "-"), ("tion", " ")]


def test_what_no_font_has_is_an_empty_box(tmp_path: Path) -> None:
    """... in the gold and in the file, and what can't be seen is in neither."""
    odd = Article("Odd", (Paragraph("0", "The name \u738b is Wang\u200b in \u0141\u00f3d\u017a."),))
    gold = clean(odd, tmp_path / "a.pdf", 0, "report")
    assert [line.text for line in gold] == ["Odd", "The name □ is Wang in Łódź."]
    assert [unit.text for unit in read(tmp_path / "a.pdf")] == [line.text for line in gold]


def test_articles_join_passages_and_questions(tmp_path: Path) -> None:
    """A question belongs to the article that holds its paragraph; a split without questions has none."""
    rows = {
        "dev.passages": [{"id": "a:0", "title": "A", "text": "x"}, {"id": "b:0", "title": "B", "text": "y"}],
        "dev.qa": [{"id": "q", "question": "Why?", "answers": ["y"], "gold": ["b:0"]}],
    }
    for name, content in rows.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in content)
    a, b = squad_pdf.articles(tmp_path, "dev")
    assert (a.title, a.paragraphs, a.questions) == ("A", (Paragraph("a:0", "x"),), ())
    assert b.questions == (squad_pdf.Question("q", "Why?", ("y",), "b:0"),)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.passages\.jsonl\.gz is missing: name the folder"):
        squad_pdf.articles(tmp_path, "train")
    with pytest.raises(ValueError, match="style must be one of journal, report, magazine, got 'poster'"):
        render(ARTICLE, tmp_path / "a.pdf", 0, "poster")
