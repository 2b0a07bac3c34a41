"""Documents → lines → candidate passages, and the extractor that learns which lines and cuts are worth it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from e2erag.extract.document import Box, Cell, Document, Page, ReadError, Unit
from e2erag.extract.read import read
from e2erag.extract.stream import Report, Stream, read_many, read_report, stream

if TYPE_CHECKING:
    from e2erag.extract.candidates import (
        KINDS,
        READINGS,
        Kind,
        Passage,
        Reading,
        distinct,
        identity,
        passage_at,
        propose,
        table_texts,
    )
    from e2erag.extract.extractor import CLOSED, Extraction, Extractor, ExtractorConfig, GateMode
    from e2erag.extract.features import LAYOUT_FEATURES, layout_features
    from e2erag.extract.tokens import LineTokens

__all__ = [
    "CLOSED",
    "KINDS",
    "LAYOUT_FEATURES",
    "READINGS",
    "Box",
    "Cell",
    "Document",
    "Extraction",
    "Extractor",
    "ExtractorConfig",
    "GateMode",
    "Kind",
    "LineTokens",
    "Page",
    "Passage",
    "ReadError",
    "Reading",
    "Report",
    "Stream",
    "Unit",
    "distinct",
    "identity",
    "layout_features",
    "passage_at",
    "propose",
    "read",
    "read_many",
    "read_report",
    "stream",
    "table_texts",
]

_HOME = {
    "candidates": tuple("KINDS READINGS Kind Passage Reading distinct identity passage_at propose table_texts".split()),
    "extractor": ("CLOSED", "Extraction", "Extractor", "ExtractorConfig", "GateMode"),
    "features": ("LAYOUT_FEATURES", "layout_features"),
    "tokens": ("LineTokens",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: what only reads files, a worker above all, needn't wait for torch."""
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"e2erag.extract.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'e2erag.extract' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
