"""Judged collections: BEIR folders, TREC files and the measures over them."""

import json
import math
from pathlib import Path

import pytest

from e2erag import RAG, evaluate
from e2erag.collections import Collection, CollectionError, measure, read_judgements, read_run, write_run

CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift of a wing"},
    {"_id": "d2", "title": "", "text": "a slipstream"},
    {"_id": "d3", "text": "heat"},
]
QUERIES = [{"_id": "q1", "text": "wing"}, {"_id": "q2", "text": "heat"}, {"_id": "q3", "text": "not judged"}]
JUDGED = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td3\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(JUDGED)
    return tmp_path


def test_a_beir_folder_is_read_as_it_is(folder: Path) -> None:
    """Titles stand before texts; a query that the split doesn't judge is left out."""
    collection = Collection.beir(folder)
    assert collection.passages == {"d1": "Wings lift of a wing", "d2": "a slipstream", "d3": "heat"}
    assert collection.queries == {"q1": "wing", "q2": "heat"}
    assert collection.judgements == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "title": null, "text": null}\n')
    (folder / "qrels" / "test.tsv").write_text(JUDGED + "\n")
    assert Collection.beir(folder).passages == {"d1": ""}


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("corpus.jsonl", None, "corpus.jsonl must be there, and isn't: a BEIR folder holds"),
        ("corpus.jsonl", '{"id": "d1"}\n', "line 1: every line must be a JSON object with _id and text, got"),
        ("queries.jsonl", "[1]\n", "line 1: every line must be a JSON object with _id and text"),
        ("qrels/test.tsv", "q1\td1\n", "line 1: a judgement is a query, a passage and a whole number"),
        ("qrels/test.tsv", JUDGED + "q1\td1\thigh\n", "line 5: a judgement is"),
        ("qrels/test.tsv", JUDGED + "q9\td1\t1\n", "judges query 'q9', which queries.jsonl must hold and doesn't"),
    ],
)
def test_another_layout_is_told_where_and_what(folder: Path, file: str, text: str | None, told: str) -> None:
    """File, line, rule and what came."""
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(CollectionError, match=told):
        Collection.beir(folder)


def test_a_run_is_written_as_trec_reads_it(tmp_path: Path) -> None:
    """Best first, ranks from 1, equal scores as trec_eval breaks them; read back it is the same run."""
    run = {"q1": {"d2": 1.5, "d1": 3.25, "d3": 1.5}, "q2": {"d3": -1.0}}
    write_run(tmp_path / "a.run", run, "mine")
    assert (tmp_path / "a.run").read_text().splitlines() == [
        "q1 Q0 d1 1 3.25 mine", "q1 Q0 d3 2 1.5 mine", "q1 Q0 d2 3 1.5 mine", "q2 Q0 d3 1 -1 mine",
    ]  # fmt: skip
    assert read_run(tmp_path / "a.run") == run
    with pytest.raises(CollectionError, match="an id has none in it, got 'a b'"):
        write_run(tmp_path / "b.run", {"q1": {"a b": 1.0}})
    (tmp_path / "c.run").write_text("q1 d1 3.25\n")
    with pytest.raises(CollectionError, match="line 1: a run's line is query Q0 passage rank score tag"):
        read_run(tmp_path / "c.run")


def test_judgements_are_read_in_trecs_layout(tmp_path: Path) -> None:
    """Four fields, of which the second means nothing."""
    (tmp_path / "qrels").write_text("q1 0 d1 2\nq1 0 d2 -1\n\nq2 0 d3 1\n")
    assert read_judgements(tmp_path / "qrels") == {"q1": {"d1": 2, "d2": -1}, "q2": {"d3": 1}}
    with pytest.raises(CollectionError, match="qrels2 must be there, and isn't: check the path"):
        read_judgements(tmp_path / "qrels2")
    (tmp_path / "qrels").write_text("q1 d1 2\n")
    with pytest.raises(CollectionError, match=r"line 1: a line has query, a field that nobody uses, .* got 'q1 d1 2'"):
        read_judgements(tmp_path / "qrels")


def test_measures_are_those_of_the_formulas() -> None:
    """nDCG = Σ grade/log2(1 + rank) over that of the best order; a query of which nothing was found counts 0."""
    judged = {"q1": {"d1": 2, "d2": 1, "d3": 0}, "q2": {"d3": 1}, "q3": {"d1": 1}}
    run = {"q1": {"d2": 3.0, "d4": 2.0, "d1": 1.0}, "q2": {"d1": 1.0, "d3": 0.5}, "unjudged": {"d1": 1.0}}
    scores = measure(run, judged, ("nDCG@10", "RR@10", "R@1"))
    best = 2 + 1 / math.log2(3)
    assert scores["nDCG@10"].tolist() == pytest.approx([(1 + 2 / 2) / best, 1 / math.log2(3), 0])
    assert scores["RR@10"].tolist() == [1, 0.5, 0]
    assert scores["R@1"].tolist() == [0.5, 0, 0]


def test_recall_of_the_gold_page_is_success_at_k_of_ir_measures(rag: RAG) -> None:
    """Every page of a small collection asked for by each of three questions: some are found at 1, some at 5, some not;
    a page named by file and number is relevant with each passage that has a line on it."""
    pages = {(document.file, page.number) for document in rag.corpus.documents for page in document.pages}
    rows = [
        {"question": question, "answers": ["85"], "file": file, "page": page}
        for question in ("seats ?", "registration", "who was the pilot ?")
        for file, page in sorted(pages)
    ]
    judged: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows):
        for passage, (j, start, stop, _) in enumerate(rag.corpus.spans.spans.tolist()):
            document, first = rag.corpus.documents[j], rag.corpus.first_line[j]
            on = {unit.page for unit in document.units[start - first : stop - first]}
            judged.setdefault(str(number), {})[str(passage)] = int(document.file == row["file"] and row["page"] in on)
        ids = rag.search([row["question"]], 5).ids[0].tolist()
        run[str(number)] = {str(passage): -float(rank) for rank, passage in enumerate(ids) if passage >= 0}
    result, theirs = evaluate(rag, rows), measure(run, judged, ("Success@1", "Success@5"))
    for column, k in enumerate((1, 5)):
        assert result.scores[:, column].tolist() == theirs[f"Success@{k}"].tolist()
        assert 0 < result[f"recall@{k}"] < 1
    assert result["recall@1"] < result["recall@5"]
