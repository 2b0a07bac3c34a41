"""The prompt: passage first, then the question, in the model's own chat template.

Passage before question, because readers answer better that way round (research on long contexts) and because
what a passage's tokens attend to then doesn't depend on the question.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from e2erag.extract.tokens import LineTokens

SYSTEM = "Answer with a short span copied from the text. No sentence, no explanation."
CONTEXT, QUESTION = "\u241fcontext\u241f", "\u241fquestion\u241f"


Together = Literal["concat", "parallel", "fid"]
"""How several passages stand in one row: one after the other as one text; as blocks that don't see each other, for a
causal model (parallel context windows, Ratner et al. 2023); each with the question to itself (Fusion-in-Decoder,
Izacard & Grave 2021)."""


class Row(NamedTuple):
    """A prompt (and perhaps an answer) as tokens.

    Attributes:
        ids: all tokens.
        owner: per token, the position of its line in the passage, −1 where it belongs to no line; −2 − i where it
            belongs to the prompt around part i.
        prompt: how many of the tokens are prompt; the rest is the answer with its end token.
        parts: bounds of the pieces of the prompt that don't see each other, in tokens; None: all is one.
        blocks: bounds of passages, one behind the other, that don't see each other, in tokens; what is before them is
            seen by all, what is behind them sees all. None: everything sees what is before it.
    """

    ids: Int[np.ndarray, " tokens"]
    owner: Int[np.ndarray, " tokens"]
    prompt: int
    parts: Int[np.ndarray, " bounds"] | None = None
    blocks: Int[np.ndarray, " bounds"] | None = None

    @property
    def block(self) -> Int[np.ndarray, " tokens"]:
        """Per token the number of its block, −1 outside of them."""
        found = np.full(len(self.ids), -1)
        if self.blocks is not None:
            found[self.blocks[0] : self.blocks[-1]] = np.repeat(np.arange(len(self.blocks) - 1), np.diff(self.blocks))
        return found

    @property
    def positions(self) -> Int[np.ndarray, " tokens"]:
        """Per token its position: every block begins where the first does, what follows begins behind the longest."""
        if self.blocks is None:
            return np.arange(len(self.ids))
        first, widths = int(self.blocks[0]), np.diff(self.blocks)
        inside = np.arange(first, int(self.blocks[-1])) - np.repeat(self.blocks[:-1] - first, widths)
        rest = np.arange(len(self.ids) - int(self.blocks[-1])) + first + int(widths.max())
        return np.concatenate([np.arange(first), inside, rest])

    @property
    def size(self) -> int:
        """Tokens that it takes in a batch: parts are padded to the longest of them."""
        if self.parts is None:
            return len(self.ids)
        widths = np.diff(self.parts)
        return int(widths.max()) * len(widths) + len(self.ids) - int(widths.sum())


class Prompt:
    """Builds rows of tokens from lines, questions and answers with the tokenizer's chat template."""

    def __init__(self, tokenizer: Any, max_tokens: int, around: tuple[Sequence[int], Sequence[int]] = ((), ())) -> None:
        """`max_tokens` bounds a row; what gives way is the passage, never the question or the answer.

        `around`: tokens that an encoder wants before and after its text, beside the template."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        before, after = (np.asarray(tokens, np.int64) for tokens in around)
        template = self._template()
        opening, rest = template.split(CONTEXT)
        middle, closing = rest.split(QUESTION)
        self._opening = np.concatenate([before, self._special(opening)])
        self._middle = self._special(middle)
        self._closing = np.concatenate([self._special(closing), after])
        empty = self._template(context=False)
        self._empty_opening = np.concatenate([before, self._special(empty.split(QUESTION)[0])])

    def _template(self, context: bool = True) -> str:
        user = f"{CONTEXT}\nQuestion: {QUESTION}" if context else f"Question: {QUESTION}"
        if not getattr(self.tokenizer, "chat_template", None):
            return f"{SYSTEM}\n\n{user}\nAnswer: "
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _special(self, text: str) -> Int[np.ndarray, " n"]:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)

    def _plain(self, texts: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
        """Text from outside: special tokens written out in it stay plain text."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [np.asarray(row, np.int64) for row in rows]

    def lines(self, texts: Sequence[str]) -> LineTokens:
        """The lines of a corpus, tokenised once."""
        return LineTokens(self.tokenizer, texts, ending="\n")

    def questions(self, texts: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
        return self._plain(texts)

    def answers(self, texts: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
        """Answers with the token that ends them."""
        return [np.append(row, self.tokenizer.eos_token_id) for row in self._plain(texts)]

    def row(
        self,
        lines: LineTokens | None,
        passage: Int[np.ndarray, " lines"] | None,
        question: Int[np.ndarray, " question"],
        answer: Int[np.ndarray, " answer"] | None = None,
        reserve: int = 0,
    ) -> Row:
        """One row; `passage` (line numbers) None asks without a passage: closed book.

        Args:
            reserve: tokens to keep free for an answer that is yet to be generated.
        """
        tail = np.zeros(0, np.int64) if answer is None else answer
        if lines is None or passage is None:
            head = np.concatenate([self._empty_opening, question, self._closing])
            ids = np.concatenate([head, tail])
            owner, room = np.full(len(ids), -1), self.max_tokens - len(ids) - reserve
        else:
            fixed = len(self._opening) + len(self._middle) + len(question) + len(self._closing)
            room = self.max_tokens - fixed - len(tail) - reserve
            tokens, line = lines.gather(passage, max(room, 0))
            head = np.concatenate([self._opening, tokens, self._middle, question, self._closing])
            ids = np.concatenate([head, tail])
            owner = np.full(len(ids), -1)
            owner[len(self._opening) : len(self._opening) + len(tokens)] = line
        if room < 0:
            raise ValueError(
                f"question and answer take {self.max_tokens - room} tokens where {self.max_tokens} fit: "
                "shorten them or raise the generator's max_tokens"
            )
        return Row(ids, owner, len(head))

    def fused(
        self,
        lines: LineTokens,
        passages: Sequence[Int[np.ndarray, " _"]],
        question: Int[np.ndarray, " question"],
        answer: Int[np.ndarray, " answer"] | None = None,
        reserve: int = 0,
        how: Together = "concat",
    ) -> Row:
        """One row over several passages, best first; its `owner` counts on through the lines of all of them.

        Args:
            how: "concat" makes one text of at most `max_tokens`, which is cut at its end: the least probable passage
                gives way first. "parallel" and "fid" cut each passage to what `max_tokens` allows it alone.
        """
        if not len(passages):
            return self.row(None, None, question, answer, reserve)
        if how == "concat":
            return self.row(lines, np.concatenate(passages), question, answer, reserve)
        tail = np.zeros(0, np.int64) if answer is None else answer
        pieces = [self.row(lines, passage, question, None, reserve + len(tail)) for passage in passages]
        before = np.cumsum([0, *map(len, passages)])[:-1]
        if how == "parallel":
            start, end = len(self._opening), len(self._middle) + len(question) + len(self._closing)
            ids = [piece.ids[start : len(piece.ids) - end] for piece in pieces]
            owner = [p.owner[start : len(p.ids) - end] + before[i] for i, p in enumerate(pieces)]
            closing = pieces[0].ids[len(pieces[0].ids) - end :]
            return Row(
                np.concatenate([self._opening, *ids, closing, tail]),
                np.concatenate([np.full(start, -1), *owner, np.full(end + len(tail), -1)]),
                start + sum(map(len, ids)) + end,
                blocks=start + np.cumsum([0, *map(len, ids)]),
            )
        parts = np.cumsum([0, *(len(piece.ids) for piece in pieces)])
        owner = [np.where(p.owner < 0, -2 - i, p.owner + before[i]) for i, p in enumerate(pieces)]
        return Row(
            np.concatenate([*(piece.ids for piece in pieces), tail]),
            np.concatenate([*owner, np.full(len(tail), -1)]),
            int(parts[-1]),
            parts,
        )
