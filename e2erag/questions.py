"""Question files: jsonl with `question`, `answers` (or `answer`), and `file` and `page` where they are known."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


class QuestionError(ValueError):
    """A question file, or a row of one, that isn't one."""


@dataclass(frozen=True)
class Question:
    """A question and its accepted answers; `file` (a name) and `page` (from 1) serve evaluation, and
    training only where the objective is `contrastive`.

    Raises:
        QuestionError: the question or an answer is blank or no text, or there is no answer.
    """

    question: str
    answers: tuple[str, ...]
    file: str | None = None
    page: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise QuestionError(f"`question` must be a non-empty text, got {self.question!r}")
        texts = () if isinstance(self.answers, str) else self.answers
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise QuestionError(f"`answers` must hold at least one non-empty text, got {self.answers!r}")


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
    try:
        texts = tuple(str(answer).strip() for answer in answers)
        asked = Question(row["question"], texts, row.get("file"), _page(row.get("page")))
    except QuestionError as error:
        raise QuestionError(f"{where}: {error}") from None
    return replace(asked, question=asked.question.strip())


def _page(given: Any) -> int | None:
    digits = str(given)
    if isinstance(given, float) and given.is_integer():  # of a table's column of numbers
        digits = str(int(given))
    if given is None:
        return None
    if not (digits.isdecimal() and int(digits) >= 1):
        raise QuestionError(f"`page` must be a page's number, from 1, got {given!r}")
    return int(digits)
