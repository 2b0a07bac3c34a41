"""Passages as sums over their lines, so that other gates give other vectors without the model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LineSums:
    """The last hidden states h of passages, summed per passage and line.

    A passage of n lines has n entries and one more, for the tokens that no line owns (special ones, a prompt). Stored,
    they are (n + 1) · (width + 1) · 4 bytes a passage, so about n times what an index stores.

    Attributes:
        rows: [Σ h ; tokens] of each entry's tokens and how many these are: what is stored, for it depends on no gate.
        passage: the passage that each entry belongs to.
        slot: each entry's gate, −1 where there is none.
        count: number of passages.
        finish: what the model makes of pooled states (`Encoder.finish`).
    """

    rows: Float[Tensor, "entries columns"]
    passage: Int[Tensor, " entries"]
    slot: Int[Tensor, " entries"]
    count: int
    finish: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "entries columns"],
        slot: Int[np.ndarray, " entries"],
        sizes: Int[np.ndarray, " passages"],
        finish: Callable[[Tensor], Tensor],
    ) -> "LineSums":
        """From `rows` as they are stored; `sizes` are each passage's entries."""
        passage = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(rows.device)
        return cls(rows, passage, torch.from_numpy(slot).to(rows.device), len(sizes), finish)

    def pool(self, log_gates: Float[Tensor, " slots"]) -> Float[Tensor, "passages dim"]:
        """Σ_l w_l Σ_{t∈l} h_t / Σ_l w_l n_l of every passage, finished; gradient flows into the gates."""
        gate = F.pad(log_gates, (0, 1)).to(self.rows)[self.slot].exp()
        total = self.rows.new_zeros(self.count, self.rows.shape[1]).index_add(
            0, self.passage, gate[:, None] * self.rows
        )
        return self.finish(total[:, :-1] / total[:, -1:].clamp_min(1e-9))

    def __len__(self) -> int:
        """Number of passages."""
        return self.count
