"""The command line: `e2erag demo | fit | ask | evaluate`; every flag can stand in a YAML file given by --config."""

from pathlib import Path

from jsonargparse import auto_cli

from e2erag.demo import demo
from e2erag.evaluate import METRICS
from e2erag.evaluate import evaluate as evaluate_system
from e2erag.rag import GENERATOR, RAG, RETRIEVER
from e2erag.train import FitConfig


def fit(
    files: str | list[str],
    questions: str,
    out: str,
    system: str | None = None,
    retriever: str = RETRIEVER,
    generator: str = GENERATOR,
    settings: FitConfig = FitConfig(),  # noqa: B008 - frozen
) -> None:
    """Index files, train all three stages on questions, and save the system.

    Args:
        files: paths, globs or folders of PDFs.
        questions: a jsonl file with `question` and `answers`.
        out: folder of the trained system.
        system: a saved system to go on from; else the two models below.
        retriever: hub id or local folder of a sentence-transformers model.
        generator: hub id or local folder of a causal language model.
        settings: of the run.
    """
    rag = RAG.from_pretrained(system, retriever=retriever, generator=generator)
    rag.index(files)
    rag.fit(questions, settings)
    rag.save_pretrained(out)
    print(f"saved to {out}")


def ask(system: str, question: str) -> None:
    """Answer a question with citations.

    Args:
        system: a saved system.
        question: what to ask.
    """
    answer = RAG.from_pretrained(system).ask(question)
    print(answer.text)
    for citation in answer.citations:
        print(f"  {citation}")


def evaluate(system: str, questions: str, files: str | list[str] | None = None) -> None:
    """Recall of the gold page, exact match and F1 over a question file.

    Args:
        system: a saved system.
        questions: a jsonl file with `question`, `answers`, and `file` and `page` where known.
        files: what to index first; else what the system has indexed.
    """
    rag = RAG.from_pretrained(system)
    if files:
        rag.index(files)
    result = evaluate_system(rag, Path(questions))
    for metric in METRICS:
        low, high = result.interval(metric)
        print(f"{metric:12} {result[metric]:8.3f}   95 % [{low:.3f}, {high:.3f}]")


def main() -> None:
    """Run a command; what the user can mend is told in one message, without a traceback."""
    try:
        auto_cli({"demo": demo, "fit": fit, "ask": ask, "evaluate": evaluate}, as_positional=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"e2erag: {error}") from None


if __name__ == "__main__":
    main()
