"""Gates in attention: log w[line(t)] of every key token, in the form that a model's own attention takes."""

import logging
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from e2erag.extract.attention import NAME, with_bias

logger = logging.getLogger(__name__)

_OPEN, _TURNED = torch.zeros(1, 3), torch.tensor([[-4.0, 0.0, 0.0]])
"""Gates of three tokens, with which it is tried what a model's attention makes of them."""


def takes_keys(transformer: Any) -> bool:
    """Switch a model to attention that takes gates in its keys, if with open gates it is its own, and heeds others.

    Masks and windows stay the model's. Softcaps and sinks, which a fused kernel leaves out, keep a model from it."""
    if not (getattr(transformer, "_supports_attention_backend", False) and transformer._supports_sdpa):
        return False
    before, plain, heeds = transformer.config._attn_implementation, _states(transformer), False
    transformer.set_attn_implementation(NAME)
    try:
        heeds = _heeded(plain, *(_states(transformer, **in_keys(gates)) for gates in (_OPEN, _TURNED)))
    finally:
        if not heeds:
            transformer.set_attn_implementation(before)
    if heeds and before != "sdpa":
        logger.info("gates in attention take the place of %s by one like sdpa", before)
    return heeds


def takes_mask(transformer: Any, causal: bool) -> bool:
    """Whether a mask of gates does in a model what it should: nothing where all are open, and else something."""
    there, plain = torch.ones(1, 3, dtype=torch.bool), _states(transformer)
    masks = (gate_mask(gates.to(transformer.dtype), there, causal) for gates in (_OPEN, _TURNED))
    try:
        open_, turned = (_states(transformer, attention_mask=mask) for mask in masks)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, IndexError):  # it wants masks of another form
        return False
    return _heeded(plain, open_, turned)


def _heeded(plain: Tensor, open_: Tensor, turned: Tensor) -> bool:
    """Open gates change no more than rounding does, and a gate that is turned down changes more."""
    noise, change = ((each.float() - open_.float()).abs().max() for each in (plain, turned))
    rounding = torch.finfo(plain.dtype).eps ** 0.5 * plain.float().abs().max()
    return bool(noise <= rounding and change > 3 * noise)  # false where either is NaN


@torch.no_grad()
def _states(transformer: Any, **given: Tensor) -> Tensor:
    """Of three tokens, without dropout, in the precision of the weights."""
    modes, device = [(module, module.training) for module in transformer.modules()], transformer.device
    ids = torch.arange(3, device=device)[None]
    moved = {name: value.to(device) for name, value in ({"attention_mask": torch.ones_like(ids)} | given).items()}
    try:
        with torch.autocast(device.type, enabled=False):
            states: Tensor = transformer.eval()(input_ids=ids, **moved).last_hidden_state
    finally:
        for module, training in modes:
            module.training = training
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
    seen, at = mask[:, None, None], torch.arange(mask.shape[1], device=mask.device)
    return with_bias(seen & (at[:, None] >= at) if causal else seen, log_gates)


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
            f"attention of its own ({'windows' if windows else 'no mask of gates reaches it'}): use {way_out}, or "
            "another encoder"
        )
