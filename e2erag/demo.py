"""`make demo`: real accident reports, questions about unseen ones, before and after training all three stages."""

import json
import subprocess
import sys
import time
from pathlib import Path

from e2erag.answering import Answer
from e2erag.evaluation import Evaluation, evaluate
from e2erag.questions import read_questions
from e2erag.rag import RAG
from e2erag.retriever import RetrieverConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "ntsb"


def demo(folder: str = "runs/demo", examples: str | None = None, epochs: int = 3, seed: int = 0) -> None:
    """Train on six accident reports, answer questions about four others, and show what changed.

    Args:
        folder: where the trained system goes; metrics and picture go to `<folder>-log`.
        examples: a folder with PDFs, train.jsonl and test.jsonl; the repository's reports by default.
        epochs: passes over the training questions.
        seed: of the extractor and the run.
    """
    from e2erag.draw import draw_page  # needs Pillow, which the other commands don't

    start = time.perf_counter()
    source = Path(examples or EXAMPLES)
    train, test = read_questions(source / "train.jsonl"), read_questions(source / "test.jsonl")
    reports = sorted(source.glob("*.pdf"))
    known = {question.file for question in train}
    seen = [path for path in reports if path.name in known]

    say(f"{len(reports)} reports; {len(train)} questions on {len(seen)} to learn from, {len(test)} on the rest to test")
    # A report's number tells it from the others, and an encoder sees little of one that it hasn't learned.
    rag = RAG.from_pretrained(seed=seed, retrieval=RetrieverConfig(bm25=1.0))
    rag.index(reports)
    assert rag.corpus is not None
    say(f"before: {len(rag.corpus)} lines, {len(rag.corpus.passages)} candidate passages; answering the test questions")
    before = evaluate(rag, test)

    say("training extractor, retriever and generator on −log p(y|x) of the answers; no page is labelled")
    rag.index(seen)
    run = rag.fit(train, epochs=epochs, seed=seed, folder=f"{folder}-log")
    say(f"{run.steps} steps in {run.seconds:.0f} s; metrics in {run.folder}/metrics.csv")

    say("after: the same test questions over all reports, gates soft and hard")
    rag.index(reports)
    after = evaluate(rag, test)
    print(table(before, after.soft, after.hard), flush=True)

    asked = [test[i] for i in (len(test) // 8, len(test) // 2, 7 * len(test) // 8)]
    answers = rag.ask_many([question.question for question in asked])
    for question, answer in zip(asked, answers, strict=True):
        print(f"\n{question.question}\n  {answer.text}   (expected: {question.answers[0]})")
        print(f"  {answer.citations[0]}", flush=True)
    best = answers[0].citations[0]
    picture = draw_page(rag, best.file, best.page, Path(f"{folder}-log") / "page.png", answers[0].citations)
    say(f"gates and citations drawn on page {best.page} of {Path(best.file).name}: {picture}")

    rag.save_pretrained(folder)
    same = fresh_process_agrees(folder, [question.question for question in asked], answers)
    say(f"saved to {folder}, loaded in a fresh process: {'the same answers' if same else 'OTHER ANSWERS'}")
    say(f"{time.perf_counter() - start:.0f} s in all{peak_memory()}")
    if not same:
        raise SystemExit("the loaded system answers differently from the one that was saved")


def table(before: Evaluation, soft: Evaluation, hard: Evaluation) -> str:
    """One table, before | after, with 95 % bootstrap intervals over the questions."""
    rows: list[tuple[str, ...]] = [("", "before", "after, soft gates", "after, hard gates")]
    for label, metric in (
        ("gold page first (recall@1)", "recall@1"),
        ("gold page among five (recall@5)", "recall@5"),
        ("exact match", "exact match"),
        ("F1", "F1"),
        ("passage tokens read per answer", "tokens read"),
    ):
        rows.append((label, *(_cell(evaluation, metric) for evaluation in (before, soft, hard))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n" + "\n".join(lines)


def _cell(evaluation: Evaluation, metric: str) -> str:
    if metric == "tokens read":
        return f"{evaluation[metric]:.0f}"
    low, high = evaluation.interval(metric)
    return f"{evaluation[metric]:.2f} [{low:.2f}, {high:.2f}]"


def fresh_process_agrees(folder: str, questions: list[str], answers: list[Answer]) -> bool:
    """Load the saved system in a new interpreter and compare its answers' texts."""
    code = (
        "import json, sys; from e2erag import RAG; folder, *questions = json.load(sys.stdin); "
        "print(json.dumps([a.text for a in RAG.from_pretrained(folder).ask_many(questions)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([folder, *questions]),
        capture_output=True,
        text=True,
        check=True,
    )
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return texts == [answer.text for answer in answers]


def peak_memory() -> str:
    """In words, where the system tells."""
    if sys.platform == "win32":
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    return f", peak memory {peak:.1f} GB"


def say(text: str) -> None:
    print(f"• {text}", flush=True)
