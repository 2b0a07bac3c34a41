"""log p(z|x) of the passages found, with Z over the whole corpus, from an index."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.retriever.index import Hits, Index, Prior, Queries, Without
from e2erag.retriever.retriever import log_prob_found
from e2erag.retriever.spans import Spans


def log_prob(
    index: Index,
    queries: Queries,
    hits: Hits,
    ids: Int[Tensor, "questions k"],
    spans: Spans,
    rows: Int[Tensor, " unique"],
    fresh: Float[Tensor, "questions unique"],
    prior: Prior | None = None,
) -> Float[Tensor, "questions k"]:
    """log p(z|x) of the K found; −∞ where an id is −1.

    What is encoded afresh for one question serves the others too: it counts in every Z with its fresh score. The rest
    of the corpus is one term more, log Σ exp of its stored scores, with gradient into the queries and the prior.
    Passages that repeat one of a question's K are left out of its Z, so that no text counts twice.

    Args:
        hits: what the search with the same queries and prior gave.
        ids: the K chosen of them, −1 where there was none.
        rows: the passages that stand in `ids`, ascending, each once.
        fresh: their scores, encoded anew.
    """
    repeated = spans.repeated(ids)
    out = torch.cat([rows, repeated.rows]).unique()
    mask = torch.zeros(len(ids), len(out), dtype=torch.bool)
    mask[:, torch.searchsorted(out, repeated.rows)] = repeated.mask
    column = torch.searchsorted(out, rows)
    nested = torch.cat([mask[:, column], torch.zeros(len(ids), 1, dtype=torch.bool)], 1)
    mask[:, column] = True
    rest = index.log_z(queries, hits, Without(out, mask), prior)
    scores = torch.cat([fresh, rest.to(queries)[:, None]], 1)
    where = torch.searchsorted(rows, ids.clamp_min(0)).masked_fill(ids < 0, -1)
    return log_prob_found(scores, where, nested)
