"""p(z | x) = exp(s_z) / Z with s_z = ⟨q(x), d(z; w)⟩ / τ + α·log π(z), and Z over every passage of the corpus."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from e2erag.retriever.encoder import Encoder


@dataclass(frozen=True)
class RetrieverConfig:
    """Attributes:
    temperature: τ, the scale of the inner product; .05 with unit vectors.
    prior_weight: α, how much the extractor's log π counts.
    tied: one model for questions and passages; untied towers start equal and have parameters of their own.
    """

    temperature: float = 0.05
    prior_weight: float = 1.0
    tied: bool = True


class Retriever(nn.Module):
    """Two towers and the distribution they define."""

    def __init__(self, encoder: Encoder, config: RetrieverConfig | None = None, query: Encoder | None = None) -> None:
        super().__init__()
        self.config = config or RetrieverConfig()
        self.passage = encoder
        self.query = encoder if self.config.tied else (query or copy.deepcopy(encoder))

    def encode_questions(self, questions: list[str]) -> Float[Tensor, "questions row"]:
        """[q(x)/τ ; 1], ready for an inner product with `passage_rows`."""
        q = self.query.encode_text(questions, prompt="query") / self.config.temperature
        return torch.cat([q, q.new_ones(len(q), 1)], -1)

    def passage_rows(
        self, vectors: Float[Tensor, "passages dim"], log_prior: Float[Tensor, " passages"]
    ) -> Float[Tensor, "passages row"]:
        """[d(z) ; α·log π(z)]: what the index stores and a search multiplies."""
        return torch.cat([vectors, self.config.prior_weight * log_prior[:, None].to(vectors)], -1)

    def with_prior(
        self,
        scores: Float[Tensor, "questions passages"],
        rows: Float[Tensor, "passages row"],
        log_prior: Float[Tensor, " passages"],
    ) -> Float[Tensor, "questions passages"]:
        """Stored scores with another prior than the one in the index' rows."""
        return scores + (self.config.prior_weight * log_prior - rows[:, -1].to(scores))

    def save(self, folder: Path) -> None:
        self.passage.save(folder / "passage")
        if not self.config.tied:
            self.query.save(folder / "query")

    @classmethod
    def load(cls, folder: Path, config: RetrieverConfig) -> "Retriever":
        query = None if config.tied else Encoder.load(folder / "query")
        return cls(Encoder.load(folder / "passage"), config, query)


def log_prob_found(
    scores: Float[Tensor, "questions passages"],
    ids: Int[Tensor, "questions k"],
    nested: Bool[Tensor, "questions passages"] | None = None,
) -> Float[Tensor, "questions k"]:
    """log p(z|x) of the K passages found, with Z over the whole corpus; −∞ where an id is −1.

    Args:
        scores: s_z of every passage of the corpus: fresh, with gradient into both towers and the extractor, where it
            was re-encoded; elsewhere from the index, with the query tower's gradient.
        ids: rows of the K found, −1 where there was none.
        nested: passages that mostly repeat one of the K; they are left out of Z, so that no text counts twice.
    """
    ids = ids.to(scores.device)
    found = ids >= 0
    dropped = torch.zeros_like(scores, dtype=torch.bool) if nested is None else nested.to(scores.device, copy=True)
    question, column = found.nonzero(as_tuple=True)
    dropped[question, ids[question, column]] = False
    log_z = scores.masked_fill(dropped, -torch.inf).logsumexp(1, keepdim=True)
    return scores.gather(1, ids.clamp_min(0)).masked_fill(~found, -torch.inf) - log_z


def log_tail(prior_logp: Float[Tensor, "questions k"]) -> Float[Tensor, " questions"]:
    """log(1 − P_K), stable where P_K is near 0 or 1; −∞ (without gradient) where nothing is left."""
    total = torch.logsumexp(prior_logp, 1)
    open_ = total < -1e-6  # float32 leaves about 1e-7 of noise in P_K
    safe = torch.where(open_, total, -1.0)
    return torch.where(open_, torch.log(-torch.expm1(safe)), -torch.inf)
