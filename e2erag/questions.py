"""Question files: jsonl with `question`, `answers` (or `answer`), and `file` and `page` where they are known."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question and its accepted answers; `file` (a name) and `page` (from 1) serve evaluation, and
    training only where the objective is `contrastive`."""

    question: str
    answers: tuple[str, ...]
    file: str | None = None
    page: int | None = None


class QuestionError(ValueError):
    """A question file, or a row of one, that isn't one."""


def read_questions(source: str | Path | Iterable[Question | Mapping[str, Any]]) -> list[Question]:
    """Questions from a jsonl file, or from rows that are already in memory.

    Raises:
        QuestionError: no such file, a line that isn't JSON, a row without its columns, or no row at all.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file():
            raise QuestionError(f"{path}: no such file; a question file is jsonl with `question` and `answers`")
        with open(path, encoding="utf-8") as file:
            rows = [_parse(line, f"{path}, line {n}") for n, line in enumerate(file, 1) if line.strip()]
    else:
        rows = [row if isinstance(row, Question) else question(row, f"row {n}") for n, row in enumerate(source, 1)]
    if not rows:
        raise QuestionError(f"{source}: no question in it; a question file is jsonl with `question` and `answers`")
    return rows


def check_asked(questions: Iterable[str]) -> list[str]:
    """Questions as a system is asked them: several, and none of them blank."""
    if isinstance(questions, str):
        raise ValueError(f"questions are a list of texts, got the one text {questions!r}: give [question]")
    asked = list(questions)
    for question in asked:
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"a question is a non-empty text, got {question!r}: ask something")
    return asked


def _parse(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise QuestionError(f"{where}: not JSON ({error}); every line must be one object") from None
    return question(row, where)


def question(row: Any, where: str = "row") -> Question:
    """One row, a mapping with the columns of a question file, checked."""
    if not isinstance(row, Mapping):
        raise QuestionError(f"{where}: every row must be an object with `question` and `answers`, got {row!r:.80}")
    answers = row.get("answers", row.get("answer"))
    if isinstance(answers, (str, int, float)):
        answers = [answers]
    if "question" not in row or answers is None:
        raise QuestionError(
            f"{where}: the columns wanted are `question` and `answers` (or `answer`), and optionally `file` and "
            f"`page`; this row has {', '.join(f'`{name}`' for name in row) or 'none'}"
        )
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        raise QuestionError(f"{where}: `question` must be a non-empty text, got {text!r}")
    texts = tuple(str(answer).strip() for answer in answers)
    if not texts or not all(texts):
        raise QuestionError(f"{where}: `answers` must hold at least one non-empty text, got {answers!r}")
    page = row.get("page")
    return Question(text.strip(), texts, row.get("file"), None if page is None else int(page))
