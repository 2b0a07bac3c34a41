"""The files of a saved system, part by part: what finds passages, and the documents with their candidates."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from e2erag.artefact import ManifestError
from e2erag.corpus import Corpus
from e2erag.extract import Document, Extractor, ExtractorConfig
from e2erag.finder import Finder
from e2erag.retriever import Retriever, RetrieverConfig

DOCUMENTS, CANDIDATES = "documents.jsonl", "candidates.safetensors"

# A file name that isn't UTF-8 has halves of surrogate pairs in it (PEP 383).
_TEXT: Any = {"encoding": "utf-8", "errors": "surrogatepass"}


def save_finder(model: Finder, folder: Path) -> dict[str, Any]:
    """Write the weights; returns the settings that `load_finder` wants, as JSON takes them."""
    model.retriever.save(folder / "retriever")
    save_file(model.extractor.state_dict(), folder / "extractor.safetensors")
    return {"extractor": asdict(model.extractor.config), "retriever": asdict(model.retriever.config)}


def load_finder(folder: Path, settings: Mapping[str, Any]) -> tuple[Extractor, Retriever]:
    """What `save_finder` wrote, on the CPU.

    Raises:
        ManifestError: the extractor's weights aren't this version's."""
    extractor = Extractor(ExtractorConfig.from_json(settings["extractor"]))
    try:
        extractor.load_state_dict(load_file(folder / "extractor.safetensors"))
    except RuntimeError as error:  # torch's, which lists every weight
        raise ManifestError(
            f"{folder} holds an extractor of another build of e2erag: load it with that one, or train anew "
            f"({str(error).splitlines()[0]})"
        ) from error
    return extractor, Retriever.load(folder / "retriever", RetrieverConfig(**settings["retriever"]))


def save_corpus(corpus: Corpus, folder: Path) -> None:
    """Write documents and candidates."""
    with open(folder / DOCUMENTS, "w", **_TEXT) as file:
        for document in corpus.documents:
            file.write(json.dumps(document.to_json(), ensure_ascii=False) + "\n")
    save_file({"spans": corpus.spans.spans}, folder / CANDIDATES)


def load_documents(folder: Path) -> list[Document]:
    """What `save_corpus` wrote, without the candidates."""
    with open(folder / DOCUMENTS, **_TEXT) as file:
        return [Document.from_json(json.loads(line)) for line in file]


def take_candidates(corpus: Corpus, folder: Path, extractor: Extractor, overlap: float) -> None:
    """Give a corpus of the documents in a folder the candidates in it.

    Raises:
        ManifestError: there are none."""
    if not (folder / CANDIDATES).is_file():
        raise ManifestError(f"{folder} was saved by an earlier version: RAG.from_pretrained(…, reindex=True)")
    corpus.take(load_file(folder / CANDIDATES)["spans"], extractor, overlap)
