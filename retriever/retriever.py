"""p(z | x) = exp(s_z) / Z with s_z = ⟨q(x), d(z; w)⟩ / τ + α·log π(z), and Z over every passage of the corpus.

⟨q, d⟩ is the cosine or the inner product, as the model's own configuration says (`similarity_fn_name`).

Optionally s_z has a third part, β·BM25(x, z)."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.extract.tokens import LineTokens
from e2erag.retriever.encoder import Encoder
from e2erag.retriever.lora import add_lora

NUMBERS = "numbers.safetensors"
"""Where β and log τ are saved, if they learn."""


@dataclass(frozen=True)
class RetrieverConfig:
    """How passages are encoded and scored.

    Attributes:
        temperature: τ, the scale of the cosine, or of the inner product of a model that was trained for that, whose
            scale may be far from the cosine's .05.
        learn_temperature: whether τ learns (log τ does) from where it starts, or stays.
        prior_weight: α, how much the extractor's log π counts.
        tied: one model for questions and passages; untied towers start equal and have parameters of their own.
        gates: where a gate acts: "attend" on attention and pooling, "pool" on pooling alone, so that a change of the
            extractor needs no encoding where it leaves the passages as they are; it needs a model with mean pooling.
            What is pooled anew (`LineSums`) lies with the index, in memory or in its folder, and in a saved system: a
            float32 row for each line of each passage and one more a passage. "hard": in hard mode alone, where shut
            lines are gone; for models whose attention takes no gates and that don't pool by the mean. Gates for finding
            learn nothing from answers then (those for reading, cuts and the prior do).
        lora: rank of adapters, which are then all of the towers that learns; None trains every weight.
        bm25: β, where it starts: s_z gains β·BM25(x, z), and β learns with the rest. 1 goes with the default model. For
            numbers, names and terms that tell passages apart; their postings lie in memory. None: dense alone.
        token_budget: padded tokens of one forward pass; bounds its memory.
        held_tokens: padded tokens whose activations a training step holds for its backward pass; what is beyond is
            computed a second time there.
    """

    temperature: float = 0.05
    learn_temperature: bool = False
    prior_weight: float = 1.0
    tied: bool = True
    gates: Literal["attend", "pool", "hard"] = "attend"
    lora: int | None = None
    bm25: float | None = None
    token_budget: int = 2048
    held_tokens: int = 16384

    def __post_init__(self) -> None:
        if self.gates not in ("attend", "pool", "hard"):
            raise ValueError(f"gates act by 'attend', by 'pool' or in 'hard' mode alone, got {self.gates!r}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature divides the inner product and must be above 0, got {self.temperature}")
        if self.token_budget < 1 or self.held_tokens < 0:
            raise ValueError(f"token_budget is at least 1 and held_tokens at least 0, got {self}")


class Retriever(nn.Module):
    """Two towers and the distribution they define."""

    def __init__(self, encoder: Encoder, config: RetrieverConfig | None = None, query: Encoder | None = None) -> None:
        super().__init__()
        self.config = c = config or RetrieverConfig()
        for tower in (encoder, query or encoder):
            if tower.similarity not in ("cosine", "dot") or tower.similarity != encoder.similarity:
                raise ValueError(
                    "both towers are compared by cosine, or both by dot, and distances aren't searched; "
                    f"{tower.similarity!r} came beside {encoder.similarity!r}: take models that were trained so, or "
                    'say so by SentenceTransformer(…, similarity_fn_name="dot")'
                )
        if c.gates == "pool" and encoder.pooling != "mean":
            raise ValueError(
                f'gates="pool" weighs lines in mean pooling, and this model pools by {encoder.pooling!r}: '
                'use gates="attend", or a model with mean pooling'
            )
        if c.gates == "attend":
            encoder.take_gates()
        if not c.tied and query is not None and set(query.parameters()) & set(encoder.parameters()):
            raise ValueError("untied towers are two models, and these share parameters: leave query out for a copy")
        self.beta = None if c.bm25 is None else nn.Parameter(torch.tensor(float(c.bm25)))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(c.temperature))) if c.learn_temperature else None
        self.passage = encoder
        self.query = encoder if c.tied else (query or copy.deepcopy(encoder))
        if c.lora is not None:
            for tower in {id(tower): tower for tower in (self.passage, self.query)}.values():
                nn.ModuleList(tower.head).requires_grad_(False)
                add_lora(tower.transformer, c.lora)
        for tower in (self.passage, self.query):
            tower.token_budget, tower.held_tokens = c.token_budget, c.held_tokens

    @property
    def temperature(self) -> float | Float[Tensor, ""]:
        """τ: as configured, or as learned so far."""
        return self.config.temperature if self.log_temperature is None else self.log_temperature.exp()

    def set_temperature(self, temperature: float) -> None:
        """τ from now on, where it learns too, and β in proportion: BM25 weighs as much beside the similarity as before.
        No stored row depends on either."""
        before = float(self.temperature)
        self.config = replace(self.config, temperature=temperature)  # which refuses what can't be
        if self.beta is not None:
            self.beta.data.mul_(before / temperature)
        if self.log_temperature is not None:
            self.log_temperature.data.fill_(math.log(temperature))

    def encode_questions(self, questions: list[str]) -> Float[Tensor, "questions row"]:
        """[q(x)/τ ; 1], ready for an inner product with `passage_rows`."""
        q = self._compared(self.query.encode_text(questions, role="query"), self.query) / self.temperature
        return torch.cat([q, q.new_ones(len(q), 1)], -1)

    def encode_passages(
        self,
        lines: LineTokens,
        passages: Sequence[Int[np.ndarray, " _"]],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"]] | None = None,
    ) -> Float[Tensor, "passages dim"]:
        """d(z; w), with the gates where the configuration wants them; see `Encoder.encode_lines`."""
        gates = self.config.gates
        return self.passage.encode_lines(
            lines, passages, None if gates == "hard" else log_gates, slots, attend=gates == "attend"
        )

    def passage_rows(
        self, vectors: Float[Tensor, "passages dim"], log_prior: Float[Tensor, " passages"]
    ) -> Float[Tensor, "passages row"]:
        """[d(z) ; α·log π(z)]: what the index stores and a search multiplies."""
        vectors = self._compared(vectors, self.passage)
        return torch.cat([vectors, self.config.prior_weight * log_prior[:, None].to(vectors)], -1)

    def _compared(self, vectors: Float[Tensor, "each dim"], tower: Encoder) -> Float[Tensor, "each dim"]:
        """Vectors whose inner product is the similarity that the model's own configuration names."""
        return vectors if self.passage.similarity == "dot" or tower.normalizes else F.normalize(vectors, dim=-1)

    def with_bm25(
        self, scores: Float[Tensor, "*given passages"], sparse: Float[Tensor, "questions passages"] | None
    ) -> Float[Tensor, "*both passages"]:
        """s_z + β·BM25(x, z): the weight of the sparse score learns in the same softmax; without one, s_z."""
        return scores if self.beta is None or sparse is None else scores + self.beta * sparse.to(scores)

    def save(self, folder: Path) -> None:
        self.passage.save(folder / "passage")
        if numbers := dict(self.named_parameters(recurse=False)):
            save_file({name: number.detach() for name, number in numbers.items()}, folder / NUMBERS)
        if not self.config.tied:
            self.query.save(folder / "query")

    @classmethod
    def load(cls, folder: Path, config: RetrieverConfig) -> "Retriever":
        query = None if config.tied else Encoder.load(folder / "query")
        retriever = cls(Encoder.load(folder / "passage"), config, query)
        if numbers := dict(retriever.named_parameters(recurse=False)):
            saved = load_file(folder / NUMBERS)
            for name, number in numbers.items():
                number.data = saved[name]
        return retriever


def log_prob_found(
    scores: Float[Tensor, "questions passages"],
    ids: Int[Tensor, "questions k"],
    nested: Bool[Tensor, "questions passages"] | None = None,
) -> Float[Tensor, "questions k"]:
    """log p(z|x) of the K passages found, with Z over these scores; −∞ where an id is −1.

    Args:
        scores: all that Z sums over: of the whole corpus, or (`Softmax`) of the passages encoded afresh and, in one
            column more, the rest of the corpus.
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
    """log(1 − P_K), stable where P_K is near 0 or 1; −∞ (without gradient) where nothing is left, 0 where K is none."""
    some = (prior_logp > -torch.inf).any(1, keepdim=True)
    total = torch.logsumexp(torch.where(some, prior_logp, -1e4), 1)
    open_ = total < -1e-6  # float32 leaves about 1e-7 of noise in P_K
    safe = torch.where(open_, total, -1.0)
    return torch.where(open_, torch.log(-torch.expm1(safe)), -torch.inf)
