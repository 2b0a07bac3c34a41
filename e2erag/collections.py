"""Test collections for retrieval: BEIR folders read as they are, TREC runs and judgements written and read, measures by
`ir_measures` (extra `ir`)."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from e2erag.artefact import write_file

Run = Mapping[str, Mapping[str, float]]
"""Scores of the passages found, by query and passage."""
Judgements = Mapping[str, Mapping[str, int]]
"""Grades, by query and passage; what isn't judged counts as 0."""
MEASURES = ("nDCG@10", "RR@10", "R@1", "R@10", "R@100")
"""In ir_measures' notation."""
_BEIR = "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv"


class CollectionError(ValueError):
    """A folder or file isn't the layout it was read as. The text names the place, the rule and what came."""


@dataclass(frozen=True)
class Collection:
    """Passages and queries by id, and what was judged of them."""

    passages: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]

    @classmethod
    def beir(cls, folder: str | Path, split: str = "test") -> "Collection":
        """`corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text) and `qrels/SPLIT.tsv` (Thakur et al. 2021).

        A title stands before its text. Queries that the split doesn't judge are left out.

        Raises:
            CollectionError: a file or a field is missing, or a grade isn't a whole number.
        """
        folder = Path(folder)
        passages = {
            key: f"{title} {text}".strip() for key, text, title in _rows(folder / "corpus.jsonl", ("text", "title"))
        }
        queries = {key: text for key, text, _ in _rows(folder / "queries.jsonl", ("text", ""))}
        path = folder / "qrels" / f"{split}.tsv"
        judgements: dict[str, dict[str, int]] = {}
        with _opened(path, _BEIR) as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                if not row or (number == 1 and row[-1:] == ["score"]):
                    continue
                _judge(judgements, row, path, number)
        unknown = [key for key in judgements if key not in queries]
        if unknown:
            raise CollectionError(f"{path} judges query {unknown[0]!r}, which queries.jsonl must hold and doesn't")
        return cls(passages, {key: queries[key] for key in judgements}, judgements)


def read_judgements(path: str | Path) -> dict[str, dict[str, int]]:
    """TREC's qrels: query, a field that nobody uses, passage, grade."""
    path = Path(path)
    found: dict[str, dict[str, int]] = {}
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                fields = line.split()
                if len(fields) != 4:
                    raise CollectionError(
                        f"{path}, line {number}: a line has query, a field that nobody uses, passage and grade, got "
                        f"{line.strip()!r}"
                    )
                _judge(found, [fields[0], *fields[2:]], path, number)
    return found


def write_run(path: str | Path, run: Run, tag: str = "e2erag") -> None:
    """TREC's run file: query Q0 passage rank score tag, the best first; equal scores by passage, as trec_eval reads
    them (the higher id first)."""
    names = [tag, *run, *(name for found in run.values() for name in found)]
    for name in names:
        if not name or name.split() != [name]:
            raise CollectionError(f"a run file's fields stand between blanks, so an id has none in it, got {name!r}")
    lines = []
    for query, found in run.items():
        ranked = sorted(found.items(), key=lambda one: (one[1], one[0]), reverse=True)
        lines += [f"{query} Q0 {name} {rank} {score:.9g} {tag}\n" for rank, (name, score) in enumerate(ranked, 1)]
    write_file(Path(path), "".join(lines))


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """A TREC run file; ranks are those of the scores."""
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                query, _, name, _, score, _ = fields
                run.setdefault(query, {})[name] = float(score)
            except ValueError:
                raise CollectionError(
                    f"{path}, line {number}: a run's line is query Q0 passage rank score tag, got {line.strip()!r}"
                ) from None
    return run


def measure(
    run: Run, judgements: Judgements, measures: Iterable[str] = MEASURES
) -> dict[str, Float[np.ndarray, " queries"]]:
    """Each measure of every judged query, in the order of the judgements; a query of which nothing was found scores 0.

    Args:
        measures: in ir_measures' notation: nDCG@10, RR@10, R@100, AP, P@5 …

    Raises:
        ImportError: ir_measures isn't installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError('retrieval is measured by ir_measures: pip install "e2erag[ir]"') from error
    wanted = {ir_measures.parse_measure(name): name for name in measures}
    place = {query: i for i, query in enumerate(judgements)}
    scores = {name: np.zeros(len(place)) for name in wanted.values()}
    plain = {query: dict(found) for query, found in run.items() if query in place}
    for metric in ir_measures.iter_calc(list(wanted), {q: dict(j) for q, j in judgements.items()}, plain):
        scores[wanted[metric.measure]][place[metric.query_id]] = metric.value
    return scores


def _rows(path: Path, fields: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """Id, the first field and (where it is there) the second of each row of a jsonl file."""
    with _opened(path, _BEIR) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield str(row["_id"]), str(row[fields[0]] or ""), str(row.get(fields[1]) or "")
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
                raise CollectionError(
                    f"{path}, line {number}: every line must be a JSON object with _id and {fields[0]}, got "
                    f"{line.strip()[:80]!r}"
                ) from None


def _judge(judgements: dict[str, dict[str, int]], row: list[str], path: Path, number: int) -> None:
    try:
        query, passage, grade = row
        judgements.setdefault(query, {})[passage] = int(grade)
    except ValueError:
        raise CollectionError(
            f"{path}, line {number}: a judgement is a query, a passage and a whole number, got {row!r}"
        ) from None


def _opened(path: Path, layout: str = "check the path"):  # type: ignore[no-untyped-def]  # a text file, as open() gives it
    if not path.is_file():
        raise CollectionError(f"{path} must be there, and isn't: {layout}")
    return open(path, encoding="utf-8", newline="")
