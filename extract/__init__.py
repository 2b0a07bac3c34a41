"""Documents → lines → candidate passages, and the extractor that learns which lines and cuts are worth it."""

from e2erag.extract.candidates import Passage, identity, propose
from e2erag.extract.document import Box, Document, Page, ReadError, Unit
from e2erag.extract.extractor import CLOSED, Extraction, Extractor, ExtractorConfig, GateMode
from e2erag.extract.features import LAYOUT_FEATURES, layout_features
from e2erag.extract.read import read, read_many
from e2erag.extract.tokens import LineTokens

__all__ = [
    "CLOSED",
    "LAYOUT_FEATURES",
    "Box",
    "Document",
    "Extraction",
    "Extractor",
    "ExtractorConfig",
    "GateMode",
    "LineTokens",
    "Page",
    "Passage",
    "ReadError",
    "Unit",
    "identity",
    "layout_features",
    "propose",
    "read",
    "read_many",
]
