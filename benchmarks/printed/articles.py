"""SQuAD's articles, as passages and questions."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "../shared/data/squad"


@dataclass(frozen=True, slots=True)
class Paragraph:
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]
    paragraph: str  # id of the paragraph that holds the answer


@dataclass(frozen=True, slots=True)
class Article:
    title: str
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...] = ()


def articles(folder: str | Path = FOLDER, split: str = "dev32") -> list[Article]:
    """The articles of `<split>.passages.jsonl.gz`, with the questions of `<split>.qa.jsonl.gz` where there is one.

    Raises:
        FileNotFoundError: the folder doesn't hold the split.
    """
    passages, questions = (Path(folder) / f"{split}.{kind}.jsonl.gz" for kind in ("passages", "qa"))
    if not passages.is_file():
        raise FileNotFoundError(
            f"{passages} is missing: name the folder that holds the split's passages, one JSON row"
            " {id, title, text} per line, or another split"
        )
    asked: dict[str, list[Question]] = {}
    for row in _rows(questions) if questions.is_file() else ():
        question = Question(row["id"], row["question"], tuple(row["answers"]), row["gold"][0])
        asked.setdefault(question.paragraph, []).append(question)
    found: dict[str, list[Paragraph]] = {}
    for row in _rows(passages):
        found.setdefault(row["title"], []).append(Paragraph(row["id"], row["text"]))
    return [
        Article(title, tuple(paragraphs), tuple(q for p in paragraphs for q in asked.get(p.id, ())))
        for title, paragraphs in found.items()
    ]


def _rows(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
