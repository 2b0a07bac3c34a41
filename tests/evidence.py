"""Evidence over a tiny corpus in float64, for tests of objectives."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from e2erag.train import OBJECTIVES, Evidence, Options

STOCHASTIC = ("gumbel", "rloo")
RETRIEVER_ALONE = ("pdist", "lsr", "loop", "contrastive")
READER_ALONE = ("reader",)
RETRIEVING = [name for name in OBJECTIVES if name not in READER_ALONE]
EXACT = [name for name in OBJECTIVES if name not in STOCHASTIC]


@dataclass
class Tiny:
    """Questions and passages as vectors, log p of each token of each answer after each passage and after none."""

    questions: Tensor  # b d
    passages: Tensor  # n d
    tokens: Tensor  # b n t
    closed: Tensor  # b t
    length: Tensor  # b

    def evidence(self, k: int, dtype: torch.dtype = torch.float64) -> Evidence:
        """The K best of all passages, Z over all."""
        scores = self.questions @ self.passages.T
        ids = scores.detach().topk(k).indices
        tokens = self.tokens.gather(1, ids[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        every = Evidence(
            prior_logp=scores.log_softmax(1).gather(1, ids),
            answer_logp=tokens.sum(2),
            closed_book_logp=self.closed.sum(1),
            token_logp=tokens,
            length=self.length,
            ids=ids,
            question_rows=self.questions,
            passage_rows=self.passages[ids],
        )
        return changed(every, lambda t: t.to(dtype))


def tiny(b: int = 3, n: int = 7, t: int = 4, seed: int = 0, level: float = 2.0) -> Tiny:
    """Random, with gradient; answers of 1 … t tokens, each token about `level` nats."""
    g = torch.Generator().manual_seed(seed)
    length = torch.arange(b) % t + 1
    real = (torch.arange(t) < length[:, None]).double()
    made = [torch.randn(b, 3, generator=g).double(), torch.randn(n, 3, generator=g).double()]
    tokens = -2 * level * torch.rand(b, n, t, generator=g).double() * real[:, None]
    closed = -2 * level * torch.rand(b, t, generator=g).double() * real
    return Tiny(*(x.requires_grad_() for x in (*made, tokens, closed)), length)


def changed(e: Evidence, how: Callable[[Tensor], Tensor], only: tuple[str, ...] | None = None) -> Evidence:
    """Its float tensors (or the named ones) put through a function."""
    values = {field.name: getattr(e, field.name) for field in fields(e)}
    chosen = {
        n: v for n, v in values.items() if v is not None and (only is None or n in only) and v.is_floating_point()
    }
    return replace(e, **{name: how(value) for name, value in chosen.items()})


def options(seed: int = 0, **changes: object) -> Options:
    return Options(**{"temperature": 0.5, "noise": torch.Generator().manual_seed(seed), **changes})


def gradients(name: str, system: Tiny, k: int, o: Options | None = None) -> list[Tensor]:
    """Of the summed loss in questions, passages and tokens; zero where nothing arrives."""
    loss = OBJECTIVES[name](system.evidence(k), o or options()).sum()
    inputs = (system.questions, system.passages, system.tokens)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def drawn_slopes(name: str, e: Evidence, draws: int, o: Options) -> tuple[Tensor, Tensor]:
    """Gradient in log p(z|x) and log p(y|x,z) of question 0, a row per draw."""
    prior, answer = (x[:1].detach().expand(draws, -1).clone().requires_grad_() for x in (e.prior_logp, e.answer_logp))
    closed, length = e.closed_book_logp[:1].detach().expand(draws), e.length[:1].expand(draws)
    many = Evidence(prior_logp=prior, answer_logp=answer, closed_book_logp=closed, length=length)
    return torch.autograd.grad(OBJECTIVES[name](many, o).sum(), (prior, answer))


def agree(drawn: Tensor, expected: Tensor, error: Tensor | float = 0.0) -> bool:
    """Whether a mean over draws is what is expected, within four standard errors."""
    spread = (drawn.var(0) / len(drawn) + error**2) ** 0.5
    return bool(((drawn.mean(0) - expected).abs() < 4 * spread + 1e-9).all())
