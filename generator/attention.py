"""Reading gates without leaving fused attention: log w of a key, added to every logit on that key.

A bias that needs a gradient forces the slow "math" kernel, which holds every attention matrix. Instead the bias
becomes one more dimension: queries get a constant, keys get log w,

    ⟨[q ; 1/c], [k ; log w]⟩ · c  =  c·⟨q, k⟩ + log w        (c the softmax scale)

and the fused kernel never knows. Registered with `transformers.AttentionInterface`, so it serves every model that
takes its attention from there.
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


def gated_attention(
    module: Any,
    query: Float[Tensor, "rows heads queries dim"],
    key: Float[Tensor, "rows kv_heads keys dim"],
    value: Float[Tensor, "rows kv_heads keys dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    key_bias: Float[Tensor, "rows keys"] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`transformers`' sdpa attention with `key_bias` (log w per key) added to the logits; without it, sdpa itself."""
    if key_bias is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else scaling
    width = 1 if query.device.type == "cpu" else 8  # GPU kernels want a multiple of eight
    bias = key_bias.to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    query = torch.cat([query, query.new_full((*query.shape[:3], 1), 1 / scale)], -1)
    out, _ = sdpa_attention_forward(
        module,
        F.pad(query, (0, width - 1)),
        F.pad(torch.cat([key, bias], -1), (0, width - 1)),
        F.pad(value, (0, width)),
        attention_mask,
        scaling=scale,
        **kwargs,
    )
    return out[..., :dim], None


def use_gates(model: Any) -> None:
    """Switch a model to `gated_attention`.

    Raises:
        ValueError: the model doesn't take its attention from transformers' interface, so a gate would do nothing.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{type(model).__name__} doesn't take its attention from transformers.AttentionInterface, so reading gates "
            "can't reach it: use a model that does (Llama, Qwen, Mistral, SmolLM, Gemma, …)"
        )
    AttentionInterface.register(NAME, gated_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
