"""log p(z|x) of the passages found, with Z over the whole corpus, from an index; and what moves in the rest's place."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from e2erag.retriever.exact import as_scored
from e2erag.retriever.index import Hits, Index, Prior, Queries, Without
from e2erag.retriever.retriever import log_prob_found
from e2erag.retriever.sampled import SAMPLE, left_out
from e2erag.retriever.spans import Spans


class Drawn(NamedTuple):
    """Passages out of the rest of the corpus, those that Z has by their stored scores alone, which stand for all of it.

    Attributes:
        rows: ascending, each once.
        share: of the rest's mass, per question, that each stands for; their sum is 1, or 0 where none of them is of a
            question's rest, which stands still then.
    """

    rows: Int[Tensor, " drawn"]
    share: Float[Tensor, "questions drawn"]

    def slope(self, queries: Queries, vectors: Float[Tensor, "drawn dim"]) -> Float[Tensor, " questions"]:
        """0, whose slope in what these passages' rows are made of is an estimate of that of log Σ exp(s) over the rest.

        The questions' own slope stands in the stored scores already, and so does that of log π, where it is given."""
        scores = queries.detach()[:, :-1] @ vectors[:, :-1].T
        return (self.share.to(scores) * (scores - scores.detach())).sum(1)


@dataclass(frozen=True)
class Softmax:
    """p(z|x) of some passages, with Z over the whole corpus.

    A question's K count in its Z with their fresh scores. The rest of the corpus is one term more, log Σ exp of its
    stored scores, with gradient into the queries and the prior; and into what makes rows where some of it is encoded
    too (`draw`). Else what moves all rows alike seems to move the K. Passages that repeat one of a question's K are
    left out of its Z, so that no text counts twice.

    Attributes:
        hits: what the search with the same queries and prior gave.
        ids: the K chosen of them, −1 where there was none.
        rows: the passages that stand in `ids`, ascending, each once.
        prior: α·log π of every row, where it isn't the stored one.
        shared: whether what is encoded for one question counts with its fresh score in every Z, as what is drawn for
            all of them does. Without it p(z|x), and its gradient, doesn't depend on which questions are asked together.
    """

    index: Index
    queries: Queries
    hits: Hits
    ids: Int[Tensor, "questions k"]
    spans: Spans
    rows: Int[Tensor, " unique"]
    prior: Prior | None = None
    shared: bool = False

    @cached_property
    def _without(self) -> tuple[Without, Bool[Tensor, "questions columns"]]:
        """What isn't of the rest: passages encoded afresh, and those that repeat one of a question's K; and which of
        the former aren't counted for it, with a last column for the rest, which is."""
        repeated = self.spans.repeated(self.ids)
        out = torch.cat([self.rows, repeated.rows]).unique()
        mask = torch.zeros(len(self.ids), len(out), dtype=torch.bool)
        mask[:, torch.searchsorted(out, repeated.rows)] = repeated.mask
        column = torch.searchsorted(out, self.rows)
        others = ~((self.ids[:, :, None] == self.rows).any(1) | self.shared)
        nested = torch.cat([mask[:, column] | others, torch.zeros(len(self.ids), 1, dtype=torch.bool)], 1)
        mask[:, column] |= ~others
        return Without(out, mask), nested

    @torch.no_grad()
    def draw(self, count: int, noise: torch.Generator | None = None) -> Drawn:
        """At most `count` passages out of the rest, each as likely as p(z|x) among it, in the mean over the questions.

        A question's slope is then that of their scores weighted by its own p(z|x) over that mean (self-normalised
        importance sampling of a softmax' gradient, Bengio & Senécal 2008; drawn systematically). Out of every row; or,
        where there are more than `SAMPLE`, out of those that the search has found and so many others. No row may be
        dead; in a training run's index none is.

        Args:
            count: 0 draws none.
            noise: the same numbers are taken of it whatever the questions; None: torch's own generator.

        Raises:
            ValueError: some are to be drawn, and the questions don't share their Z."""
        if count and not self.shared:
            raise ValueError("what is drawn for all questions takes a Z that they share: Softmax(…, shared=True)")
        n = len(self.index.vectors)
        if not count:
            return Drawn(self.rows[:0], self.queries.new_zeros(len(self.queries), 0))
        seen, log_times = torch.arange(n), torch.zeros(n)
        if n > SAMPLE:
            near = self.hits.ids[self.hits.ids >= 0].unique()
            others, times = torch.randint(n, (SAMPLE,), generator=noise).unique(return_counts=True)
            new = ~torch.isin(others, near)
            seen, order = torch.cat([near, others[new]]).sort()
            log_times = torch.cat([torch.zeros(len(near)), times[new].log() + math.log(n / SAMPLE)])[order]
        scored, prior = as_scored(self.queries, self.prior)
        scores = scored @ self.index.vectors.index_select(0, seen).to(scored).T + log_times.to(scored)
        if prior is not None:
            scores = scores + prior[..., seen.to(prior.device)].to(scores)
        out = left_out(self._without[0], seen.expand(len(scored), -1))
        p = scores.cpu().double().masked_fill(out, -torch.inf).softmax(1).nan_to_num(0.0)
        mean = p.mean(0)
        point = (torch.rand((), generator=noise, dtype=torch.double) + torch.arange(count)) / count * mean.sum()
        met = torch.searchsorted(mean.cumsum(0), point, right=True).clamp_max(len(seen) - 1)
        chosen, times = met[mean[met] > 0].unique(return_counts=True)
        share = p[:, chosen] * times / mean[chosen]
        return Drawn(seen[chosen], (share / share.sum(1, keepdim=True)).nan_to_num(0.0).to(scored))

    def log_prob(
        self, fresh: Float[Tensor, "questions unique"], rest_slope: Float[Tensor, " questions"] | None = None
    ) -> Float[Tensor, "questions k"]:
        """log p(z|x) of the K chosen; −∞ where an id is −1.

        Args:
            fresh: scores of `rows`, encoded anew.
            rest_slope: `Drawn.slope`."""
        without, nested = self._without
        rest = self.index.log_z(self.queries, self.hits, without, self.prior)
        if rest_slope is not None:
            rest = rest + rest_slope.to(rest)
        scores = torch.cat([fresh, rest.to(self.queries)[:, None]], 1)
        where = torch.searchsorted(self.rows, self.ids.clamp_min(0)).masked_fill(self.ids < 0, -1)
        return log_prob_found(scores, where, nested)
