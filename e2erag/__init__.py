"""Train a whole retrieval-augmented system end to end: document extraction → dense retriever → generator, one loss."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2erag.answering import Answer
    from e2erag.citation import Citation
    from e2erag.config import RAGConfig
    from e2erag.evaluation import Evaluation, evaluate
    from e2erag.questions import Question, QuestionError, read_questions
    from e2erag.rag import RAG

__version__ = "0.1.0"

__all__ = [
    "RAG",
    "Answer",
    "Citation",
    "Evaluation",
    "Question",
    "QuestionError",
    "RAGConfig",
    "evaluate",
    "read_questions",
]

_HOME = {
    "answering": ("Answer",),
    "citation": ("Citation",),
    "config": ("RAGConfig",),
    "evaluation": ("Evaluation", "evaluate"),
    "questions": ("Question", "QuestionError", "read_questions"),
    "rag": ("RAG",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import e2erag.extract` alone needn't wait for the models' libraries."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"e2erag.{module}"), name)
    raise AttributeError(f"module 'e2erag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
