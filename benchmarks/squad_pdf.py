"""SQuAD articles printed as the PDFs people really have: columns, running heads, notices, sidebars; with exact gold.

    python benchmarks/squad_pdf.py OUT [--folder ../shared/data/squad] [--split dev32] [--count 3] [--seed 0]

`render` prints an article as a journal paper, a report or a web page printed from a browser, and returns what stands
on each line and why; `clean` prints the same text lines alone. The same seed gives the same bytes.
Lengths are in points, the origin is the top left of the page and y grows downwards.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from printed.articles import FOLDER, Article, Paragraph, Question, articles
from printed.faces import STYLES, font_of, look_of, wrap
from printed.sheet import UNSEEN, Print, Sheet
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Box, Document

__all__ = [
    "FOLDER", "STYLES", "UNSEEN", "Article", "Line", "Paragraph", "Question", "articles", "clean", "joined", "match",
    "paragraphs", "render", "roles", "wrap",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line.

    Attributes:
        page: from 1.
        text: as printed, single-spaced; □ for a character that none of the fonts has.
        box: what its glyphs cover, in points.
        role: "text" | "heading" | "header" | "footer" | "page number" | "sidebar" | "notice" | "caption".
        paragraph: id of the paragraph a text line belongs to.
        ends: what joins it to the paragraph's next line: " ", "" (the word goes on) or "-" (a hyphen to take off).
    """

    page: int
    text: str
    box: Box
    role: str
    paragraph: str | None = None
    ends: str = " "


def joined(lines: Sequence[Line]) -> str:
    """The text of a paragraph's lines, broken words made whole."""
    return "".join(line.text[:-1] if line.ends == "-" else line.text + line.ends for line in lines).strip()


def render(
    article: Article,
    path: str | Path,
    seed: int,
    style: str | None = None,
    others: Sequence[Article] = (),
    share: float | None = None,
) -> list[Line]:
    """Prints an article with everything that real documents put around and between its text.

    Args:
        article: its title and paragraphs are printed, its questions are not.
        path: the PDF to write.
        seed: fixes layout, fonts, phrases and order; see `UNSEEN`.
        style: "journal" (two columns), "report" (one) or "magazine" (one and a sidebar); None: the seed chooses.
        others: articles that sidebars name and quote; without any they name made-up topics.
        share: of all lines, those that aren't text, as aimed at; None: the seed chooses, from .22 to .4.

    Returns:
        Every printed line, in the order in which the file writes them.
    """
    look = look_of(seed, style)
    look = look if share is None else replace(look, share=share)
    pages = len(Sheet(article, look, seed, others, 1).lay().pages)
    return _draw(Sheet(article, look, seed, others, pages).lay(), path)


def clean(article: Article, path: str | Path, seed: int, style: str | None = None) -> list[Line]:
    """The same title and the same lines of text as `render` prints with this seed and style, and nothing else."""
    look = look_of(seed, style)
    return _draw(Sheet(article, look, seed, (), 0).lay(), path)


def _draw(sheet: Sheet, path: str | Path) -> list[Line]:
    look = sheet.look
    canvas = Canvas(str(path), pagesize=(look.width, look.height), invariant=1)
    canvas.setTitle(sheet.known["title"])
    lines = []
    for number, (prints, boxes) in enumerate(zip(sheet.pages, sheet.boxes, strict=True), 1):
        for box in boxes:
            canvas.setFillGray(0.93)
            canvas.rect(box.x0, look.height - box.y1, box.x1 - box.x0, box.y1 - box.y0, stroke=0, fill=1)
        canvas.setFillGray(0)
        for line in prints:
            end = line.pieces[0][0]
            for x, text in line.pieces:
                end = _show(canvas, line, x, look.height - line.y, text)
            text = " ".join(text for _, text in line.pieces)
            lines.append(Line(number, text, _box(line, end), line.role, line.paragraph, line.ends))
        canvas.showPage()
    canvas.save()
    return lines


def _show(canvas: Canvas, line: Print, x: float, y: float, text: str) -> float:
    """Draws one piece; returns where it ends (along the baseline)."""
    face = line.face
    if line.turned:
        canvas.saveState()
        canvas.translate(x, y)
        canvas.rotate(90)
        canvas.setFont(face.font, face.size)
        canvas.drawString(0, 0, text)
        canvas.restoreState()
        return x + face.width(text)
    for font, group in groupby(text.split(" "), lambda word: font_of(word, face.font)):
        words = " ".join(group)
        canvas.setFont(font, face.size)
        canvas.drawString(x, y, words, wordSpace=line.stretch)
        spaces = words.count(" ")
        x += canvas.stringWidth(words, font, face.size) + spaces * line.stretch + face.space + line.stretch
    return x - face.space - line.stretch


def _box(line: Print, end: float) -> Box:
    up, down = pdfmetrics.getAscentDescent(line.face.font, line.face.size)
    x = line.pieces[0][0]
    if line.turned:
        return Box(x - up, line.y - (end - x), x - down, line.y)
    return Box(x, line.y - up, end, line.y - down)


def match(document: Document, gold: Sequence[Line]) -> list[Line | None]:
    """For every line read the printed line it covers most of; None where it covers half of none."""
    printed: dict[int, list[Line]] = {}
    for line in gold:
        printed.setdefault(line.page, []).append(line)
    boxes = {page: np.array([line.box for line in lines]) for page, lines in printed.items()}
    found: list[Line | None] = []
    for unit in document.units:
        if unit.page not in boxes:
            found.append(None)
            continue
        theirs, own = boxes[unit.page], np.array(unit.box)
        sides = np.minimum(theirs[:, 2:], own[2:]) - np.maximum(theirs[:, :2], own[:2])
        shared = np.prod(np.clip(sides, 0, None), axis=1)
        best = int(shared.argmax())
        smaller = min(_area(own), _area(theirs[best]))
        found.append(printed[unit.page][best] if shared[best] > 0.5 * smaller else None)
    return found


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def roles(document: Document, gold: Sequence[Line]) -> list[str]:
    """The role of every line of `document`, read from the file that `gold` is of; "" where none is printed."""
    return [line.role if line else "" for line in match(document, gold)]


def paragraphs(document: Document, gold: Sequence[Line]) -> list[str | None]:
    """The paragraph id of every line of `document`; None where it isn't text."""
    return [line.paragraph if line else None for line in match(document, gold)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the PDFs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where SQuAD lies")
    parser.add_argument("--split", default="dev32")
    parser.add_argument("--count", type=int, default=3, help="how many articles")
    parser.add_argument("--seed", type=int, default=0, help="of the first article; the next has the next")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    everything = articles(options.folder, options.split)
    for seed, article in enumerate(everything[: options.count], options.seed):
        path = options.out / f"{re.sub(r'[^A-Za-z0-9]+', '_', article.title)}.pdf"
        gold = render(article, path, seed, others=everything)
        other = sum(line.role != "text" for line in gold)
        print(f"{path}: {gold[-1].page} pages, {len(gold)} lines, {other / len(gold):.0%} of them not text")


if __name__ == "__main__":
    main()
