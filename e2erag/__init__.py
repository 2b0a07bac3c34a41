"""Train a whole retrieval-augmented system end to end: document extraction → dense retriever → generator, one loss."""

from e2erag.citation import Citation
from e2erag.evaluate import Evaluation, evaluate
from e2erag.questions import Question, QuestionError, read_questions
from e2erag.rag import RAG, Answer, RAGConfig

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
