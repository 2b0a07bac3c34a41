"""Reading gates: log w of every token of a passage, added to the attention logits on it (`extract/attention.py`).

T5's own position bias is learned, and a mask to fused kernels: while it learns, its encoder's attention isn't fused,
with gates or without. BART and the causal models stay fused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.extract.attention import NAME
from e2erag.extract.tokens import pad


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


def use_gates(model: Any) -> None:
    """Switch a model to `gated_attention`.

    Raises:
        ValueError: the model doesn't take its attention from transformers' interface, so a gate would do nothing; or it
            has what fused attention leaves out.
    """
    if model.config.is_encoder_decoder:
        # T5 and BART go through the interface without carrying the flag; the cross attention must be told apart.
        attentions = [module for module in model.get_decoder().modules() if hasattr(module, "is_causal")]
        reached = model._can_set_attn_implementation() and {module.is_causal for module in attentions} == {True, False}
    else:
        reached = getattr(model, "_supports_attention_backend", False) and model._supports_sdpa
    if not reached:
        raise ValueError(
            f"{type(model).__name__} doesn't take its attention from transformers.AttentionInterface, or has softcaps "
            "or sinks, which fused attention leaves out, so reading gates can't reach it: use a model that does "
            "(Llama, Qwen, Mistral, SmolLM, Gemma, T5, BART, …)"
        )
    model.set_attn_implementation(NAME)
