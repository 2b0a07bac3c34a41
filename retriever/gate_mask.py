"""Gates in attention: log w[line(t)] of every key token, in the form that a model's own attention takes."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from e2erag.extract.attention import NAME


def takes_keys(transformer: Any) -> bool:
    """Switch a model to attention that takes gates in its keys, if it can be; its masks, and windows, stay its own.

    Whether gates arrive is tried with three tokens: a model may keep its arguments to itself."""
    if not getattr(transformer, "_supports_attention_backend", False):
        return False
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation(NAME)
    ids = torch.arange(3, device=transformer.device)[None]
    gate = torch.tensor([[-4.0, 0.0, 0.0]], device=transformer.device)
    kept = transformer.training
    with torch.no_grad():
        transformer.eval()
        open_, turned = (
            transformer(input_ids=ids, attention_mask=torch.ones_like(ids), **in_keys(each)).last_hidden_state
            for each in (torch.zeros_like(gate), gate)
        )
        transformer.train(kept)
    if torch.equal(open_, turned):
        transformer.set_attn_implementation(before)
        return False
    return True


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


def check_mask(transformer: Any, max_tokens: int, way_out: str) -> None:
    """Refuse a model whose own attention a mask of gates would put out of force.

    Args:
        max_tokens: of the longest input.
        way_out: what else a caller can do.
    """
    config = transformer.config
    kind = str(getattr(config, "model_type", ""))
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    windows = window is not None and window < max_tokens
    if windows or kind.startswith("deberta"):
        raise ValueError(
            f'gates="attend" adds to every attention logit, and {kind or "this model"} has attention of its own '
            f"({'windows' if windows else 'disentangled'}), which that would replace: use {way_out}"
        )
