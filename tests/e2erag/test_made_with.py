"""An index and what it was made with: neither is saved nor loaded beside other weights, texts or settings."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers.base.modules import Dense

from e2erag import RAG, RAGConfig, indexing
from e2erag.artefact import MANIFEST, ManifestError, write_folder
from e2erag.extract.candidates import PROPOSAL_VERSION
from e2erag.retriever import ExactIndex, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag

LINES = [["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]]


def move_encoder(rag: RAG) -> None:
    with torch.no_grad():
        next(rag.model.retriever.passage.transformer.encoder.parameters())[0, 0] += 0.01


def move_extractor(rag: RAG) -> None:
    with torch.no_grad():
        rag.model.extractor.scores.bias[0] += 0.01


def prompt(rag: RAG) -> None:
    rag.model.retriever.passage.model.prompts["document"] = "passage : "


def tokenizer(rag: RAG) -> None:
    rag.model.retriever.passage.tokenizer.add_tokens(["lycoming"])


def longest_input(rag: RAG) -> None:
    rag.model.retriever.passage.model.max_seq_length = 64


def mode(rag: RAG) -> None:
    rag.config = replace(rag.config, mode="soft")


CHANGES: dict[Callable[[RAG], None], tuple[str, str]] = {
    move_encoder: ("encoder", r"refresh\(\)"),
    move_extractor: ("extractor", r"refresh\(\)"),
    prompt: ("prompts", r"refresh\(\)"),
    mode: ("mode", r"refresh\(\)"),
    tokenizer: ("tokenizer", r"index\(rag\.corpus\.documents\)"),
    longest_input: ("tokenizer", r"index\(rag\.corpus\.documents\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_system_that_changed_since_it_was_indexed_is_not_saved_before_it_is_mended(
    rag: RAG, change: Callable[[RAG], None], tmp_path: Path
) -> None:
    """One real change each: the error names it and the call; after that call the system is saved, and loads."""
    change(rag)
    named, call = CHANGES[change]
    with pytest.raises(RuntimeError, match=rf"and {named} changed since: call rag\.{call} and save again"):
        rag.save_pretrained(tmp_path / "system")
    assert not (tmp_path / "system").exists()
    rag.index(rag.corpus.documents) if named == "tokenizer" else rag.refresh()
    if change is tokenizer:  # a word that the model has no vector for
        rag.model.retriever.passage.transformer.resize_token_embeddings(len(rag.model.retriever.passage.tokenizer))
        rag.index(rag.corpus.documents)
    rag.save_pretrained(tmp_path / "system")
    again = RAG.from_pretrained(tmp_path / "system")
    assert again.index_.manifest == rag.index_.manifest
    assert torch.equal(again.index_.vectors, rag.index_.vectors)


def test_vectors_of_another_length_are_refused_and_mended(rag: RAG, tmp_path: Path) -> None:
    """The same weights with another `truncate_dim` make other rows."""
    rag.model.retriever.passage.dim = 16
    with pytest.raises(RuntimeError, match=r"and dim changed since: call rag\.refresh\(\) and save again"):
        rag.save_pretrained(tmp_path / "system")
    rag.refresh()
    assert rag.index_.vectors.shape[1] == 17
    assert rag.indexer.changed(rag.index_.manifest, rag.corpus, rag.config.mode) == []


def test_rows_of_another_head_are_refused_and_mended(tmp_path: Path) -> None:
    """The same weights with another activation behind them make other rows."""
    rag = tiny_rag()
    rag.model.retriever.passage.model.append(Dense(32, 32))
    rag.index([tiny_document(LINES)])
    before = rag.index_.vectors.clone()
    rag.model.retriever.passage.head[-1].activation_function = torch.nn.Identity()
    with pytest.raises(RuntimeError, match=r"and pooling changed since: call rag\.refresh\(\) and save again"):
        rag.save_pretrained(tmp_path / "system")
    rag.refresh()
    assert (rag.index_.vectors - before).abs().max() > 1e-3
    rag.save_pretrained(tmp_path / "system")
    assert torch.equal(RAG.from_pretrained(tmp_path / "system").index_.vectors, rag.index_.vectors)


def test_the_query_tower_alone_may_change() -> None:
    """No row depends on it, so an index stays what it is."""
    rag = tiny_rag(retriever=RetrieverConfig(tied=False))
    rag.index([tiny_document(LINES)])
    with torch.no_grad():
        next(rag.model.retriever.query.parameters()).add_(1)
    assert rag.indexer.changed(rag.index_.manifest, rag.corpus, "hard") == []


@pytest.mark.parametrize(("part", "named"), [("retriever", "encoder"), ("extractor.safetensors", "extractor")])
def test_an_index_beside_other_weights_is_refused_and_mended_by_reindexing(
    rag: RAG, tmp_path: Path, part: str, named: str
) -> None:
    """Another system's weights under an index, every hash of a file in order: only what the index says of itself
    shows it. Encoded anew, the loaded system is the one that index() makes of these weights."""
    other = tiny_rag()
    other.index(rag.corpus.documents)
    {"encoder": move_encoder, "extractor": move_extractor}[named](other)
    other.refresh()
    for system, name in ((rag, "one"), (other, "two")):
        system.save_pretrained(tmp_path / name)
    with write_folder(tmp_path / "mixed") as new:
        for path in (tmp_path / "one").iterdir():
            if path.name != MANIFEST:
                source = tmp_path / "two" / part if path.name == part else path
                (shutil.copytree if path.is_dir() else shutil.copy)(source, new / path.name)
    with pytest.raises(ManifestError, match=rf"doesn't fit .* \({named}\): call RAG\.from_pretrained\(.*reindex=True"):
        RAG.from_pretrained(tmp_path / "mixed")
    mended = RAG.from_pretrained(tmp_path / "mixed", reindex=True)
    assert torch.equal(mended.index_.vectors, other.index_.vectors)
    mended.save_pretrained(tmp_path / "mixed")
    assert RAG.from_pretrained(tmp_path / "mixed").ask("seats ?") == mended.ask("seats ?")


def test_the_manifest_is_in_the_index_folder_and_says_what_it_holds(rag: RAG, tmp_path: Path) -> None:
    """Weights, tokenizer, prompts, extractor, corpus, mode, dtype and count; as JSON."""
    rag.save_pretrained(tmp_path / "system")
    there = ExactIndex.load(tmp_path / "system" / "index").manifest
    assert json.loads(json.dumps(there)) == there
    assert there["count"] == len(rag.corpus.passages)
    assert (there["dtype"], there["mode"]) == ("float32", "hard")
    assert {"encoder", "tokenizer", "prompts", "pooling", "extractor", "extractor_config", "corpus"} <= set(there)
    assert there["proposals"] == PROPOSAL_VERSION


def test_candidates_that_another_release_proposed_are_proposed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the code that proposes has changed since, a saved system is refused until it is indexed anew, and a refresh
    proposes."""
    rag = tiny_rag(config=RAGConfig(k=2, mode="soft", precision="float32"))
    rag.index([tiny_document(LINES * 4)])
    rag.save_pretrained(tmp_path / "system")
    monkeypatch.setattr(indexing, "PROPOSAL_VERSION", PROPOSAL_VERSION + 1)
    with pytest.raises(ManifestError, match=r"doesn't fit .* \(proposals\): call RAG\.from_pretrained\(.*reindex=True"):
        RAG.from_pretrained(tmp_path / "system")
    assert len(RAG.from_pretrained(tmp_path / "system", reindex=True).corpus.passages) == len(rag.corpus.passages)
    assert not rag.indexer.proposes_alike(rag.index_.manifest, "soft")
    rag.refresh()
    assert rag.indexer.proposes_alike(rag.index_.manifest, "soft")


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_refresh_that_fails_halfway_changes_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights have moved and the encoder breaks after some passages: index, corpus and its features are the old
    objects with the old content, and a search finds what it found."""
    rag = tiny_rag(config=RAGConfig(k=2, mode=mode, precision="float32"))
    rag.index([tiny_document(LINES * 4)])
    rag.model.retriever.passage.token_budget = 16
    index, corpus, text = rag.index_, rag.corpus, rag.corpus.text.clone()
    passages, rows, found = list(corpus.passages), index.vectors.clone(), rag.search(["seats ?"])
    moved = rag.model.retriever.passage.transformer.embeddings.word_embeddings.weight
    kept = moved.detach().clone()
    moved.data.mul_(1.5)
    embed, calls = rag.model.retriever.passage.embed, []

    def breaks(*given: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(*given)

    monkeypatch.setattr(rag.model.retriever.passage, "embed", breaks)
    with pytest.raises(KeyboardInterrupt):
        rag.refresh()
    monkeypatch.undo()
    assert rag.index_ is index
    assert rag.corpus is corpus
    assert torch.equal(corpus.text, text)
    assert corpus.passages == passages
    assert torch.equal(index.vectors, rows)
    moved.data.copy_(kept)
    again = rag.search(["seats ?"])
    assert torch.equal(again.ids, found.ids)
    assert torch.equal(again.prior_logp, found.prior_logp)
