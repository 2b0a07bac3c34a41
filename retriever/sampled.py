"""Search that sees a part of the rows only: scores of what it found, and an estimate of log Z."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.retriever.exact import as_scored
from e2erag.retriever.index import Hits, Prior, Queries, Without
from e2erag.retriever.stored import StoredIndex

SAMPLE = 4096
"""Rows drawn for the part of Z that a search doesn't see."""
RESCORED = 4
"""Rows fetched per row wanted where those that fetch go by other scores: of compressed rows, or with a stale prior; and
rows beside them that a given prior lifts most."""


class SampledIndex(StoredIndex):
    """An index over a store whose search doesn't see every row."""

    exact = False

    def log_z(
        self,
        queries: Queries,
        hits: Hits,
        without: Without | None = None,
        prior: Prior | None = None,
    ) -> Float[Tensor, " questions"]:
        """An estimate: what was found counts exactly, and so does what the prior lifts most; the rest counts as
        Σ exp(s_z − log(S·Q(z))) over S rows drawn with Q = 1/N (logQ correction; Bengio & Senécal 2008). Ẑ is unbiased,
        and with p_max the largest p(z|x) of the rest and P its mass, its standard error is at most √(N/S · p_max · P)
        of Z."""
        ids = self._with_lifted(hits.ids, hits.ids.shape[1], prior)
        n = len(self.vectors)
        drawn = torch.randint(n, (SAMPLE,))
        scores, base = as_scored(queries, prior)
        rest = scores @ self.vectors[drawn].to(scores).T
        if base is not None:
            rest = rest + base[..., drawn.to(base.device)].to(rest)
        seen = torch.isin(drawn, self.store.dead).repeat(len(ids), 1)
        for own, row in zip(seen, ids, strict=True):
            own |= torch.isin(drawn, row)
        found, missing = self._scores(queries, ids, prior), ids < 0
        if without is not None:
            seen |= left_out(without, drawn.expand(len(queries), -1))
            missing = missing | left_out(without, ids)
        rest = rest.masked_fill(seen.to(rest.device), -torch.inf) + math.log(n / SAMPLE)
        return torch.cat([found.masked_fill(missing.to(found.device), -torch.inf), rest], 1).logsumexp(1)

    def _anew(self, queries: Queries, ids: Int[Tensor, "questions fetched"], k: int, prior: Prior | None) -> Hits:
        """The k best of these rows, and of those that the prior lifts most, by the stored rows and the prior."""
        ids = self._with_lifted(ids, k, prior)
        best = ordered(Hits(ids, self._scores(queries.detach(), ids, prior).cpu()))
        return Hits(best.ids[:, :k], best.scores[:, :k])

    def _with_lifted(
        self, ids: Int[Tensor, "questions found"], k: int, prior: Prior | None
    ) -> Int[Tensor, "questions more"]:
        """These rows and, for each of k, some that the prior lifts most above the one stored; each once, the rest −1.

        A score is the stored one and what its prior has moved by: what is best by neither is seldom best by the sum."""
        if prior is None:
            return ids
        moved = prior.detach() - self.vectors[:, -1].to(prior)
        moved[..., self.store.dead.to(moved.device)] = -torch.inf
        most, lifted = moved.topk(min(k * RESCORED, len(self)))
        lifted = lifted.masked_fill(most == -torch.inf, -1).cpu().expand(len(ids), -1)
        every = torch.cat([ids, lifted], 1).sort(1).values
        return every.masked_fill(F.pad(every[:, 1:] == every[:, :-1], (1, 0)), -1)

    def _scores(
        self, queries: Queries, ids: Int[Tensor, "questions k"], prior: Tensor | None
    ) -> Float[Tensor, "questions k"]:
        """s_z of these rows as they are stored, with gradient into queries and prior; −∞ where an id is −1."""
        queries, prior = as_scored(queries, prior)
        rows = self.vectors.index_select(0, ids.clamp_min(0).flatten()).unflatten(0, ids.shape)  # half of [ids]'s time
        scores = torch.einsum("qd,qkd->qk", queries, rows.to(queries))
        if prior is not None:
            scores = scores + prior.expand(len(ids), -1).gather(1, ids.clamp_min(0).to(prior.device)).to(scores)
        return scores.masked_fill((ids < 0).to(scores.device), -torch.inf)


def left_out(without: Without, ids: Int[Tensor, "questions k"]) -> Tensor:
    """Which of these rows the questions leave out."""
    if not len(without.rows):
        return torch.zeros_like(ids, dtype=torch.bool)
    column = torch.searchsorted(without.rows, ids.contiguous()).clamp_max(len(without.rows) - 1)
    return without.mask.gather(1, column) & (without.rows[column] == ids)


def ordered(hits: Hits) -> Hits:
    """Best first, equal scores by row."""
    if (hits.scores[:, 1:] < hits.scores[:, :-1]).all():
        return hits
    by_row = hits.ids.argsort(1)
    ids, scores = hits.ids.gather(1, by_row), hits.scores.gather(1, by_row)
    best = scores.argsort(dim=1, descending=True, stable=True)
    return Hits(ids.gather(1, best), scores.gather(1, best))
