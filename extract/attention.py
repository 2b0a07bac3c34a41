"""Gates in attention without leaving the fused kernel: log w of a key, added to every logit on that key.

A bias that needs a gradient forces the slow "math" kernel, which holds every attention matrix. Instead the bias
becomes one more dimension: queries get a constant, keys get log w,

    ⟨[q ; 1/c], [k ; log w]⟩ · c  =  c·⟨q, k⟩ + log w        (c the softmax scale)

and the fused kernel never knows. Where the bias needs no gradient, a CPU's fused kernel takes it as a mask, which is
quicker (`benchmarks/attention.py`). T5's encoder adds a learned position bias, the same in every layer: there all that
is added is summed once, and on a CPU, while it learns, attention is written out, which is shorter than the math kernel.
Registered with `transformers.AttentionInterface`, so it serves every model that takes its attention from there, a
retriever's encoder as well as a reader, with whatever mask the model makes itself.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "e2erag_gated"
"""Of the implementation, as `set_attn_implementation` takes it."""


def gated_attention(
    module: Any,
    query: Float[Tensor, "rows heads queries dim"],
    key: Float[Tensor, "rows kv_heads keys dim"],
    value: Float[Tensor, "rows kv_heads keys dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    key_bias: Float[Tensor, "rows keys"] | None = None,
    source_bias: Float[Tensor, "rows sources"] | None = None,
    position_bias: Float[Tensor, "_ heads queries keys"] | None = None,
    shared: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`transformers`' sdpa attention with log w per key added to the logits; without gates, sdpa itself.

    Args:
        key_bias: for attention that looks back (causal).
        source_bias: for attention over an encoder's tokens, its own and the decoder's. A decoder hands its arguments to
            both of its attentions, so the module's `is_causal` says which of the two is meant.
        position_bias: added to the logits.
        shared: one for all layers of an encoder's call, empty at first: what they add alike is kept there.
    """
    causal = getattr(module, "is_causal", True)
    bias = key_bias if causal else source_bias
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else scaling
    if position_bias is not None and shared is not None:
        added, bias = _once(shared, position_bias, attention_mask, bias)
        if _learns(added) and added.device.type == "cpu" and added.dtype == query.dtype and not kwargs.get("dropout"):
            logits = (query * scale) @ key.transpose(2, 3)
            return (logits.add_(added).softmax(-1) @ value).transpose(1, 2), None
        attention_mask, position_bias = added, None
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    if bias is not None and _as_mask(bias) and (attention_mask is not None or not causal):
        attention_mask, bias = with_bias(attention_mask, bias.to(query.dtype)), None
    if bias is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    width = 1 if query.device.type == "cpu" else 8  # GPU kernels want a multiple of eight
    column = bias.to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    query = torch.cat([query, query.new_full((*query.shape[:3], 1), 1 / scale)], -1)
    out, _ = sdpa_attention_forward(
        module,
        F.pad(query, (0, width - 1)),
        F.pad(torch.cat([key, column], -1), (0, width - 1)),
        F.pad(value, (0, width)),
        attention_mask,
        scaling=scale,
        **kwargs,
    )
    return out[..., :dim], None


def _as_mask(bias: Tensor) -> bool:
    """Whether a fused kernel takes this for a mask."""
    return bias.device.type == "cpu" and not _learns(bias)


def _learns(bias: Tensor) -> bool:
    return bias.requires_grad and torch.is_grad_enabled()


def _once(
    shared: dict[str, Any], position: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Position bias, mask and, where it needs no column of keys, log w in one; and log w where it does."""
    given = (position, mask, bias)
    if any(a is not b for a, b in zip(given, shared.get("given", (None, None, None)), strict=True)):
        column = bias is not None and not _as_mask(bias) and not _learns(position)
        if bias is not None and not column:
            mask = with_bias(mask, bias.to(position.dtype))
        shared.update(given=given, made=(_added(mask, position).contiguous(), bias if column else None))
    made: tuple[Tensor, Tensor | None] = shared["made"]
    return made


def with_bias(mask: Tensor | None, bias: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows _ _ keys"]:
    """A mask, as attention takes it, and log w of the keys in one; what it shuts stays shut."""
    return _added(mask, bias[:, None, None])


def _added(mask: Tensor | None, bias: Float[Tensor, "_ _ _ keys"]) -> Float[Tensor, "_ _ _ keys"]:
    """A mask and what is added to logits, in one."""
    if mask is None:
        return bias
    if mask.dtype != torch.bool:
        return mask + bias
    # Finite in every precision that may be computed in: a row that sees nothing isn't NaN.
    return torch.where(mask, bias, max(torch.finfo(each).min for each in (torch.bfloat16, bias.dtype)))


AttentionInterface.register(NAME, gated_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
