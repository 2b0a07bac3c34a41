"""A causal language model as the reader: prompt and answer are one sequence."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.extract.tokens import pad
from e2erag.generator.attention import TokenGates
from e2erag.generator.cache import go_on
from e2erag.generator.prompt import Row


class Causal:
    """How a causal model computes the states from which an answer's tokens are predicted."""

    around = ((), ())
    """Tokens around a prompt, beside the template: none."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    def states(
        self, rows: Sequence[Row], gates: TokenGates | None
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """For every token of every answer: the state it is predicted from, its row, the token itself."""
        device = self.model.device
        ids = torch.from_numpy(pad([row.ids for row in rows], self.pad_id)).to(device)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        prompts = torch.tensor([row.prompt for row in rows], device=device)
        column = torch.arange(ids.shape[1], device=device)
        # Padding stands on the right, where a causal model's real tokens never look: no mask is needed.
        extra = _blocks(rows, device) if any(row.blocks is not None for row in rows) else {}
        if gates is not None:
            extra["key_bias"] = gates.bias(gates.slots)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False, **extra).last_hidden_state
        # The token at position t is predicted from position t − 1.
        answer = (column >= prompts[:, None]) & (column < lengths[:, None])
        row, position = answer.nonzero(as_tuple=True)
        return hidden[row, position - 1], row, ids[row, position]

    def logits(self, hidden: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """What the model's own head gives, in float32 or better."""
        logits = self.model.get_output_embeddings()(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def decode(
        self, rows: Sequence[Row], gates: TokenGates | None
    ) -> Callable[[Int[Tensor, " rows"] | None], Float[Tensor, "rows dim"]]:
        """A function from the token chosen last (None at first) to the state that the next one is predicted from.

        `model.generate` can't carry a bias per key from step to step, so this keeps the cache itself."""
        device = self.model.device
        ids = torch.from_numpy(pad([row.ids for row in rows], self.pad_id, left=True)).to(device)
        mask = torch.from_numpy(pad([np.ones(len(row.ids), np.int64) for row in rows], 0, left=True)).to(device)
        bias = None if gates is None else gates.bias(gates.slots, left=True)
        position, cache = (mask.cumsum(1) - 1).clamp_min(0), None
        where = {"attention_mask": mask, "position_ids": position}
        if any(row.blocks is not None for row in rows):
            where = _blocks(rows, device, left=True)
            position = where["position_ids"]

        def step(chosen: Int[Tensor, " rows"] | None) -> Float[Tensor, "rows dim"]:
            nonlocal ids, mask, bias, position, cache, where
            if chosen is not None:
                ids, position = chosen[:, None], position[:, -1:] + 1
                mask = F.pad(mask, (0, 1), value=1)
                where = {"attention_mask": mask, "position_ids": position}
                bias = None if bias is None else F.pad(bias, (0, 1))  # an answer's token has no gate
            gated = {} if bias is None else {"key_bias": bias}
            hidden, cache = go_on(self.model.get_decoder(), cache, input_ids=ids, **where, **gated)
            return hidden[:, -1]

        return step


def _blocks(rows: Sequence[Row], device: torch.device, left: bool = False) -> dict[str, Tensor]:
    """Attention mask (true: seen) and positions of rows in which blocks don't see each other.

    A padded token sees itself: one that saw nothing would be NaN, also to those that don't look at it."""
    block = torch.from_numpy(pad([row.block for row in rows], -1, left)).to(device)
    position = torch.from_numpy(pad([row.positions for row in rows], 0, left)).to(device)
    real = torch.from_numpy(pad([np.ones(len(row.ids), np.int64) for row in rows], 0, left)).to(device).bool()
    query, key = block[:, :, None], block[:, None, :]
    seen = ((query < 0) | (key < 0) | (query == key)).tril() & real[:, None, :]
    itself = torch.eye(seen.shape[1], dtype=torch.bool, device=device)
    return {"attention_mask": (seen | itself)[:, None], "position_ids": position}
