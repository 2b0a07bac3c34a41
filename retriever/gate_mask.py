"""Gates in attention: log w[line(t)] of every key token, in the form of mask that a model's own attention takes."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_WINDOWED = ("mistral", "modernbert", "qwen2", "qwen3")
"""Architectures whose windows are drawn here as they draw them themselves, compared token by token in the tests."""


def gate_mask(
    transformer: Any, log_gates: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], causal: bool
) -> Float[Tensor, "rows 1 _ tokens"] | dict[str, Float[Tensor, "rows 1 _ tokens"]]:
    """What is added to the attention logits; by kind of layer where a model has several.

    A ready-made mask is taken as it is, so what a query token mustn't see (padding, tokens behind it, tokens out of its
    window) is in it.

    Args:
        mask: false on padding.
        causal: whether a token sees only itself and those before it.
    """
    closed = torch.finfo(torch.bfloat16).min  # finite in either precision: a row that sees nothing isn't NaN
    full = torch.where(mask, log_gates, closed)[:, None, None, :]
    window = _window(transformer.config)
    at = torch.arange(mask.shape[1], device=mask.device)
    back = at[:, None] - at  # how far before the query a key stands
    if causal:
        full = torch.where(back >= 0, full, closed)
    if window is None:
        return full
    # as in transformers.masking_utils: to both sides so far inclusive; causal, so many tokens with the query itself
    near = full if len(at) <= window else torch.where(back < window if causal else back.abs() <= window, full, closed)
    kinds = getattr(transformer.config, "layer_types", None)
    return near if kinds is None else {"full_attention": full, "sliding_attention": near}


def check_attention(transformer: Any, max_tokens: int, way_out: str) -> None:
    """Refuse a model whose own attention a mask of gates would put out of force.

    Args:
        max_tokens: of the longest input.
        way_out: what else a caller can do.
    """
    config = transformer.config
    kind = str(getattr(config, "model_type", ""))
    windows = (_window(config) or math.inf) < max_tokens and kind not in _WINDOWED
    if windows or kind.startswith("deberta"):
        raise ValueError(
            f'gates="attend" adds to every attention logit, and {kind or "this model"} has attention of its own '
            f"({'windows' if windows else 'disentangled'}), which that would replace: use {way_out}"
        )


def _window(config: Any) -> int | None:
    """How many tokens a model's windowed layers look at (to each side, where they look both ways); None: all."""
    if not getattr(config, "use_sliding_window", True):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window
