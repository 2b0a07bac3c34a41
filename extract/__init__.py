"""Documents → lines → candidate passages, and the extractor that learns which lines and cuts are worth it."""

from e2erag.extract.candidates import KINDS, READINGS, Kind, Passage, Reading, identity, propose, table_texts
from e2erag.extract.document import Box, Cell, Document, Page, ReadError, Unit
from e2erag.extract.extractor import CLOSED, Extraction, Extractor, ExtractorConfig, GateMode
from e2erag.extract.features import LAYOUT_FEATURES, layout_features
from e2erag.extract.read import read, read_many
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
    "Unit",
    "identity",
    "layout_features",
    "propose",
    "read",
    "read_many",
    "table_texts",
]
