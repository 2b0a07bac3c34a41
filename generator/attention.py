"""Reading gates without leaving fused attention: log w of a key, added to every logit on that key.

A bias that needs a gradient forces the slow "math" kernel, which holds every attention matrix. Instead the bias
becomes one more dimension: queries get a constant, keys get log w,

    ⟨[q ; 1/c], [k ; log w]⟩ · c  =  c·⟨q, k⟩ + log w        (c the softmax scale)

and the fused kernel never knows. Registered with `transformers.AttentionInterface`, so it serves every model that
takes its attention from there. T5's own position bias is a learned float mask, so there the math kernel runs with
gates and without; BART and the causal models stay fused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from e2erag.extract.tokens import pad

NAME = "e2erag_gated"


class TokenGates(NamedTuple):
    """log w of tokens, as a look-up with gradient.

    Attributes:
        log: log w of every slot.
        slots: per row and token its slot, −1 where no gate turns the token down.
    """

    log: Float[Tensor, " slots"]
    slots: list[Int[np.ndarray, " _"]]

    def bias(self, rows: Sequence[Int[np.ndarray, " _"]], left: bool = False) -> Float[Tensor, "rows tokens"]:
        """log w of padded rows of slots."""
        table = torch.from_numpy(pad(rows, -1, left)).to(self.log.device)
        return F.pad(self.log, (0, 1))[table]  # slot −1 is the appended zero


def gated_attention(
    module: Any,
    query: Float[Tensor, "rows heads queries dim"],
    key: Float[Tensor, "rows kv_heads keys dim"],
    value: Float[Tensor, "rows kv_heads keys dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    key_bias: Float[Tensor, "rows keys"] | None = None,
    source_bias: Float[Tensor, "rows sources"] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`transformers`' sdpa attention with log w per key added to the logits; without gates, sdpa itself.

    Args:
        key_bias: for attention that looks back (causal).
        source_bias: for attention over an encoder's tokens, its own and the decoder's. A decoder hands its arguments to
            both of its attentions, so the module's `is_causal` says which of the two is meant.
    """
    bias = key_bias if getattr(module, "is_causal", True) else source_bias
    if bias is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    dim = query.shape[-1]
    scale = dim**-0.5 if scaling is None else scaling
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


def use_gates(model: Any) -> None:
    """Switch a model to `gated_attention`.

    Raises:
        ValueError: the model doesn't take its attention from transformers' interface, so a gate would do nothing.
    """
    if model.config.is_encoder_decoder:
        # T5 and BART go through the interface without carrying the flag; the cross attention must be told apart.
        attentions = [module for module in model.get_decoder().modules() if hasattr(module, "is_causal")]
        reached = model._can_set_attn_implementation() and {module.is_causal for module in attentions} == {True, False}
    else:
        reached = getattr(model, "_supports_attention_backend", False)
    if not reached:
        raise ValueError(
            f"{type(model).__name__} doesn't take its attention from transformers.AttentionInterface, so reading gates "
            "can't reach it: use a model that does (Llama, Qwen, Mistral, SmolLM, Gemma, T5, BART, …)"
        )
    AttentionInterface.register(NAME, gated_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
