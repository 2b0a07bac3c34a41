"""The extractor's body: attention among the lines of one page."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.extract.tokens import buckets

PIECE = 256
"""Lines that see one another at most: a page with more is seen in pieces, so that memory stays linear in lines."""
BUDGET = 16_384
"""Lines that are computed at once, padding included."""


class PageAttention(nn.Module):
    """A pre-norm transformer layer over the lines of a page, with a learned bias for near neighbours.

    The bias b[j − i] for |j − i| ≤ reach says which line is next, whatever the page; further lines share one value
    per side (relative positions as in Raffel et al. 2020, without the buckets).
    """

    def __init__(self, hidden: int, heads: int = 4, reach: int = 4) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden must be a multiple of the {heads} heads, got {hidden}")
        self.heads, self.reach = heads, reach
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * reach + 1))
        self.up, self.down = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)

    def forward(self, h: Float[Tensor, "pages lines dim"], mask: Bool[Tensor, "pages lines"]) -> Tensor:
        pages, lines, dim = h.shape
        q, k, v = self.qkv(self.before(h)).view(pages, lines, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(lines, device=h.device)
        apart = (place - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        closed = torch.finfo(h.dtype).min
        seen = torch.where(mask[:, None, None], self.bias[:, apart], closed)
        mixed = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).reshape(pages, lines, dim)
        h = h + self.out(mixed)
        return h + self.down(F.gelu(self.up(self.between(h))))


class PageEncoder(nn.Module):
    """Some layers of `PageAttention` over the lines of many pages, one after the other."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PageAttention(hidden) for _ in range(layers)])

    def forward(self, h: Float[Tensor, "lines dim"], page: Int[Tensor, " lines"]) -> Float[Tensor, "lines dim"]:
        """Lines that have seen their page. `page` changes wherever a page ends."""
        if not len(h) or not self.layers:
            return h
        starts, lengths = _pieces(page.cpu().numpy())
        parts, order = [], []
        for chosen in buckets(lengths, BUDGET, BUDGET):
            column = np.arange(lengths[chosen].max())
            filled = column < lengths[chosen][:, None]
            rows = (starts[chosen][:, None] + column)[filled]
            mask = torch.from_numpy(filled).to(h.device)
            padded = h.new_zeros(*mask.shape, h.shape[1]).masked_scatter(mask[..., None], h[torch.from_numpy(rows)])
            for layer in self.layers:
                padded = layer(padded, mask)
            parts.append(padded[mask])
            order.append(rows)
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return torch.cat(parts)[back.to(h.device)]


def with_neighbours(
    features: Float[Tensor, "lines dim"], page: Int[Tensor, " lines"]
) -> Float[Tensor, "lines three_dim"]:
    """Each line's features, those of the line before it on its page and of the one after it; zeros where there is
    none."""
    if not len(features):
        return features.new_zeros(0, 3 * features.shape[1])
    same = (page[1:] == page[:-1])[:, None]
    before, after = F.pad(features[:-1] * same, (0, 0, 1, 0)), F.pad(features[1:] * same, (0, 0, 0, 1))
    return torch.cat([features, before, after], 1)


def _pieces(page: Int[np.ndarray, " lines"]) -> tuple[Int[np.ndarray, " pieces"], Int[np.ndarray, " pieces"]]:
    """Where each page begins and how many lines it has; pages longer than `PIECE` in pieces of about one size."""
    first = np.flatnonzero(np.diff(page, prepend=page[0] - 1))
    size = np.diff(np.append(first, len(page)))
    count = -(-size // PIECE)
    length = -(-size // count)  # of a page's pieces but the last
    owner = np.repeat(np.arange(len(first)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    starts = first[owner] + number * length[owner]
    return starts, np.minimum(length[owner], first[owner] + size[owner] - starts)
