"""How well a system finds and answers: recall of the gold page, exact match and F1 by SQuAD's rules."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torchmetrics.functional.text import squad

from e2erag.answering import Answer
from e2erag.corpus import is_called
from e2erag.extract import GateMode, Passage
from e2erag.indexing import NothingLeft
from e2erag.questions import Question, read_questions
from e2erag.rag import RAG

METRICS = ("recall@1", "recall@5", "exact match", "F1", "tokens read")


@dataclass(frozen=True)
class Evaluation:
    """Per question one row of `scores` (columns `METRICS`; NaN where it can't be known), and the answers.

    recall@k: the page with the answer (the question's `file` and `page`) among the k best passages' own lines.
    tokens read: of passages, per answer.

    Attributes:
        mode: of the gates.
        search: kind of the index that was searched, as in `IndexConfig`.
        other: the same questions with the gates in the other mode; None where it was left out or makes no difference.
    """

    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    scores: Float[np.ndarray, "questions metrics"]
    mode: GateMode = "hard"
    search: str = "exact"
    other: "Evaluation | None" = None

    def __getitem__(self, metric: str) -> float:
        """Mean over the questions for which the metric is known; NaN where that is none."""
        return _mean(self._known(self.scores, metric))

    def interval(self, metric: str, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the mean over questions."""
        return bootstrap(self._known(self.scores, metric), samples, seed)

    @property
    def soft(self) -> "Evaluation":
        """With gates that turn lines down; this where the modes don't differ."""
        return self.other if self.other is not None and self.mode == "hard" else self

    @property
    def hard(self) -> "Evaluation":
        """With gates that drop lines; this where the modes don't differ."""
        return self.other if self.other is not None and self.mode == "soft" else self

    def gap(self, metric: str) -> float:
        """Soft − hard: what a threshold on the gates changes, mean over the questions."""
        return _mean(self._known(self.soft.scores - self.hard.scores, metric))

    def gap_interval(self, metric: str, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the gap, question by question."""
        return bootstrap(self._known(self.soft.scores - self.hard.scores, metric), samples, seed)

    def _known(self, scores: Float[np.ndarray, "questions metrics"], metric: str) -> Float[np.ndarray, " known"]:
        column = scores[:, METRICS.index(metric)]
        return column[~np.isnan(column)]

    def __str__(self) -> str:
        """A line per metric with its 95 % interval: soft, hard and soft − hard, or what is common to both modes."""
        columns = {"": self} if self.other is None else {"soft": self.soft, "hard": self.hard}
        rows = [["", *columns, *(["soft − hard"] if self.other else [])]] if self.other else []
        for metric in METRICS:
            cells = [_cell(each[metric], each.interval(metric)) for each in columns.values()]
            gap = [_cell(self.gap(metric), self.gap_interval(metric), "+")] if self.other else []
            rows.append([metric, *cells, *gap])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.soft.search != self.hard.search:
            lines.append(f"searched: soft by {self.soft.search}, hard by {self.hard.search}, which the gap holds too")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Means and intervals per metric, soft, hard and their gap; null where a metric isn't known."""
        both = {"soft": self.soft, "hard": self.hard}
        return {
            "questions": len(self.questions),
            "mode": self.mode,
            "modes_differ": self.other is not None,
            "search": {name: each.search for name, each in both.items()},
            "metrics": {
                metric: {name: _row(each[metric], each.interval(metric)) for name, each in both.items()}
                | {"gap": _row(self.gap(metric), self.gap_interval(metric))}
                for metric in METRICS
            },
        }


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _cell(mean: float, interval: tuple[float, float], sign: str = "") -> str:
    return f"{mean:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _row(mean: float, interval: tuple[float, float]) -> dict[str, Any]:
    """NaN is no JSON."""
    known = not np.isnan(mean)
    return {"mean": mean if known else None, "interval": list(interval) if known else None}


def bootstrap(values: Float[np.ndarray, " n"], samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; NaN of nothing."""
    if not len(values):
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).choice(values, (samples, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def evaluate(
    rag: RAG,
    questions: str | Path | Iterable[Question | Mapping[str, Any]],
    citations: bool = False,
    both: bool = True,
) -> Evaluation:
    """Ask every question and compare.

    Args:
        citations: whether to cite too, in the system's own mode, at a reader pass per answer.
        both: whether to ask with the gates in the other mode as well, where that makes a difference. Its index is made
            beside the system's from the same lines and tokens, in memory or in the folder `.aside` of the one it has,
            and is gone afterwards. (An index that is searched from the folder it was saved in, or by Milvus, is held
            against an exact one, and `search` says so.) Where hard gates leave nothing, that is warned of.
    """
    rows = read_questions(questions)
    own = _measured(rag, rows, citations)
    corpus, _ = rag._ready()
    if not (both and rag.indexer.parts(corpus)):
        return own
    index = rag.config.index
    other: GateMode = "soft" if own.mode == "hard" else "hard"
    kind = "exact" if index.folder is None or index.kind == "milvus" else index.kind
    try:
        with rag.in_mode(other, kind, learns=False):
            return replace(own, other=_measured(rag, rows, False))
    except NothingLeft as error:
        warnings.warn(f"only {own.mode} gates are measured, for the others leave nothing: {error}", stacklevel=2)
        return own


def _measured(rag: RAG, rows: Sequence[Question], citations: bool) -> Evaluation:
    """In the mode that the system is in."""
    texts = [row.question for row in rows]
    answers = rag.ask_many(texts, citations)
    found = [[rag.passage(i) for i in ids if i >= 0] for ids in rag.search(texts, k=5).ids.tolist()]
    scores = [_score(*one) for one in zip(rows, answers, found, strict=True)]
    return Evaluation(tuple(rows), tuple(answers), np.asarray(scores), rag.config.mode, rag.config.index.kind)


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
