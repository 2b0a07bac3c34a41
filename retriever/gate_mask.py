"""Gates in attention: log w[line(t)] of every key token, in the form that a model's own attention takes."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from e2erag.extract.attention import NAME

OPEN, TURNED = torch.zeros(1, 3), torch.tensor([[-4.0, 0.0, 0.0]])
"""Gates of three tokens, with which it is tried whether a model's attention minds them."""


def takes_keys(transformer: Any) -> bool:
    """Switch a model to attention that takes gates in its keys, if it can be; its masks, and windows, stay its own."""
    if not getattr(transformer, "_supports_attention_backend", False):
        return False
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation(NAME)
    if not torch.equal(*(_states(transformer, **in_keys(gates)) for gates in (OPEN, TURNED))):
        return True
    transformer.set_attn_implementation(before)  # it keeps its arguments to itself
    return False


def takes_mask(transformer: Any, causal: bool) -> bool:
    """Whether a mask of gates does in a model what it should: nothing where all are open, and else something."""
    there = torch.ones(1, 3, dtype=torch.bool)
    try:
        plain = _states(transformer, attention_mask=there.long())
        open_, turned = (
            _states(transformer, attention_mask=gate_mask(gates, there, causal)) for gates in (OPEN, TURNED)
        )
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError):  # of another form of mask
        return False
    return torch.allclose(plain, open_, atol=1e-3) and not torch.equal(open_, turned)


@torch.no_grad()
def _states(transformer: Any, **given: Tensor) -> Tensor:
    """Of three tokens, without dropout."""
    kept, device = transformer.training, transformer.device
    ids = torch.arange(3, device=device)[None]
    mask = {"attention_mask": torch.ones_like(ids)}
    try:
        moved = {name: value.to(device) for name, value in given.items()}
        states: Tensor = transformer.eval()(input_ids=ids, **(mask | moved)).last_hidden_state
    finally:
        transformer.train(kept)
    return states


def in_keys(log_gates: Float[Tensor, "rows tokens"]) -> dict[str, Tensor]:
    """What `gated_attention` takes, of a model that looks back as of one that looks both ways."""
    return {"key_bias": log_gates, "source_bias": log_gates}


def gate_mask(
    log_gates: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], causal: bool
) -> Float[Tensor, "rows 1 _ tokens"]:
    """What is added to the attention logits of a model that takes a ready-made mask in place of its own.

    Args:
        mask: false on padding.
        causal: whether a token sees only itself and those before it.
    """
    closed = torch.finfo(torch.bfloat16).min  # finite in either precision: a row that sees nothing isn't NaN
    seen = torch.where(mask, log_gates, closed)[:, None, None, :]
    at = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(at[:, None] >= at, seen, closed) if causal else seen


def check_mask(transformer: Any, causal: bool, max_tokens: int, way_out: str) -> None:
    """Refuse a model whose own attention a mask of gates would put out of force.

    Args:
        max_tokens: of the longest input.
        way_out: what else a caller can do.
    """
    config = transformer.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    windows = window is not None and window < max_tokens
    if windows or not takes_mask(transformer, causal):
        raise ValueError(
            f'gates="attend" adds to every attention logit, and {getattr(config, "model_type", "this model")} has '
            f"attention of its own ({'windows' if windows else 'no mask of gates reaches it'}): use {way_out}"
        )
