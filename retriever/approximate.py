"""Approximate search through faiss."""

import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.retriever.index import Hits, Prior, Queries, check_queries
from e2erag.retriever.ledger import StoreError
from e2erag.retriever.sampled import RESCORED, SampledIndex, ordered
from e2erag.retriever.store import Store

_TRAINED_ON = 39  # rows per centroid, as few as faiss asks for: it copies them as it learns
_MEASURED = (10**4, 10**5, 10**6)  # rows of `benchmarks/retrieval.py`, made up and far harder to find than texts
_TEXTS = 20_411  # paragraphs of SQuAD
_ADDED = 1 << 12  # rows given to faiss at a time


class Kind(NamedTuple):
    """A structure of faiss.

    Attributes:
        bytes: per row, given the rows' components.
        recall: share of the exact ten best that are found at each of `_MEASURED` rows, as far as that was measured.
        texts: the same share over `_TEXTS` paragraphs, by `benchmarks/kinds.py`.
        compressed: whether rows lose precision in it; then what was found is scored anew from the stored rows.
    """

    bytes: Callable[[int], float]
    recall: tuple[float, ...]
    texts: float
    compressed: bool = False


KINDS: Mapping[str, Kind] = {
    "Flat": Kind(lambda dim: 4 * dim, (1.0,), 1.0),
    # 64 neighbours of 4 bytes on the ground floor, 16 above it. At 10⁵ .57 to .70, by which rows and in what portions.
    "HNSW": Kind(lambda dim: 4 * dim + 272, (0.92, 0.57, 0.17), 0.997),
    "IVF": Kind(lambda dim: 4 * dim + 8, (0.84, 0.66, 0.39), 0.978),
    "SQ": Kind(lambda dim: dim + 8, (0.84, 0.66, 0.39), 0.978, True),
    "PQ": Kind(lambda dim: -(-dim // 4) + 8, (0.84, 0.66, 0.39), 0.978, True),
}


def choose(rows: int, dim: int, memory: float | None = None) -> tuple[str, str]:
    """The kind for a corpus of this size, and the reason as a text.

    Up to 50,000 rows Flat, which needs no training and misses nothing; up to a million HNSW, the quickest to search and
    the slowest to build (half an hour of a core there); then IVF. Where that doesn't fit into memory, a byte a
    component (SQ), then one for four (PQ). Of texts HNSW misses the least; of the benchmark's made-up rows
    it misses more than IVF from 10⁵ on. The text states both.

    Args:
        memory: bytes that the structure may take; half of the machine's if not given.
    """
    room = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    wanted = ["Flat"] if rows <= 50_000 else (["HNSW"] if rows <= 1_000_000 else []) + ["IVF", "SQ", "PQ"]
    name = next((kind for kind in wanted if rows * KINDS[kind].bytes(dim) <= room), wanted[-1])
    need, recall = rows * KINDS[name].bytes(dim), KINDS[name].recall
    at = _MEASURED[: len(recall)]
    expected = np.interp(math.log(max(rows, 1)), np.log(at), recall)
    most = "at most " if rows > at[-1] and name != "Flat" else ""
    return name, (
        f"{rows:,} rows of {dim}: {name}, {need / 1e6:,.1f} MB of {room / 1e6:,.0f}, expected recall@10 "
        f"{most}{expected:.2f} (of made-up rows, far harder than texts)"
        + ("" if name == "Flat" else f"; {KINDS[name].texts} of {_TEXTS:,} paragraphs, which says little of more")
        + ("" if need <= room else ": it doesn't fit, so shard the corpus over machines")
    )


class FaissIndex(SampledIndex):
    """Search through faiss over a store in a folder.

    The rows stay on the disk, and memory holds faiss' structure alone. It is built from the rows, block by block, when
    first needed, lies beside them, and follows what is added; deleted rows are passed by. Its centroids are those of
    the rows at the time it was built: build anew when the corpus has grown several times over.

    Equal scores are ordered by row; which of them are among the K at its very edge is faiss' choice.
    """

    def __init__(self, store: Store, kind: str | None = None, report: Callable[[str], object] = print) -> None:
        """
        Args:
            kind: Flat, HNSW, IVF, SQ or PQ; by size (`choose`) if not given, which is reported.
        """
        if store.folder is None:
            raise ValueError(
                "faiss' structure stands beside rows on a disk: give the Store a folder, or use ExactIndex"
            )
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        super().__init__(store)
        self.kind, self.report = kind, report
        self._built: int | None = None
        self.faiss: Any = None  # faiss' own type hints lack most of what is called

    def search(self, queries: Queries, k: int, prior: Prior | None = None) -> Hits:
        check_queries(self, queries, k, prior)
        self._follow()
        kind = KINDS[self._name]
        k = min(k, len(self))
        anew = kind.compressed or prior is not None
        x = np.ascontiguousarray(queries.detach().cpu().float().numpy())
        fetched = min(k * RESCORED, len(self)) if anew else k
        scores, ids = self.faiss.search(_padded(x, self.faiss.d), fetched, params=self._params())
        if anew:
            return self._anew(queries, torch.from_numpy(ids), k, prior)
        best = ordered(
            Hits(torch.from_numpy(ids), torch.from_numpy(scores).masked_fill_(torch.from_numpy(ids) < 0, -torch.inf))
        )
        return Hits(best.ids[:, :k], best.scores[:, :k])

    def save(self, folder: str | Path) -> None:
        """Rows first, then the structure: copied where rows keep their numbers, built where they don't.

        Raises:
            OSError: there is no room for either. A text that says that the rows are saved means that they are.
        """
        super().save(folder)
        target = FaissIndex(Store.open(folder, verify=False), self.kind, self.report)
        self._follow()
        if not len(self.store.dead):
            target._name, target.faiss = self._name, self.faiss
        else:
            target._build()
        try:
            target._write()
        except OSError as error:
            raise OSError(
                error.errno,
                f"the rows are saved in {folder}, and {target._name}'s structure isn't ({error.__cause__ or error}): "
                "make room or check permissions, and save again",
                str(folder),
            ) from error

    # ------------------------------------------------------------------------------------------------ the structure

    def _follow(self) -> None:
        """Bring the structure to what the store holds."""
        version = self.store.version
        assert version is not None  # a search has checked that there are rows
        if self._built != version.id:
            self._load_or_build(version.id)
        if self.faiss.ntotal < len(self.vectors):
            self._add(self.faiss.ntotal)

    def _load_or_build(self, version: int) -> None:
        stored = self.store.structure(self.kind)
        if stored is not None:
            self._name, path = stored
            self.faiss = faiss.read_index(str(path))
        else:
            self._build()
            try:
                self._write()
            except (OSError, StoreError) as error:  # what was built serves this process all the same
                why = error.strerror if isinstance(error, OSError) else error
                self.report(f"{self._name}'s structure stays in memory and isn't kept: {why}")
        self._built = version

    def _build(self) -> None:
        rows, dim = self.vectors.shape
        self._name = self.kind or choose(rows, dim)[0]
        if self.kind is None:
            self.report(choose(rows, dim)[1])
        self.faiss = self._trained(self._name, rows, dim)
        self._add(0)

    def _trained(self, name: str, rows: int, dim: int) -> Any:
        index: Any
        lists = max(1, min(int(4 * math.sqrt(rows)), rows // 39))
        if name == "HNSW":
            index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = 100, 128
            return index
        width = -(-dim // 4) * 4 if name == "PQ" else dim
        bits = max(1, min(8, int(math.log2(max(2, rows / 39)))))
        spec = {
            "Flat": "Flat",
            "IVF": f"IVF{lists},Flat",
            "SQ": f"IVF{lists},SQ8",
            # np: without the polysemous codes (Douze et al. 2016) that no search here uses, most of the time to learn.
            "PQ": f"IVF{lists},PQ{width // 4}x{bits}np",
        }
        index = faiss.index_factory(width, spec[name], faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            # At least what 256 centroids of a PQ need; drawn, since neighbours are alike.
            some = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: _TRAINED_ON * max(lists, 256)]
            some = some.repeat(2) if rows == 1 else some  # a product quantiser has two centroids at least
            index.train(_padded(self._read(some.sort().values).float().numpy(), width))
            index.nprobe = max(8, lists // 8)
        return index

    def _read(self, rows: Int[Tensor, " some"]) -> Float[Tensor, "some dim"]:
        """These rows (ascending), in no more memory than they and a portion of all take."""
        found, filled = self.vectors.new_empty(len(rows), self.vectors.shape[1]), 0
        for first in range(0, len(self.vectors), _ADDED):
            stop = min(first + _ADDED, len(self.vectors))
            here = rows[(rows >= first) & (rows < stop)] - first
            if len(here):
                found[filled : filled + len(here)] = self.store.read(first, stop)[here]
                filled += len(here)
        return found

    def _add(self, start: int) -> None:
        """Rows from `start` on; the first time with room for all, since what grows by doubling is held twice."""
        if not start and isinstance(self.faiss, faiss.IndexIVF):
            lists = np.concatenate([self.faiss.quantizer.assign(rows, 1)[:, 0] for rows in self._portions(0)])
            room: Any = self.faiss.invlists
            for number, count in enumerate(np.bincount(lists, minlength=self.faiss.nlist).tolist()):
                room.resize(number, count)
                room.resize(number, 0)  # stays reserved
            for rows, own in zip(self._portions(0), np.split(lists, range(_ADDED, len(lists), _ADDED)), strict=True):
                self.faiss.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(np.ascontiguousarray(own)))
            return
        flat = faiss.downcast_index(getattr(self.faiss, "storage", self.faiss))
        if not start and isinstance(flat, faiss.IndexFlat):
            flat.codes.resize(len(self.vectors) * flat.code_size)
            flat.codes.resize(0)
        for rows in self._portions(start):
            self.faiss.add(rows)

    def _portions(self, start: int) -> Iterator[Float[np.ndarray, "some dim"]]:
        """Rows as faiss takes them, some at a time."""
        for first in range(start, len(self.vectors), _ADDED):
            rows = self.store.read(first, min(first + _ADDED, len(self.vectors)))
            yield _padded(rows.float().numpy(), self.faiss.d)

    def _write(self) -> None:
        def write(path: Path) -> None:
            try:
                faiss.write_index(self.faiss, str(path))
            except RuntimeError as error:  # faiss' own, whose text ends with the system's
                for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                    if os.strerror(number) in str(error):
                        raise OSError(number, str(error)) from error
                raise

        self.store.put_structure(self._name, self.faiss.ntotal, write)

    def _params(self) -> Any:
        dead = self.store.dead
        alive: Any = None
        if self.faiss.ntotal > len(self.vectors):  # another process has added rows; this one hasn't looked
            alive = faiss.IDSelectorRange(0, len(self.vectors))
        if len(dead):
            others = faiss.IDSelectorNot(faiss.IDSelectorBatch(dead.numpy()))
            alive = others if alive is None else faiss.IDSelectorAnd(alive, others)
        if alive is None:
            return None
        params: Any = faiss  # whose type hints lack these
        if self._name == "Flat":
            return params.SearchParameters(sel=alive)
        if self._name == "HNSW":
            return params.SearchParametersHNSW(sel=alive, efSearch=self.faiss.hnsw.efSearch)
        return params.SearchParametersIVF(sel=alive, nprobe=self.faiss.nprobe)


def _padded(rows: Float[np.ndarray, "rows dim"], width: int) -> Float[np.ndarray, "rows width"]:
    """Zeros behind the components: a product quantiser takes four of them at a time."""
    if rows.shape[1] == width:
        return rows
    wide = np.zeros((len(rows), width), rows.dtype)  # np.pad takes ten times as long
    wide[:, : rows.shape[1]] = rows
    return wide
