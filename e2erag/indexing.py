"""How a corpus becomes an index: candidates are proposed and encoded, and what they were made with is written down."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from e2erag.corpus import Corpus, Gates
from e2erag.estimate import Estimate
from e2erag.extract import GateMode
from e2erag.joint import Joint
from e2erag.lines import Lines, Summed, Work, beside
from e2erag.retriever import ExactIndex, Index, IndexConfig, Source, Store, StoreError
from e2erag.retriever.encoder import fingerprint
from e2erag.retriever.index import fingerprint_of
from e2erag.retriever.ranks import check_alike, gathered, rank, ranks
from e2erag.retriever.store import DTYPES
from e2erag.retriever.stored import StoredIndex

AT_ONCE = 4096
"""Passages that are encoded at once: between two writes to a folder, what memory holds of rows, and a kill can lose."""

PROBE = 32
"""Passages that are encoded to see how long all of them take, where these are twenty times as many or more."""

Judged = tuple[Gates, Float[Tensor, " corpus"]]

logger = logging.getLogger(__name__)


class Indexer:
    """Proposes and encodes with a model's present weights.

    Attributes:
        kind: of the index that is made.
        together: whether the processes of torch.distributed each encode a share. All must then have the same corpus and
            make the same calls. (Where gates act on pooling alone each encodes all.)
        lines: where gates act on pooling alone, the sums over lines, from which rows are pooled.
    """

    def __init__(self, model: Joint) -> None:
        self.model = model
        self.kind: type[ExactIndex] = ExactIndex
        self.together = False
        self.lines = Lines(model)

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
        self, corpus: Corpus, mode: GateMode, config: IndexConfig, old: Index | None = None, tell: bool | None = None
    ) -> Index:
        """Every candidate's row, in memory or (processes that don't work together) in a folder, with what it was made
        with as the index' manifest.

        Args:
            old: an index made with the same weights and settings; what it holds isn't encoded again.
            tell: whether what it will take is told first; None: where it lies in a folder."""
        if mode == "hard" and not corpus.passages:
            raise RuntimeError(
                "every line's retrieval gate is shut, so hard mode has nothing to index: train with a higher "
                'gate_weight or keep_rate, or set RAGConfig(mode="soft")'
            )
        made_with = self.made_with(corpus, mode)
        if self.together:
            check_alike(fingerprint_of(corpus.sources()), "index the same files in the same order")
        elif config.folder is not None:
            return config.over(self._build(corpus, mode, config, made_with, tell is not False))
        else:
            config.check_place()
        judged = self._judged(corpus, mode)
        work = self._work(corpus, made_with, None)
        if tell and rank() == 0:
            self._tell(Store(dtype=DTYPES[config.dtype]), corpus, mode, config, made_with, judged, True, work)
        passages = torch.arange(len(corpus.passages))
        if work is not None:
            rows = self.rows(corpus, passages, mode, judged, self._sums(corpus, judged, work))
        elif old is not None:
            rows = self._rows_beside(corpus, mode, old, judged)
        else:
            rows = self._over_ranks(passages, partial(self.rows, corpus, mode=mode, judged=judged))
        return self._index(corpus, rows, made_with, DTYPES[config.dtype])

    def _build(
        self, corpus: Corpus, mode: GateMode, config: IndexConfig, made_with: Mapping[str, object], tell: bool
    ) -> Store:
        """In a folder, a batch of documents at a time. What is there of them already is not encoded again."""
        assert config.folder is not None
        sources = corpus.sources()
        ends = np.cumsum([source.passages for source in sources])
        where = {s.name: np.arange(end - s.passages, end) for s, end in zip(sources, ends, strict=True)}
        judged = self._judged(corpus, mode)
        store, work = Store(config.folder, DTYPES[config.dtype]), self._work(corpus, made_with, config.folder)
        self._tell(store, corpus, mode, config, made_with, judged, tell, work).check_room(config.folder)
        sums = None if work is None else self._sums(corpus, judged, work)

        def encode(new: Sequence[Source]) -> Float[Tensor, "passages row"]:
            passages = torch.from_numpy(np.concatenate([where[source.name] for source in new]))
            if sums is None:
                return self.model.encode(corpus, passages, *judged, mode)
            return self.rows(corpus, passages, mode, judged, sums)

        store.build((sources[batch] for batch in _batches(sources)), encode, made_with)
        return store

    def _work(self, corpus: Corpus, made_with: Mapping[str, object], folder: str | None) -> Work | None:
        """What sums over lines are to be made, where rows are pooled from them."""
        pooled = self.model.retriever.config.gates == "pool"
        return self.lines.work(corpus, made_with, folder) if pooled else None

    def _sums(self, corpus: Corpus, judged: Judged, work: Work) -> Summed:
        return self.lines.sums(corpus, judged[0], work, _batches(corpus.sources()))

    def _tell(
        self,
        store: Store,
        corpus: Corpus,
        mode: GateMode,
        config: IndexConfig,
        made_with: Mapping[str, object],
        judged: Judged,
        tell: bool = True,
        work: Work | None = None,
    ) -> Estimate:
        """What is going to be made takes so much: logged where that is seen, else beside a terminal's bars."""
        rest, new = store.left(corpus.sources(), made_with)
        written, encoded = (sum(source.passages for source in each) for each in (rest, new))
        width, size = self.model.retriever.passage.dim + 1, DTYPES[config.dtype].itemsize
        held = encoded if config.folder is None else min(encoded, AT_ONCE)
        summed, portion = 0, 0.0
        if work is not None:
            summed = sum(source.passages for source in work.rest) * (self.model.retriever.passage.width + 1) * 4
            names = {source.name for source in work.new}
            encoded = sum(source.passages for source in corpus.sources() if source.name in names)
            portion = 1 if config.folder is None else min(1, AT_ONCE / len(corpus.passages))
        share = encoded / (ranks() if self.together and work is None else 1)
        seconds = self._seconds(corpus, mode, judged, share) if tell and encoded >= 20 * PROBE else None
        estimate = Estimate(
            written * width * size + summed if config.folder is not None else 0,
            held * width * (4 + (size if size < 4 or config.folder is not None else 0)) + int(summed * portion),
            config.structure_bytes(len(corpus.passages), width),
            seconds,
        )
        text = f"to index {encoded:,} passages: {estimate}"
        if not tell or not encoded:
            pass
        elif logger.isEnabledFor(logging.INFO):
            logger.info(text)
        elif sys.stderr.isatty():
            tqdm.write(text, file=sys.stderr)
        return estimate

    def _seconds(self, corpus: Corpus, mode: GateMode, judged: Judged, passages: float) -> float:
        """To encode so many of the passages: those of a few, the shortest to the longest, by their tokens."""
        spans, ends = corpus.spans.spans.numpy(), np.append(0, np.cumsum(corpus.retriever_lines.sizes))
        tokens = np.minimum(ends[spans[:, 2]] - ends[spans[:, 1]], self.model.retriever.passage.room)
        some = np.argsort(tokens, kind="stable")[(np.arange(PROBE) + 0.5).astype(int) * len(tokens) // PROBE]
        self.rows(corpus, torch.from_numpy(some[:1]), mode, judged)  # what is paid once isn't measured
        start = time.perf_counter()
        self.rows(corpus, torch.from_numpy(some), mode, judged).cpu()  # waits for a GPU
        took = time.perf_counter() - start
        return float(took * tokens.mean() * passages / max(tokens[some].sum(), 1))

    def _rows_beside(self, corpus: Corpus, mode: GateMode, old: Index, judged: Judged) -> Float[Tensor, "passages row"]:
        """Rows that an index holds copied, the others encoded."""
        known, sources = dict(old.sources()), corpus.sources()
        fresh = torch.tensor([source not in known for source in sources], dtype=torch.bool)
        size = torch.tensor([source.passages for source in sources], dtype=torch.long)
        passages = fresh.repeat_interleave(size).nonzero()[:, 0]
        return beside(sources, known, old.vectors, lambda _: self.rows(corpus, passages, mode, judged))

    @torch.no_grad()
    def add(self, new: Corpus, corpus: Corpus, index: Index, mode: GateMode) -> None:
        """Encode the candidates of a corpus of new documents into the index of another."""
        if not new.passages:
            return
        store = index.store if isinstance(index, StoredIndex) else None
        folder = None if store is None else store.folder
        aside, made = Indexer(self.model), None
        if store is None or folder is None:
            rows = aside.encode(new, mode, IndexConfig()).vectors
        else:
            # A batch at a time beside the index, which stays as it is: there a call goes on that was killed.
            config = IndexConfig(folder=str(folder / "adding"), dtype=store.manifest["dtype"])
            made = aside._build(new, mode, config, self.made_with(new, mode), tell=True)
            rows = made.rows
        self.still(corpus, index)
        self.lines.add(aside.lines, folder)
        index.add(new.sources(), rows)
        if made is not None:
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
    def encode_some(self, corpus: Corpus, index: Index, passages: Int[Tensor, " passages"], mode: GateMode) -> Index:
        """An index beside this one, in which these candidates' rows are of the present weights. Its manifest says that
        it was made with several, so it fits no system."""
        rows = index.vectors.clone()
        _, log_prior = judged = self._judged(corpus, mode)
        work = self._work(corpus, self.made_with(corpus, mode), None)
        if work is None or not work.whole:
            fresh = self._over_ranks(passages, partial(self.rows, corpus, mode=mode, judged=judged))
        else:
            fresh = self.rows(corpus, passages, mode, judged, self._sums(corpus, judged, work))
        rows[passages] = fresh.to(rows)
        # log π costs no encoding, and fresh ones beside stale ones would be another distribution.
        rows[:, -1] = (self.model.retriever.config.prior_weight * log_prior).to(rows)
        made_with = {**index.manifest, "encoder": "several", "extractor": "several"}
        return self._index(corpus, rows, made_with, rows.dtype)

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
        sums: Summed | None = None,
    ) -> Float[Tensor, "passages row"]:
        """These candidates' rows with the present weights, pooled where sums over lines are given; `judged` is what
        `_judged` has said already."""
        gates, log_prior = judged or self._judged(corpus, mode)
        table = None
        # Put in their places portion by portion, so that rows stand in memory once.
        for part in torch.arange(len(passages)).split(AT_ONCE):
            if sums is None:
                rows = self.model.encode(corpus, passages[part], gates, log_prior, mode)
            else:
                rows = sums.encode(self.model, corpus, passages[part], gates, log_prior)
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
        other.lines.store = self.lines.store
        return other

    def _index(
        self,
        corpus: Corpus,
        rows: Float[Tensor, "passages row"],
        made_with: Mapping[str, object],
        dtype: torch.dtype,
    ) -> Index:
        return self.kind.of(rows, corpus.sources(), made_with, dtype)

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


def _batches(sources: Sequence[Source]) -> list[slice]:
    """Documents of about `AT_ONCE` passages at a time."""
    first = np.cumsum([0, *(source.passages for source in sources)])[:-1] // AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(first)) + 1).tolist(), len(sources)]
    return [slice(*each) for each in pairwise(edges)]


def _kept(corpus: Corpus, gates: Gates, passage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lines that hard gates leave of a passage itself, for finding it and for reading it."""
    lines, carried = corpus.lines(passage)
    own = lines[carried:]
    return tuple(gates.kept(gates.retrieve, own, 0).tolist()), tuple(gates.kept(gates.read, own, 0).tolist())
