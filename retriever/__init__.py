"""Questions and passages as vectors, the index, and p(z | x) over the whole corpus."""

from e2erag.retriever.bm25 import BM25
from e2erag.retriever.encoder import Encoder
from e2erag.retriever.index import OVERFETCH, Hits, Index, Spans
from e2erag.retriever.line_sums import LineSums
from e2erag.retriever.retriever import Retriever, RetrieverConfig, log_prob_found, log_tail

__all__ = [
    "BM25",
    "OVERFETCH",
    "Encoder",
    "Hits",
    "Index",
    "LineSums",
    "Retriever",
    "RetrieverConfig",
    "Spans",
    "log_prob_found",
    "log_tail",
]
