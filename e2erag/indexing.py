"""How a corpus becomes an index: candidates are proposed and encoded, and what they were made with is written down."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e2erag.corpus import Corpus, Gates
from e2erag.estimate import Estimate
from e2erag.extract import GateMode
from e2erag.extract.candidates import PROPOSAL_VERSION
from e2erag.finder import Finder
from e2erag.lines import Lines, Summed, Work, runs
from e2erag.retriever import ExactIndex, Index, IndexConfig, Source, Store, StoreError
from e2erag.retriever.encoder import fingerprint
from e2erag.retriever.index import fingerprint_of
from e2erag.retriever.ranks import average, check_alike, gathered, led, rank, ranks
from e2erag.retriever.store import DTYPES
from e2erag.retriever.stored import StoredIndex

AT_ONCE = 4096
"""Passages between two writes to a folder, more where a document has more: what a kill can lose."""

PORTION = 4096
"""Passages that are encoded at once: whose rows memory holds as they come from the encoder, before they are stored."""

PROBE = 32
"""Passages that are encoded to see how long all of them take, where these are twenty times as many or more."""

Judged = tuple[Gates, Float[Tensor, " corpus"]]
RowsOf = Callable[[Int[Tensor, " passages"]], Float[Tensor, "rows row"]]
"""Of passages their rows, or those of their entries (`LineSums`), one below the other."""

logger = logging.getLogger(__name__)


class NothingLeft(RuntimeError):
    """Hard gates shut every line of the corpus."""


class Pooled(NamedTuple):
    """How rows are pooled from sums over lines.

    Attributes:
        entries: [Σ h ; tokens] of passages' entries; where ranks work together, all of them ask for the same.
        rows: of some passages, given what is to be done for the sums, and entries.
    """

    entries: RowsOf
    rows: Callable[[Work, RowsOf], RowsOf]


class Indexer:
    """Proposes and encodes with a model's present weights.

    Attributes:
        kind: of the index that is made.
        together: whether the processes of torch.distributed each encode a share. All must then have the same corpus and
            make the same calls. (In memory, and where gates act on pooling alone, each encodes all.)
        lines: where gates act on pooling alone, the sums over lines, from which rows are pooled.
    """

    def __init__(self, model: Finder) -> None:
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
        cuts, kept = extractor.taken(gates.extraction.cut), gates.retrieve[: len(corpus)] == 0
        corpus.propose(extractor, overlap, cuts.cpu().numpy(), kept.cpu().numpy())
        corpus.drop_repeated([_kept(corpus, gates, i) for i in range(len(corpus.passages))])

    @torch.no_grad()
    def parts(self, corpus: Corpus) -> bool:
        """Whether the gate mode makes a difference here: a line is turned down or shut, or a gap is cut."""
        extractor, said = self.model.extractor, self.model.gates(corpus, "soft").extraction
        modes: tuple[GateMode, ...] = ("soft", "hard")
        gates = [log_w for mode in modes for log_w in extractor.all_log_gates(said, mode)]
        return any(bool(log_w.any()) for log_w in (*gates, extractor.taken(said.cut)))

    @torch.no_grad()
    def encode(
        self, corpus: Corpus, mode: GateMode, config: IndexConfig, old: Index | None = None, tell: bool = False
    ) -> Index:
        """Every candidate's row, in memory or in a folder, with what it was made with as the index' manifest.

        Args:
            old: an index made with the same weights and settings; what it holds isn't encoded again.
            tell: whether what it will take is told first."""
        if mode == "hard" and not corpus.passages:
            raise NothingLeft(
                "every line's retrieval gate is shut, so hard mode has nothing to index: train with a higher "
                'gate_weight or keep_rate, or set RAGConfig(mode="soft")'
            )
        if not corpus.passages:
            raise ValueError("an index needs at least one passage, got none: were any documents read?")
        model = self.model
        made_with = self.made_with(corpus, mode)
        if self.together:
            check_alike(fingerprint_of(corpus.sources()), "index the same files in the same order")
        if config.folder is None:
            config.check_place()
        judged = gates, log_prior = self._judged(corpus, mode)
        dtype = DTYPES[config.dtype]

        def alone(passages: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            return model.encode(corpus, passages, gates, log_prior, mode)

        def rows(passages: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            if config.folder is None and old is not None:
                return _rows_beside(corpus.sources(), old, alone, dtype)
            return in_portions(passages, partial(self._over_ranks, rows=alone), dtype)

        pooled = self._pooled(corpus, mode, judged, dtype) if self._pools else None
        return self._made(corpus, rows, made_with, config, alone if tell else None, pooled)

    def _made(
        self,
        corpus: Corpus,
        rows: RowsOf,
        made_with: Mapping[str, object],
        config: IndexConfig,
        alone: RowsOf | None = None,
        pooled: Pooled | None = None,
    ) -> Index:
        """An index of these rows.

        Args:
            rows: of some passages, on the CPU and as they are stored; where ranks work together, all of them ask for
                the same.
            alone: of a few on one rank, by which it is told first what making them takes; None tells nothing.
            pooled: in place of `rows`, from sums over lines; where ranks work together in memory each makes all of
                these, and in a folder rank 0 pools."""
        if config.folder is not None:
            return self.over(self._build(corpus, rows, made_with, config, alone, pooled), config)
        work = self.lines.work(corpus, made_with, None) if pooled else None
        if alone and rank() == 0:
            self._tell(Store(dtype=DTYPES[config.dtype]), corpus, made_with, config, alone, work)
        if pooled and work:
            rows = pooled.rows(work, pooled.entries)
        every = rows(torch.arange(len(corpus.passages)))
        return self.kind.of(every, corpus.sources(), made_with, DTYPES[config.dtype])

    @property
    def _pools(self) -> bool:
        """Whether rows are pooled from sums over lines."""
        return self.model.retriever.config.gates == "pool"

    def _pooled(self, corpus: Corpus, mode: GateMode, judged: Judged, dtype: torch.dtype) -> Pooled:
        def entries(passages: Int[Tensor, " passages"]) -> Float[Tensor, "entries columns"]:
            return self.model.line_sums(corpus, passages, judged[0]).rows

        def rows(work: Work, entries: RowsOf) -> RowsOf:
            sums = self.lines.sums(corpus, work, _batches(corpus.sources()), entries)
            return partial(self.rows, corpus, mode=mode, judged=judged, sums=sums, dtype=dtype)

        return Pooled(entries, rows)

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
        pooled: Pooled | None,
    ) -> Store:
        """In a folder, a batch of documents at a time. What is there of them already is not encoded again. Of ranks
        that work together, rank 0 writes, and pools alone."""
        folder, dtype = config.folder, DTYPES[config.dtype]
        assert folder is not None
        sources = corpus.sources()
        ends = np.cumsum([source.passages for source in sources])
        where = {s.name: np.arange(end - s.passages, end) for s, end in zip(sources, ends, strict=True)}

        def write(asked: RowsOf) -> None:
            store, work = Store(folder, dtype), self.lines.work(corpus, made_with, folder) if pooled else None
            self._tell(store, corpus, made_with, config, alone, work).check_room(folder)
            rows = pooled.rows(work, asked) if pooled and work else asked

            def encode(new: Sequence[Source]) -> Float[Tensor, "passages row"]:
                return rows(torch.from_numpy(np.concatenate([where[source.name] for source in new])))

            store.build((sources[batch] for batch in _batches(sources)), encode, made_with)

        share = rows
        if pooled:
            size = torch.from_numpy(np.diff(corpus.entries[1]))
            share = partial(self._over_ranks, rows=pooled.entries, size=size)
        if self.together:
            led(write, share)
        else:
            write(share)
        return Store(folder, dtype)

    def _tell(
        self,
        store: Store,
        corpus: Corpus,
        made_with: Mapping[str, object],
        config: IndexConfig,
        alone: RowsOf | None,
        work: Work | None,
    ) -> Estimate:
        """What is going to be made takes so much: logged where that is seen, else beside a terminal's bars."""
        sources = corpus.sources()
        rest, new = store.left(sources, made_with)
        written, encoded = (sum(source.passages for source in each) for each in (rest, new))
        width, size = self.model.retriever.passage.dim + 1, DTYPES[config.dtype].itemsize
        stored, coming = encoded, min(encoded, PORTION)
        if config.folder is not None:
            stored = min(stored, max(sum(s.passages for s in sources[batch]) for batch in _batches(sources)))
        summed, portion = 0, 0.0
        if work is not None:
            summed = sum(source.passages for source in work.rest) * (self.model.retriever.passage.width + 1) * 4
            names = {source.name for source in work.new}
            encoded = sum(source.passages for source in sources if source.name in names)
            portion = 1 if config.folder is None else min(1, AT_ONCE / len(corpus.passages))
        alike = self.together and (work is None or config.folder is not None)
        share = encoded / (ranks() if alike else 1)
        seconds = self._seconds(corpus, alone, share) if alone and encoded >= 20 * PROBE else None
        estimate = Estimate(
            written * width * size + summed if config.folder is not None else 0,
            width * (stored * size + (coming * 4 if size < 4 or config.folder is not None else 0))
            + int(summed * portion),
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

    @torch.no_grad()
    def add(self, new: Corpus, corpus: Corpus, index: Index, mode: GateMode) -> None:
        """Encode the candidates of a corpus of new documents into the index of another."""
        if not new.passages:
            return
        folder = index.store.folder if isinstance(index, StoredIndex) else None
        if folder is not None and self.together:
            raise RuntimeError(
                f"ranks share the index in {folder}, and only one of them may add to it: leave over_ranks, and add on "
                "rank 0"
            )
        config, aside = IndexConfig(), Indexer(self.model)
        if folder is not None:
            # A batch at a time beside the index, which stays as it is: there a call goes on that was killed.
            config = IndexConfig(folder=str(folder / "adding"), dtype=cast(Any, index.manifest["dtype"]))
        made = aside.encode(new, mode, config, tell=folder is not None)
        self.still(corpus, index)
        self.lines.add(aside.lines, folder)
        index.add(new.sources(), made.vectors)
        self.discard(config)

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
        encoded: RowsOf = partial(self._over_ranks, rows=partial(self.rows, corpus, mode=mode, judged=judged))
        work = None if self.together else self.summed(corpus, mode)  # of ranks some may have sums and others not
        if work is not None:
            pooled = self._pooled(corpus, mode, judged, DTYPES[cast(str, index.manifest["dtype"])])
            encoded = pooled.rows(work, pooled.entries)

        def rows(some: Int[Tensor, " passages"]) -> Float[Tensor, "passages row"]:
            table = index.vectors[some]
            for anew in fresh[some].nonzero()[:, 0].split(PORTION):
                table[anew] = encoded(some[anew]).to(table)
            # log π costs no encoding, and fresh ones beside stale ones would be another distribution.
            table[:, -1] = (self.model.retriever.config.prior_weight * log_prior[some]).to(table)
            return table

        several = f"several {uuid4().hex}"  # never those of another index, whose rows would be copied
        made_with = {**index.manifest, "encoder": several, "extractor": several}
        return self._made(corpus, rows, made_with, replace(config, dtype=cast(Any, index.manifest["dtype"])))

    def restored(
        self,
        corpus: Corpus,
        rows: Float[Tensor, "passages row"],
        made_with: Mapping[str, object],
        config: IndexConfig,
    ) -> Index:
        """An index of rows that were encoded earlier, with the manifest that it had."""
        return self._made(corpus, lambda passages: rows[passages], made_with, config)

    def summed(self, corpus: Corpus, mode: GateMode) -> Work | None:
        """Sums over lines, where rows are pooled from them and all are there, so that nothing need be encoded."""
        work = self.lines.work(corpus, self.made_with(corpus, mode), None) if self._pools else None
        return work if work is not None and work.whole else None

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
        sums: Summed | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "passages row"]:
        """These candidates' rows with the present weights, pooled where sums over lines are given; `judged` is what
        `_judged` has said already, and `dtype` is as in `in_portions`."""
        gates, log_prior = judged or self._judged(corpus, mode)

        def portion(some: Int[Tensor, " some"]) -> Float[Tensor, "some row"]:
            if sums is None:
                return self.model.encode(corpus, some, gates, log_prior, mode)
            return sums.encode(self.model, corpus, some, gates, log_prior)

        return in_portions(passages, portion, dtype)

    def _over_ranks(
        self, passages: Int[Tensor, " passages"], rows: RowsOf, size: Int[Tensor, " corpus"] | None = None
    ) -> Float[Tensor, "rows row"]:
        """What `rows` gives for these passages, each rank having encoded its share of them.

        Args:
            size: how many rows each passage of the corpus has; None: one."""
        if not self.together or ranks() == 1:
            return rows(passages)
        count, share = len(passages), -(-len(passages) // ranks())
        shared = passages[torch.arange(share * ranks()) % max(1, count)]  # as many on every rank, some twice
        sizes = torch.ones_like(shared) if size is None else size[shared]
        ends = sizes.view(share, ranks()).cumsum(0)
        longest = int(ends[-1].max()) if share else 0
        own = rows(shared[rank() :: ranks()])
        every = torch.cat(gathered(F.pad(own, (0, 0, 0, longest - len(own)))))
        first = (ends - sizes.view(share, ranks()) + torch.arange(ranks()) * longest).flatten()
        return every[torch.from_numpy(runs(first[:count].numpy(), sizes[:count].numpy())).to(every.device)]

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
            "pooling": encoder.settings() | {"gates": retriever.config.gates},
            "similarity": encoder.similarity,
            "dim": encoder.dim,
            "prior_weight": retriever.config.prior_weight,
            "extractor": fingerprint(extractor),
            "extractor_config": self._settings(),
            "proposals": PROPOSAL_VERSION,
            "mode": mode,
        }

    def proposes_alike(self, manifest: Mapping[str, object], mode: GateMode) -> bool:
        """Whether an index with this manifest has the candidates that would be proposed now, whatever the weights."""
        now = {"mode": mode, "extractor_config": self._settings(), "proposals": PROPOSAL_VERSION}
        return mode != "hard" and all(manifest.get(name) == value for name, value in now.items())

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


def in_portions(
    passages: Int[Tensor, " passages"], rows: RowsOf, dtype: torch.dtype | None = None
) -> Float[Tensor, "passages row"]:
    """What `rows` gives for these passages, asked for a portion at a time, each put into its place at once: beside the
    whole, one portion at most stands in memory as it was made.

    Args:
        dtype: in which rows are stored, and then on the CPU; None: as they are made."""
    parts, table = passages.split(PORTION), None
    for start, part in zip(range(0, len(parts) * PORTION, PORTION), parts, strict=True):
        made = rows(part)
        if len(parts) == 1:
            return made if dtype is None else made.to("cpu", dtype)
        if table is None:
            there = made if dtype is None else torch.empty(0, dtype=dtype)
            table = there.new_empty(len(passages), made.shape[1])
        table[start : start + len(part)] = made
        del made  # not two portions at a time
    assert table is not None  # no passages are one part, too
    return table


def _rows_beside(
    sources: Sequence[Source], old: Index, rows: RowsOf, dtype: torch.dtype
) -> Float[Tensor, "passages row"]:
    """Rows that an index holds copied, the others as `rows` gives them, in a dtype on the CPU."""
    known, ends = dict(old.sources()), np.cumsum([source.passages for source in sources])
    table, fresh = torch.empty(int(ends[-1]), old.vectors.shape[1], dtype=dtype), []
    for source, end in zip(sources, ends.tolist(), strict=True):
        place = slice(end - source.passages, end)
        if source in known:
            table[place] = old.vectors[known[source]]
        else:
            fresh.append(torch.arange(place.start, place.stop))
    for part in torch.cat(fresh).split(PORTION) if fresh else ():
        table[part] = rows(part).to(table)
    return table


def _batches(sources: Sequence[Source]) -> list[slice]:
    """Documents of about `AT_ONCE` passages at a time; one that has as many is alone, since what stands beside others
    is held twice while it is put among them."""
    passages = np.asarray([source.passages for source in sources], np.int64)
    first = (np.cumsum(passages) - passages) // AT_ONCE
    starts = 1 + np.flatnonzero((np.diff(first) > 0) | (passages[1:] >= AT_ONCE))
    return [slice(*each) for each in pairwise([0, *starts.tolist(), len(sources)])]


def _kept(corpus: Corpus, gates: Gates, passage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lines that hard gates leave of a passage itself, for finding it and for reading it."""
    lines, carried = corpus.lines(passage)
    own = lines[carried:]
    return tuple(gates.kept(gates.retrieve, own, 0).tolist()), tuple(gates.kept(gates.read, own, 0).tolist())
