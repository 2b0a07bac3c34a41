"""Questions and passages as vectors, the index, and p(z | x) over the whole corpus."""

from e2erag.retriever.approximate import FaissIndex, choose
from e2erag.retriever.bm25 import BM25
from e2erag.retriever.choice import IndexConfig
from e2erag.retriever.encoder import Encoder
from e2erag.retriever.exact import ExactIndex
from e2erag.retriever.index import Hits, Index, Source, Without
from e2erag.retriever.ledger import StoreError
from e2erag.retriever.line_sums import LineSums
from e2erag.retriever.milvus import MilvusIndex
from e2erag.retriever.retriever import Retriever, RetrieverConfig, log_prob_found, log_tail
from e2erag.retriever.sharded import ParallelIndex, ShardedIndex
from e2erag.retriever.softmax import Softmax
from e2erag.retriever.spans import OVERFETCH, Spans, repeats
from e2erag.retriever.store import Store

__all__ = [
    "BM25",
    "OVERFETCH",
    "Encoder",
    "ExactIndex",
    "FaissIndex",
    "Hits",
    "Index",
    "IndexConfig",
    "LineSums",
    "MilvusIndex",
    "ParallelIndex",
    "Retriever",
    "RetrieverConfig",
    "ShardedIndex",
    "Softmax",
    "Source",
    "Spans",
    "Store",
    "StoreError",
    "Without",
    "choose",
    "log_prob_found",
    "log_tail",
    "repeats",
]
