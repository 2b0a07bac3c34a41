"""Exact search: every score is computed, in torch, on the processor on which the queries are."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from e2erag.retriever.index import Hits, Prior, Queries, Rows, Source, Without, check_queries
from e2erag.retriever.scan import LogZ, scan
from e2erag.retriever.store import Store
from e2erag.retriever.stored import StoredIndex


class ExactIndex(StoredIndex):
    """Brute force over the stored rows, top K and log Z in one pass; scores are float32, whatever rows are stored in.

    Equal scores are ordered by row, the lower first, also at the edge of K. On a CPU the rows are searched where they
    lie (in memory, or mapped from their file); a GPU gets one copy."""

    exact = True

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._rows_of: Tensor | None = None
        self._elsewhere = torch.empty(0, 0)

    @classmethod
    def of(
        cls,
        rows: Rows,
        sources: Sequence[Source] | None = None,
        manifest: Mapping[str, object] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "ExactIndex":
        """An index in memory over these rows, which are not copied if they are of that dtype; one document unless
        `sources` says otherwise."""
        store = Store(dtype=dtype)
        store.build([sources or [Source("corpus", "", len(rows))]], lambda _: rows.detach(), manifest)
        return cls(store)

    def search(self, queries: Queries, k: int, prior: Prior | None = None) -> Hits:
        check_queries(self, queries, k, prior)
        queries, prior = as_scored(queries.detach(), prior)
        rows, dead = self._rows(queries.device)
        hits = scan(queries, rows, min(k, len(self)), None if prior is None else prior.detach(), dead)
        return Hits(hits.ids.cpu(), hits.scores.cpu(), hits.sums)

    def log_z(
        self,
        queries: Queries,
        hits: Hits,
        without: Without | None = None,
        prior: Prior | None = None,
    ) -> Float[Tensor, " questions"]:
        queries, prior = as_scored(queries, prior)
        rows, dead = self._rows(queries.device)
        if without is not None:
            without = Without(without.rows.to(queries.device), without.mask.to(queries.device))
        return LogZ.apply(queries, prior, rows, dead, hits.sums, without)

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows, and which are dead."""
        if self._rows_of is not self.vectors or self._elsewhere.device != device:
            self._elsewhere = torch.empty(0, 0)  # not two copies at a time
            # The rows themselves on a CPU, one copy on a GPU. The store maps them anew when they change.
            self._elsewhere, self._rows_of = self.vectors.to(device), self.vectors
        return self._elsewhere, self.store.dead.to(device)


def as_scored(queries: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Queries in float32 or wider; where the prior is given apart, with 0 for the stored one."""
    queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
    return (queries, None) if prior is None else (F.pad(queries[:, :-1], (0, 1)), prior)
