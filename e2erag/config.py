"""How a system searches and answers."""

from dataclasses import dataclass, field
from typing import Any, get_args

from e2erag.extract import GateMode
from e2erag.joint import Reading
from e2erag.precision import Precision
from e2erag.retriever import IndexConfig


@dataclass(frozen=True)
class RAGConfig:
    """How a system searches and answers.

    Attributes:
        k: passages read per question.
        overlap: two passages that share more than this of their joint lines aren't both read.
        mode: gates of the index: "hard" drops shut lines, "soft" turns them down.
        read_carried: whether the reader sees the carried identity lines, or only the retriever does.
        reading: whether the reader sees passages one at a time ("marginal") or together ("concat"; "parallel" for a
            causal model, "fid" for an encoder–decoder), when it learns as when it answers; see `Joint.fused_rows`.
        precision: "auto" computes in bfloat16 where the processor does.
        index: where the index lies, and how it is searched. While a system learns it is one of its own, exact unless
            `FitConfig.search` says otherwise, in memory or beside this one's folder.
    """

    k: int = 4
    overlap: float = 0.3
    mode: GateMode = "hard"
    read_carried: bool = False
    reading: Reading = "marginal"
    precision: Precision = "auto"
    index: IndexConfig = field(default_factory=IndexConfig)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "RAGConfig":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**row, "index": IndexConfig(**row.get("index", {}))})

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.overlap <= 1 or self.mode not in ("hard", "soft"):
            raise ValueError(f"k must be at least 1, overlap in [0, 1] and mode hard or soft, got {self}")
        if self.reading not in get_args(Reading):
            raise ValueError(f"reading must be one of {', '.join(get_args(Reading))}, got {self.reading!r}")
