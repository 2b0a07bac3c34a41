"""Sums over the lines of passages, stored by document: other gates pool them anew, without the model."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.corpus import Corpus, Gates
from e2erag.finder import Finder
from e2erag.retriever import LineSums, Source, Store, StoreError
from e2erag.retriever.choice import ASIDE
from e2erag.retriever.ledger import ReplacedError, as_manifest
from e2erag.retriever.store import beside

LINES = "lines"
"""Where an index' folder, and a saved system, holds the sums."""


class Work(NamedTuple):
    """What sums of a corpus are still to be made.

    Attributes:
        store: where they are or go.
        manifest: what sums depend on: the passage tower, and how many lines are carried; not the extractor's weights.
        sources: the corpus' documents, with as many rows as their passages have entries (`LineSums`).
        known: what of them others hold already, and where in `Lines.store`.
        rest, new: what is to be written, and what of that is to be encoded.
        whole: whether the store holds all of them, and no others.
    """

    store: Store
    manifest: dict[str, object]
    sources: list[Source]
    known: dict[Source, slice]
    rest: list[Source]
    new: list[Source]
    whole: bool


class Summed(NamedTuple):
    """Every candidate's sums, pooled a portion at a time.

    Attributes:
        rows: [Σ h ; tokens] of entries.
        begin: each candidate's first.
    """

    rows: Float[Tensor, "entries columns"]
    begin: Int[np.ndarray, " passages"]

    def encode(
        self,
        model: Finder,
        corpus: Corpus,
        passages: Int[Tensor, " some"],
        gates: Gates,
        log_prior: Float[Tensor, " passages"],
    ) -> Float[Tensor, "some row"]:
        """What `Finder.encode` gives with gates in pooling alone."""
        slots, ends = corpus.entries
        chosen, encoder = passages.cpu().numpy(), model.retriever.passage
        sizes = np.diff(ends)[chosen]
        rows = self.rows[torch.from_numpy(runs(self.begin[chosen], sizes))].to(gates.retrieve.device)
        sums = LineSums.of(rows, slots[runs(ends[chosen], sizes)], sizes, encoder.finish)
        return model.retriever.passage_rows(sums.pool(gates.retrieve), log_prior[passages])


class Lines:
    """The sums of what is indexed, in float32.

    Attributes:
        store: those used last: in memory, in an index' folder, or in a saved system, which stays as it was saved.
    """

    def __init__(self, model: Finder) -> None:
        self.model = model
        self.store: Store | None = None

    def work(self, corpus: Corpus, made_with: Mapping[str, object], folder: str | None) -> Work:
        """What is to be done for `sums`.

        Args:
            made_with: what rows of an index depend on, from `Indexer.made_with`.
            folder: of the index; None: in memory.

        Raises:
            StoreError: what is stored in the folder has changed since it was written."""
        manifest, sources = _manifest(made_with), _sources(corpus)
        known = _held(self.store, manifest)
        if not known:
            self.store = None  # not two of them at a time
        store, held = self.store, known
        if folder is not None and (store is None or store.folder is None or store.folder.parent.name == ASIDE):
            store = None  # what is aside won't stay
        if store is None or held.keys() != set(sources):
            store, held = (Store(), {}) if folder is None else _checked(Path(folder, LINES), manifest)
        elif store.folder is not None:
            store, held = _checked(store.folder, manifest)
        if held.keys() == set(sources):
            return Work(store, manifest, sources, known, [], [], True)
        rest, new = store.left(sources, manifest)
        return Work(store, manifest, sources, known, rest, [s for s in new if s not in known], False)

    def sums(
        self,
        corpus: Corpus,
        work: Work,
        batches: Sequence[slice],
        encode: Callable[[Int[Tensor, " passages"]], Float[Tensor, "entries columns"]],
    ) -> Summed:
        """Every candidate's sums. What is stored is used where it lies or copied, the rest is encoded; in a folder, a
        call that was killed goes on behind the last batch.

        Args:
            batches: documents that are encoded at a time.
            encode: [Σ h ; tokens] of these passages' entries."""
        if not work.whole:
            stops = np.cumsum([0, *(source.passages for source in corpus.sources())])
            where = {s.name: np.arange(a, b) for s, a, b in zip(work.sources, stops, stops[1:], strict=False)}
            held = self.store

            def encoded(new: Sequence[Source]) -> Float[Tensor, "entries columns"]:
                return encode(torch.from_numpy(np.concatenate([where[source.name] for source in new])))

            def rows(new: Sequence[Source]) -> Float[Tensor, "entries columns"]:
                return beside(new, work.known, held.rows, encoded) if held is not None else encoded(new)

            if not work.known and work.store.folder is None:
                batches = [slice(None)]  # they stay where they are made
            work.store.build((work.sources[batch] for batch in batches), rows, work.manifest)
        self.store = work.store
        first = {source.name: where.start for source, where in work.store.sources()}
        ends, number = corpus.entries[1], [source.passages for source in corpus.sources()]
        document = np.asarray([first[source.name] for source in work.sources]) - ends[np.cumsum([0, *number])[:-1]]
        return Summed(work.store.rows, ends[:-1] + np.repeat(document, number))

    def add(self, more: "Lines", folder: Path | None) -> None:
        """Those of new documents beside those of an index, in its folder or (None) in memory. Where there are none of
        these, they are encoded when they are wanted."""
        if more.store is None or more.store.version is None:  # gates act on attention too
            return
        manifest = json.loads(more.store.version.manifest)
        store = self.store if folder is None else Store(folder / LINES)
        held = _held(store, manifest)
        if store is None or not held:
            return
        if folder is None and store.folder is not None:  # a saved system's
            rows, store = store.rows, Store()
            store.build([list(held)], lambda _: rows, manifest)
        store.update([source for source, _ in more.store.sources()], more.store.rows)
        self.store = store

    def save(self, folder: Path, corpus: Corpus, made_with: Mapping[str, object]) -> None:
        """With a system, if they are of what it has indexed."""
        held = _held(self.store, _manifest(made_with))
        if self.store is not None and held.keys() == set(_sources(corpus)):
            self.store.save(folder / LINES)

    def load(self, folder: Path, index: str | None) -> None:
        """What a system was saved with, used where it lies; or copied into its index' folder, if it has one of its
        own."""
        if not (folder / LINES).is_dir():
            return
        self.store = Store.open(folder / LINES, verify=False)  # its hashes are those that were just checked
        if index is None:
            return
        own = Path(index, LINES)
        if Store(own).manifest != self.store.manifest:
            self.store.save(own)
        self.store = Store(own)


def _manifest(made_with: Mapping[str, object]) -> dict[str, object]:
    settings = made_with["extractor_config"]
    assert isinstance(settings, dict)  # `Indexer.made_with` wrote it
    same = {name: made_with[name] for name in ("encoder", "tokenizer", "prompts", "pooling")}
    return same | {"identity_lines": settings["identity_lines"]}


def _sources(corpus: Corpus) -> list[Source]:
    """A corpus' documents, with as many rows as their passages have entries."""
    sources, ends = corpus.sources(), corpus.entries[1]
    rows = np.diff(ends[np.cumsum([0, *(source.passages for source in sources)])]).tolist()
    return [source._replace(passages=count) for source, count in zip(sources, rows, strict=True)]


def _held(store: Store | None, manifest: Mapping[str, object]) -> dict[Source, slice]:
    """What a store holds that was made with this."""
    if store is None or store.version is None or store.version.manifest != as_manifest(manifest):
        return {}
    try:
        return dict(store.sources())
    except ReplacedError:  # by another process
        return {}


def _checked(folder: Path, manifest: Mapping[str, object]) -> tuple[Store, dict[Source, slice]]:
    """What is stored there, and what of it was made with this; if anything, all of it compared with its hashes."""
    try:
        store = Store(folder)
        held = _held(store, manifest)
        if held:
            store.verify()
    except StoreError as error:
        raise StoreError(f"{error}. Line sums can be made again: delete {folder}, and they are encoded anew") from error
    return store, held


def runs(begin: Int[np.ndarray, " runs"], size: Int[np.ndarray, " runs"]) -> Int[np.ndarray, " numbers"]:
    """begin, …, begin + size − 1 of each, one after the other."""
    return np.repeat(begin - np.cumsum(size) + size, size) + np.arange(size.sum())
