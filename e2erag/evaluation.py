"""How well a system finds and answers: recall of the gold page, exact match and F1 by SQuAD's rules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torchmetrics.functional.text import squad

from e2erag.answering import Answer
from e2erag.corpus import is_called
from e2erag.extract import Passage
from e2erag.questions import Question, read_questions
from e2erag.rag import RAG

METRICS = ("recall@1", "recall@5", "exact match", "F1", "tokens read")


@dataclass(frozen=True)
class Evaluation:
    """Per question one row of `scores` (columns `METRICS`; NaN where it can't be known), and the answers.

    recall@k: the page with the answer (the question's `file` and `page`) among the k best passages' own lines.
    tokens read: of passages, per answer.
    """

    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    scores: Float[np.ndarray, "questions metrics"]

    def __getitem__(self, metric: str) -> float:
        """Mean over the questions for which the metric is known; NaN where that is none."""
        column = self.scores[:, METRICS.index(metric)]
        known = column[~np.isnan(column)]
        return float(known.mean()) if len(known) else float("nan")

    def interval(self, metric: str, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the mean over questions."""
        column = self.scores[:, METRICS.index(metric)]
        return bootstrap(column[~np.isnan(column)], samples, seed)


def bootstrap(values: Float[np.ndarray, " n"], samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; NaN of nothing."""
    if not len(values):
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).choice(values, (samples, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def evaluate(
    rag: RAG, questions: str | Path | Iterable[Question | Mapping[str, Any]], citations: bool = False
) -> Evaluation:
    """Ask every question and compare; `citations=True` also cites, at a reader pass per answer."""
    rows = read_questions(questions)
    texts = [row.question for row in rows]
    answers = rag.ask_many(texts, citations)
    found = [[rag.passage(i) for i in ids if i >= 0] for ids in rag.search(texts, k=5).ids.tolist()]
    scores = [_score(*one) for one in zip(rows, answers, found, strict=True)]
    return Evaluation(tuple(rows), tuple(answers), np.asarray(scores))


def on_gold_page(row: Question, passage: Passage) -> bool:
    """Whether a passage has lines of its own on the page that a question names."""
    if row.file is None or row.page is None:
        return False
    return is_called(passage.document, row.file) and row.page in passage.pages


def _score(row: Question, answer: Answer, found: list[Passage]) -> tuple[float, ...]:
    agreement = squad(
        [{"prediction_text": answer.text, "id": "0"}],
        [{"answers": {"answer_start": [0] * len(row.answers), "text": list(row.answers)}, "id": "0"}],
    )
    recall = [float("nan")] * 2
    if row.file is not None and row.page is not None:
        hit = [on_gold_page(row, passage) for passage in found]
        recall = [float(any(hit[:1])), float(any(hit))]
    return (*recall, float(agreement["exact_match"]) / 100, float(agreement["f1"]) / 100, float(answer.tokens_read))
