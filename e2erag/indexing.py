"""How a corpus becomes an index: candidates are proposed and encoded, and what they were made with is written down."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from e2erag.corpus import Corpus, Gates
from e2erag.estimate import Estimate
from e2erag.extract import GateMode, LineTokens
from e2erag.joint import Joint
from e2erag.retriever import ExactIndex, Index, IndexConfig, LineSums, Source, Store, StoreError
from e2erag.retriever.encoder import fingerprint
from e2erag.retriever.index import fingerprint_of
from e2erag.retriever.ranks import average, check_alike, gathered, led, rank, ranks
from e2erag.retriever.store import DTYPES
from e2erag.retriever.stored import StoredIndex

AT_ONCE = 4096
"""Passages that are encoded at once: between two writes to a folder, what memory holds of rows, and a kill can lose."""

PROBE = 32
"""Passages that are encoded to see how long all of them take, where these are twenty times as many or more."""

Judged = tuple[Gates, Float[Tensor, " corpus"]]
RowsOf = Callable[[Int[Tensor, " passages"]], Float[Tensor, "passages row"]]

logger = logging.getLogger(__name__)


class Indexer:
    """Proposes and encodes with a model's present weights; keeps the sums over lines that it can use again.

    Attributes:
        kind: of the index that is made.
        together: whether the processes of torch.distributed each encode a share. All must then have the same corpus and
            make the same calls. (Where gates act on pooling alone each encodes all.)
    """

    def __init__(self, model: Joint) -> None:
        self.model = model
        self.kind: type[ExactIndex] = ExactIndex
        self.together = False
        self._sums: tuple[LineTokens, Tensor, str, LineSums] | None = None

    @torch.no_grad()
    def propose(self, corpus: Corpus, mode: GateMode, overlap: float) -> None:
        """Propose passages; in hard mode cuts are taken and emptied passages dropped."""
        extractor = self.model.extractor
        if mode != "hard":
            corpus.propose(extractor, overlap)
            return
        gates = self.model.gates(corpus, "hard")
        cuts = torch.sigmoid(gates.extraction.cut) > extractor.config.cut_threshold
        kept = gates.retrieve[: len(corpus)] == 0
        corpus.propose(extractor, overlap, cuts.cpu().numpy(), kept.cpu().numpy())
        corpus.drop_repeated([_kept(corpus, gates, i) for i in range(len(corpus.passages))])

    @torch.no_grad()
    def encode(
        self, corpus: Corpus, mode: GateMode, config: IndexConfig, old: Index | None = None, tell: bool = False
    ) -> Index:
        """Every candidate's row, in memory or in a folder, with what it was made with as the index' manifest.

        Args:
            old: an index made with the same weights and settings; what it holds isn't encoded again.
            tell: whether what it will take is told first."""
        if mode == "hard" and not corpus.passages:
            raise RuntimeError(
                "every line's retrieval gate is shut, so hard mode has nothing to index: train with a higher "
                'gate_weight or keep_rate, or set RAGConfig(mode="soft")'
            )
        model = self.model
        made_with = self.made_with(corpus, mode)
        if self.together:
            check_alike(fingerprint_of(corpus.sources()), "index the same files in the same order")
        if config.folder is None:
            config.check_place()
        judged = gates, log_prior = self._judged(corpus, mode)

        def alone(passages: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            if config.folder is None:
                return self.rows(corpus, passages, mode, judged)
            return model.encode(corpus, passages, gates, log_prior, mode)  # which are few

        def rows(passages: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            if config.folder is None and old is not None:
                return self._rows_beside(corpus, mode, old, judged)
            if config.folder is None and model.retriever.config.gates == "pool":
                sums = self._line_sums(corpus, gates, made_with["encoder"])
                return model.retriever.passage_rows(sums.pool(gates.retrieve), log_prior)
            return self._over_ranks(passages, alone)

        return self._made(corpus, rows, made_with, config, alone if tell else None)

    def _made(
        self,
        corpus: Corpus,
        rows: RowsOf,
        made_with: Mapping[str, object],
        config: IndexConfig,
        alone: RowsOf | None = None,
    ) -> Index:
        """An index of these rows.

        Args:
            rows: of some passages; where ranks work together, all of them ask for the same.
            alone: the same on one rank, by which it is told first what making them takes; None tells nothing."""
        if config.folder is not None:
            return self.over(self._build(corpus, rows, made_with, config, alone), config)
        if rank() == 0:
            self._tell(Store(dtype=DTYPES[config.dtype]), corpus, made_with, config, alone)
        every = rows(torch.arange(len(corpus.passages)))
        return self.kind.of(every, corpus.sources(), made_with, DTYPES[config.dtype])

    def over(self, store: Store, config: IndexConfig) -> Index:
        """What is in a store, searched as the configuration says, and exactly by all ranks that work together."""
        return self.kind(store) if config.kind == "exact" else config.over(store)

    def _build(
        self,
        corpus: Corpus,
        rows: RowsOf,
        made_with: Mapping[str, object],
        config: IndexConfig,
        alone: RowsOf | None,
    ) -> Store:
        """In a folder, a batch of documents at a time. What is there of them already is not encoded again; the rest is,
        by the model, also where gates act on pooling alone. Of ranks that work together, rank 0 writes."""
        folder, dtype = config.folder, DTYPES[config.dtype]
        assert folder is not None
        sources = corpus.sources()
        ends = np.cumsum([source.passages for source in sources])
        where = {s.name: np.arange(end - s.passages, end) for s, end in zip(sources, ends, strict=True)}
        batch = np.append(0, ends[:-1]) // AT_ONCE
        batches = np.split(np.arange(len(sources)), np.flatnonzero(np.diff(batch)) + 1)

        def write(rows: RowsOf) -> None:
            def encode(new: Sequence[Source]) -> Float[Tensor, "passages row"]:
                return rows(torch.from_numpy(np.concatenate([where[source.name] for source in new])))

            store = Store(folder, dtype)
            self._tell(store, corpus, made_with, config, alone).check_room(folder)
            store.build(([sources[i] for i in each] for each in batches), encode, made_with)

        if self.together:
            led(write, rows)
        else:
            write(rows)
        return Store(folder, dtype)

    def _tell(
        self,
        store: Store,
        corpus: Corpus,
        made_with: Mapping[str, object],
        config: IndexConfig,
        alone: RowsOf | None,
    ) -> Estimate:
        """What is going to be made takes so much: logged where that is seen, else beside a terminal's bars."""
        rest, new = store.left(corpus.sources(), made_with)
        written, encoded = (sum(source.passages for source in each) for each in (rest, new))
        width, size = self.model.retriever.passage.dim + 1, DTYPES[config.dtype].itemsize
        held = encoded if config.folder is None else min(encoded, AT_ONCE)
        share = encoded / (ranks() if self.together else 1)
        seconds = self._seconds(corpus, alone, share) if alone and encoded >= 20 * PROBE else None
        estimate = Estimate(
            written * width * size if config.folder is not None else 0,
            held * width * (4 + (size if size < 4 or config.folder is not None else 0)),
            config.structure_bytes(len(corpus.passages), width),
            seconds,
        )
        text = f"to index {encoded:,} passages: {estimate}"
        if not alone or not encoded:
            pass
        elif logger.isEnabledFor(logging.INFO):
            logger.info(text)
        elif sys.stderr.isatty():
            tqdm.write(text, file=sys.stderr)
        return estimate

    def _seconds(self, corpus: Corpus, rows: RowsOf, passages: float) -> float:
        """To encode so many of the passages: those of a few, the shortest to the longest, by their tokens."""
        spans, ends = corpus.spans.spans.numpy(), np.append(0, np.cumsum(corpus.retriever_lines.sizes))
        tokens = np.minimum(ends[spans[:, 2]] - ends[spans[:, 1]], self.model.retriever.passage.room)
        some = np.argsort(tokens, kind="stable")[(np.arange(PROBE) + 0.5).astype(int) * len(tokens) // PROBE]
        rows(torch.from_numpy(some[:1]))  # what is paid once isn't measured
        start = time.perf_counter()
        rows(torch.from_numpy(some)).cpu()  # waits for a GPU
        took = time.perf_counter() - start
        return float(took * tokens.mean() * passages / max(tokens[some].sum(), 1))

    def _rows_beside(self, corpus: Corpus, mode: GateMode, old: Index, judged: Judged) -> Float[Tensor, "passages row"]:
        """Rows that an index holds copied, the others encoded."""
        known, sources = dict(old.sources()), corpus.sources()
        new = torch.tensor([source not in known for source in sources], dtype=torch.bool)
        size = torch.tensor([source.passages for source in sources], dtype=torch.long)
        fresh = self.rows(corpus, new.repeat_interleave(size).nonzero()[:, 0], mode, judged).to(old.vectors.dtype)
        encoded = iter(fresh.split(size[new].tolist()))
        return torch.cat([fresh[:0], *(old.vectors[known[s]] if s in known else next(encoded) for s in sources)])

    @torch.no_grad()
    def add(self, new: Corpus, corpus: Corpus, index: Index, mode: GateMode) -> None:
        """Encode the candidates of a corpus of new documents into the index of another."""
        if not new.passages:
            return
        store = index.store if isinstance(index, StoredIndex) else None
        if store is None or store.folder is None:
            rows = self.rows(new, torch.arange(len(new.passages)), mode)
            self.still(corpus, index)
            index.add(new.sources(), rows)
            return
        # A batch at a time beside the index, which stays as it is: there a call goes on that was killed.
        aside = IndexConfig(folder=str(store.folder / "adding"), dtype=store.manifest["dtype"])
        gates, log_prior = self._judged(new, mode)

        def encode(passages: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            return self.model.encode(new, passages, gates, log_prior, mode)

        made = self._build(new, encode, self.made_with(new, mode), aside, encode)
        self.still(corpus, index)
        index.add(new.sources(), made.rows)
        made.remove()

    def still(self, corpus: Corpus, index: Index) -> None:
        """Refuse an index in a folder in which somebody else has written since."""
        if isinstance(index, StoredIndex):
            index.store.reload()
        if index.manifest.get("corpus") != fingerprint_of(corpus.sources()):
            raise StoreError(
                "the index holds other documents than this system has indexed: another process has written into its "
                "folder; give each system a folder of its own, and call index() again"
            )

    @torch.no_grad()
    def encode_some(
        self, corpus: Corpus, index: Index, passages: Int[Tensor, " passages"], mode: GateMode, config: IndexConfig
    ) -> Index:
        """An index beside this one, in which these candidates' rows are of the present weights. Its manifest says that
        it was made with several, so it fits no system."""
        _, log_prior = judged = self._judged(corpus, mode)
        fresh = torch.zeros(len(corpus.passages), dtype=torch.bool)
        fresh[passages] = True
        encoded = partial(self._over_ranks, rows=partial(self.rows, corpus, mode=mode, judged=judged))

        def rows(some: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            table, anew = index.vectors[some], fresh[some]
            table[anew] = encoded(some[anew]).to(table)
            # log π costs no encoding, and fresh ones beside stale ones would be another distribution.
            table[:, -1] = (self.model.retriever.config.prior_weight * log_prior[some]).to(table)
            return table

        several = f"several {uuid4().hex}"  # never those of another index, whose rows would be copied
        made_with = {**index.manifest, "encoder": several, "extractor": several}
        return self._made(corpus, rows, made_with, replace(config, dtype=cast(Any, index.manifest["dtype"])))

    def fits(self, corpus: Corpus, index: Index, mode: GateMode) -> bool:
        """Whether an index is what `encode` would make now; where ranks work together, every rank's."""
        other = float(bool(self.changed(index.manifest, corpus, mode)))
        return not (average({"other": other})["other"] if self.together else other)

    def discard(self, config: IndexConfig) -> None:
        """Remove an index that was made aside, in a folder; of ranks that work together, rank 0 does."""
        if config.folder is not None and Path(config.folder).exists() and not (self.together and rank()):
            Store(config.folder).remove()

    def _judged(self, corpus: Corpus, mode: GateMode) -> Judged:
        """What the extractor says of every line, and log π of every candidate."""
        gates = self.model.gates(corpus, mode)
        return gates, self.model.log_prior(corpus, gates)

    @torch.no_grad()
    def rows(
        self,
        corpus: Corpus,
        passages: Int[Tensor, " passages"],
        mode: GateMode,
        judged: Judged | None = None,
    ) -> Float[Tensor, "passages row"]:
        """These candidates' rows with the present weights; `judged` is what `_judged` has said already."""
        gates, log_prior = judged or self._judged(corpus, mode)
        table = None
        # Put in their places portion by portion, so that rows stand in memory once.
        for part in torch.arange(len(passages)).split(AT_ONCE):
            rows = self.model.encode(corpus, passages[part], gates, log_prior, mode)
            table = rows.new_empty(len(passages), rows.shape[1]) if table is None else table
            table[part] = rows
        assert table is not None  # no passages are one part, too
        return table

    def _over_ranks(
        self, passages: Int[Tensor, " passages"], rows: Callable[[Int[Tensor, " some"]], Float[Tensor, "some row"]]
    ) -> Float[Tensor, "passages row"]:
        """What `rows` gives for these passages, each rank having encoded its share of them."""
        if not self.together or ranks() == 1:
            return rows(passages)
        own = passages[rank() :: ranks()]
        even = torch.cat([own, passages[: -(-len(passages) // ranks()) - len(own)]])  # as many on every rank
        return torch.stack(gathered(rows(even)), 1).flatten(0, 1)[: len(passages)]

    def of(self, model: Joint) -> "Indexer":
        """The same for a copy of the model, with the sums that are held here."""
        other = Indexer(model)
        other._sums = self._sums
        return other

    def made_with(self, corpus: Corpus, mode: GateMode) -> dict[str, Any]:
        """What rows depend on beside the documents, to be compared: hashes of weights, and the settings that play a
        part.

        Reads the weights once."""
        retriever, extractor = self.model.retriever, self.model.extractor
        encoder = retriever.passage
        return {
            "encoder": fingerprint(encoder),
            "tokenizer": corpus.tokenizer,
            "prompts": {"document": encoder.prompt("document"), "pooled": encoder.pool_prompt},
            "pooling": {"mode": encoder.pooling, "normalize": encoder.normalize, "gates": retriever.config.gates},
            "prior_weight": retriever.config.prior_weight,
            "extractor": fingerprint(extractor),
            "extractor_config": self._settings(),
            "mode": mode,
        }

    def proposes_alike(self, manifest: Mapping[str, object], mode: GateMode) -> bool:
        """Whether an index with this manifest has the candidates that would be proposed now, whatever the weights."""
        return mode != "hard" and (manifest.get("mode"), manifest.get("extractor_config")) == (mode, self._settings())

    def changed(self, manifest: Mapping[str, object], corpus: Corpus, mode: GateMode) -> list[str]:
        """What is other now than when an index with this manifest was made."""
        now = self.made_with(corpus, mode) | {
            "tokenizer": self.model.retriever.passage.token_fingerprint(),
            "corpus": fingerprint_of(corpus.sources()),
        }
        return [name for name, value in now.items() if manifest.get(name) != value]

    def _settings(self) -> dict[str, Any]:
        """The extractor's, as JSON reads them back."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self.model.extractor.config)))
        return settings

    def _line_sums(self, corpus: Corpus, gates: Gates, weights: str) -> LineSums:
        """Encoded only if the passages or the passage tower's weights are others than last time."""
        if self._sums is not None:
            lines, spans, then, sums = self._sums
            if lines is corpus.retriever_lines and torch.equal(spans, corpus.spans.spans) and then == weights:
                return sums
        self._sums = None  # not two of them at a time
        sums = self.model.line_sums(corpus, gates)
        self._sums = corpus.retriever_lines, corpus.spans.spans, weights, sums
        return sums


def _kept(corpus: Corpus, gates: Gates, passage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lines that hard gates leave of a passage itself, for finding it and for reading it."""
    lines, carried = corpus.lines(passage)
    own = lines[carried:]
    return tuple(gates.kept(gates.retrieve, own, 0).tolist()), tuple(gates.kept(gates.read, own, 0).tolist())
