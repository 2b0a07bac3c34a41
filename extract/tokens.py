"""Lines as tokens: each line is tokenised once, and a passage is a concatenation of its lines' tokens.

Both encoders of a system read the same lines with different tokenizers. Because a passage never needs a
tokenizer again, a token always knows its line, and dropping a line is leaving its slice out.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

CALL = 32
"""What one more group costs beside its tokens, in tokens: a step of SmolLM2-135M on one core spends as long on calling
its kernels as on 51 tokens, all-MiniLM-L6-v2 on 30, without gradient on 32 and 17 (LOG.md)."""


class LineTokens:
    """The token ids of many lines, back to back.

    Attributes:
        ids: all tokens of all lines.
        offsets: line i holds `ids[offsets[i] : offsets[i + 1]]`.
    """

    def __init__(self, tokenizer: Any, lines: Sequence[str], ending: str = "") -> None:
        """`ending` is what separates lines in the text that the model reads (part of the line before it); an empty line
        is no line, and has no token.

        Special tokens written out in a document are read as plain text: a page can't end the prompt.
        """
        texts = [line + ending if line else "" for line in lines]
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if lines else []
        self.offsets: Int[np.ndarray, " lines+1"] = np.cumsum([0, *map(len, rows)])
        self.ids: Int[np.ndarray, " tokens"] = (
            np.concatenate([np.asarray(row, np.int64) for row in rows]) if rows else np.zeros(0, np.int64)
        )

    @classmethod
    def joined(cls, parts: "Sequence[tuple[LineTokens, slice | Bool[np.ndarray, ' _']]]") -> "LineTokens":
        """These lines of these parts, one after the other."""
        new = cls.__new__(cls)
        sizes = [lines.sizes[where] for lines, where in parts]
        new.offsets = np.cumsum(np.concatenate([[0], *sizes]))
        new.ids = np.concatenate([lines.gather(np.arange(len(lines))[where])[0] for lines, where in parts])
        return new

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def sizes(self) -> Int[np.ndarray, " lines"]:
        """Tokens of each line."""
        return np.diff(self.offsets)

    def gather(
        self, lines: Int[np.ndarray, " lines"], limit: int | None = None
    ) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
        """Tokens of the given lines in that order, and for each token its position in `lines`.

        Cut after `limit` tokens: what doesn't fit is lost from the end."""
        sizes = self.sizes[lines]
        owner = np.repeat(np.arange(len(lines)), sizes)
        begin = np.cumsum(sizes) - sizes
        where = self.offsets[lines][owner] + np.arange(len(owner)) - begin[owner]
        return self.ids[where][:limit], owner[:limit]


def buckets(lengths: Int[np.ndarray, " rows"], budget: int, call: int = CALL) -> Iterator[Int[np.ndarray, " bucket"]]:
    """Row numbers in groups of similar length, each at most `budget` tokens when padded to its longest row.

    Of all ways to cut the rows, sorted by length (stable), into such groups, the cheapest: padded tokens, and `call`
    more for every group. A row longer than the budget stands alone.
    """
    order = np.argsort(-lengths, kind="stable")
    longest = lengths[order].clip(1)
    most = np.minimum(np.maximum(budget // longest, 1), len(order) - np.arange(len(order)))
    cost, count = np.zeros(len(order) + 1), most.copy()  # of the rows from here on; rows of the group that begins here
    for row in range(len(order) - 1, -1, -1):
        rows = np.arange(most[row], 0, -1)  # of equal cost the largest group
        costs = rows * longest[row] + call + cost[row + rows]
        cost[row], count[row] = costs.min(), rows[costs.argmin()]
    start = 0
    while start < len(order):
        yield order[start : start + count[start]]
        start += count[start]


def per_call(processor: str, budget: int) -> int:
    """For `buckets`: what a group costs on this kind of processor. A GPU wants few: the whole budget."""
    return CALL if processor == "cpu" else budget


def pad(rows: Sequence[Int[np.ndarray, " _"]], value: int, left: bool = False) -> Int[np.ndarray, "rows columns"]:
    """Rows of different lengths as one table, filled up with `value` on the right (or left)."""
    lengths = np.asarray([len(row) for row in rows])
    longest = int(lengths.max()) if len(rows) else 0
    table = np.full((len(rows), longest), value, np.int64)
    column = np.arange(longest)
    filled = column >= longest - lengths[:, None] if left else column < lengths[:, None]
    if len(rows):
        table[filled] = np.concatenate(rows)
    return table
