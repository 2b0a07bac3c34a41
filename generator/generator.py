"""The reader θ: log p(y | x, z) for many passages at once, and greedy answers.

A reading gate adds log w to every attention logit whose key is a token of that line: 1 is the plain model, 0 is
the passage without the line, up to the position numbers of what follows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from e2erag.extract.tokens import buckets, per_call
from e2erag.generator.attention import TokenGates, use_gates
from e2erag.generator.causal import Causal
from e2erag.generator.encoder_decoder import EncoderDecoder
from e2erag.generator.prompt import Prompt, Row


@dataclass(frozen=True)
class GeneratorConfig:
    """How much is read and held at a time.

    Attributes:
        max_tokens: longest row (prompt and answer), the model's own limit if that is less; the passage is cut to fit.
        max_new_tokens: longest generated answer.
        token_budget: padded tokens of one forward pass; bounds its memory.
        held_tokens: padded tokens whose activations a training step holds for its backward pass; what is beyond is
            computed a second time there.
    """

    max_tokens: int = 1024
    max_new_tokens: int = 32
    token_budget: int = 2048
    held_tokens: int = 4096

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.max_new_tokens, self.token_budget) < 1 or self.held_tokens < 0:
            raise ValueError(f"held_tokens is at least 0 and every other number of tokens at least 1, got {self}")


class Answers(NamedTuple):
    """Greedy answers: their tokens (end token excluded), and log p of each answer with its end token.

    An answer that was cut at `max_new_tokens` has no end token, in neither."""

    ids: list[Int[np.ndarray, " _"]]
    logp: Float[Tensor, " rows"]


class Generator(nn.Module):
    """A language model that answers from passages: causal, or an encoder–decoder, as its configuration says."""

    def __init__(self, model: Any, tokenizer: Any, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config or GeneratorConfig()
        use_gates(model)
        # Chat models pad with their end token, which is also a real token: its embedding must learn like any other.
        model.get_input_embeddings().padding_idx = None
        self.model, self.tokenizer = model, tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.reader: Causal | EncoderDecoder = (
            EncoderDecoder(model, tokenizer, pad_id) if model.config.is_encoder_decoder else Causal(model, pad_id)
        )
        longest = getattr(model.config, "max_position_embeddings", None) or self.config.max_tokens
        self.prompt = Prompt(tokenizer, min(self.config.max_tokens, longest), self.reader.around)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def log_likelihood(
        self,
        rows: Sequence[Row],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None = None,
    ) -> Float[Tensor, " rows"]:
        """log p(answer | prompt) of each row, end token included, summed over tokens, in the order given.

        Arguments as for `token_log_likelihood`."""
        return self.token_log_likelihood(rows, log_gates, slots).sum(1)

    def token_log_likelihood(
        self,
        rows: Sequence[Row],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None = None,
        held: int = 0,
    ) -> Float[Tensor, "rows tokens"]:
        """log p of each answer token given the prompt and those before it, in the order given; 0 beyond an answer.

        Logits are computed at answer positions only. Rows of similar length go together.

        Args:
            rows: from `prompt.row`, with answers.
            log_gates: log w, looked up by `slots`; None reads every line in full.
            slots: per row, the entry in `log_gates` of each line of its passage (behind them, where parts are kept
                apart, those of the prompts around them, last part first); None for a row without a passage.
            held: tokens whose activations are held already.
        """
        if not rows:
            return torch.zeros(0, 0, device=self.device)
        width = max(len(row.ids) - row.prompt for row in rows)
        out, order = [], []
        for batch in self._buckets(rows, 1):
            chosen = [rows[i] for i in batch]
            gates = [slots[i] for i in batch] if slots is not None else None
            held += len(chosen) * max(row.size for row in chosen)
            if held > self.config.held_tokens and torch.is_grad_enabled():
                # Hold the graph of one such batch at a time, at the price of a second forward pass.
                logp = checkpoint(self._batch_log_likelihood, chosen, width, log_gates, gates, use_reentrant=False)
            else:
                logp = self._batch_log_likelihood(chosen, width, log_gates, gates)
            out.append(logp)
            order.append(batch)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device)
        return torch.cat(out)[back]

    def _buckets(self, rows: Sequence[Row], passes: int) -> Iterator[Int[np.ndarray, " bucket"]]:
        """Rows that are read together, so many times. On a GPU as many as the budget allows, whatever the padding."""
        budget = self.config.token_budget
        return buckets(np.asarray([row.size for row in rows]), budget, per_call(self.device.type, budget) * passes)

    def _batch_log_likelihood(
        self,
        rows: Sequence[Row],
        width: int,
        log_gates: Float[Tensor, " slots"] | None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None,
    ) -> Float[Tensor, "rows {width}"]:
        hidden, row, ids = self.reader.states(rows, _token_gates(rows, log_gates, slots))
        logp = self.token_logp(hidden, ids)
        count = row.bincount(minlength=len(rows))  # rows stand in order
        position = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        return logp.new_zeros(len(rows), width).index_put((row, position), logp)

    def token_logp(self, hidden: Float[Tensor, "tokens dim"], ids: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """log p of tokens, from the states that they are predicted from."""
        logits = self.reader.logits(hidden)
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Row],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None = None,
    ) -> Answers:
        """Greedy answers to rows without an answer, at most `max_new_tokens` each."""
        answers: list[Int[np.ndarray, " _"]] = [np.zeros(0, np.int64)] * len(rows)
        logp = torch.zeros(len(rows))
        for batch in self._buckets(rows, self.config.max_new_tokens):
            gates = [slots[i] for i in batch] if slots is not None else None
            ids, scores = self._greedy([rows[i] for i in batch], log_gates, gates)
            for i, row in zip(batch, ids, strict=True):
                answers[i] = row
            logp[torch.from_numpy(batch)] = scores.cpu()
        return Answers(answers, logp)

    def _greedy(
        self,
        rows: Sequence[Row],
        log_gates: Float[Tensor, " slots"] | None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None,
    ) -> tuple[list[Int[np.ndarray, " _"]], Float[Tensor, " rows"]]:
        eos = self.tokenizer.eos_token_id
        step, choice = self.reader.decode(rows, _token_gates(rows, log_gates, slots)), None
        done = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        logp = torch.zeros(len(rows), device=self.device)
        tokens = []
        for _ in range(self.config.max_new_tokens):
            best, choice = self.reader.logits(step(choice)).log_softmax(-1).max(-1)
            logp = logp + best.masked_fill(done, 0.0)
            choice = choice.masked_fill(done, eos)
            tokens.append(choice)
            done = done | (choice == eos)
            if done.all():
                break
        table = torch.stack(tokens, 1).cpu().numpy()
        ends = np.where((table == eos).any(1), (table == eos).argmax(1), table.shape[1])
        return [row[:end] for row, end in zip(table, ends, strict=True)], logp

    def text(self, ids: Int[np.ndarray, " n"]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path, config: GeneratorConfig | None = None) -> "Generator":
        """From a local folder or a hub id, as the model's configuration says: a causal model or an encoder–decoder.

        Float32 master weights, safetensors only, never remote code."""
        encoder_decoder = AutoConfig.from_pretrained(folder, trust_remote_code=False).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False), config)


def _token_gates(
    rows: Sequence[Row],
    log_gates: Float[Tensor, " slots"] | None,
    slots: Sequence[Int[np.ndarray, " _"] | None] | None,
) -> TokenGates | None:
    """The slot of every token, −1 where no line owns it; None where there are no gates."""
    if log_gates is None or slots is None:
        return None
    return TokenGates(
        log_gates,
        [
            np.full(len(row.ids), -1) if slot is None else np.append(slot, -1)[row.owner]
            for row, slot in zip(rows, slots, strict=True)
        ],
    )
