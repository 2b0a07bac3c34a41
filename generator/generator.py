"""The reader θ: log p(y | x, z) for many passages at once, and greedy answers.

A reading gate adds log w to every attention logit whose key is a token of that line: 1 is the plain model, 0 is
the passage without the line, up to the position numbers of what follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from e2erag.extract.tokens import buckets, pad
from e2erag.generator.attention import use_gates
from e2erag.generator.prompt import Prompt, Row


@dataclass(frozen=True)
class GeneratorConfig:
    """Attributes:
    max_tokens: longest row (prompt and answer); the passage is cut to fit.
    max_new_tokens: longest generated answer.
    token_budget: padded tokens of one forward pass; bounds its memory.
    held_tokens: padded tokens whose activations a training step holds for its backward pass; what is beyond is computed
        a second time there.
    """

    max_tokens: int = 1024
    max_new_tokens: int = 32
    token_budget: int = 2048
    held_tokens: int = 4096


class Answers(NamedTuple):
    """Greedy answers: their tokens (end token excluded), and log p of each answer with its end token.

    An answer that was cut at `max_new_tokens` has no end token, in neither."""

    ids: list[Int[np.ndarray, " _"]]
    logp: Float[Tensor, " rows"]


class Generator(nn.Module):
    """A causal language model that answers from a passage."""

    def __init__(self, model: Any, tokenizer: Any, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config or GeneratorConfig()
        use_gates(model)
        # Chat models pad with their end token, which is also a real token: its embedding must learn like any other.
        model.get_input_embeddings().padding_idx = None
        self.model, self.tokenizer = model, tokenizer
        self.prompt = Prompt(tokenizer, self.config.max_tokens)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

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
    ) -> Float[Tensor, "rows tokens"]:
        """log p of each answer token given the prompt and those before it, in the order given; 0 beyond an answer.

        Logits are computed at answer positions only. Rows of similar length go together.

        Args:
            rows: from `prompt.row`, with answers.
            log_gates: log w, looked up by `slots`; None reads every line in full.
            slots: per row, the entry in `log_gates` of each line of its passage; None for a row without a passage.
        """
        if not rows:
            return torch.zeros(0, 0, device=self.device)
        width = max(len(row.ids) - row.prompt for row in rows)
        out, order, held = [], [], 0
        for batch in buckets(np.asarray([len(row.ids) for row in rows]), self.config.token_budget):
            chosen = [rows[i] for i in batch]
            gates = [slots[i] for i in batch] if slots is not None else None
            held += len(chosen) * max(len(row.ids) for row in chosen)
            if held > self.config.held_tokens and torch.is_grad_enabled():
                # Hold the graph of one such batch at a time, at the price of a second forward pass.
                logp = checkpoint(self._batch_log_likelihood, chosen, width, log_gates, gates, use_reentrant=False)
            else:
                logp = self._batch_log_likelihood(chosen, width, log_gates, gates)
            out.append(logp)
            order.append(batch)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device)
        return torch.cat(out)[back]

    def _batch_log_likelihood(
        self,
        rows: Sequence[Row],
        width: int,
        log_gates: Float[Tensor, " slots"] | None,
        slots: Sequence[Int[np.ndarray, " _"] | None] | None,
    ) -> Float[Tensor, "rows {width}"]:
        ids = torch.from_numpy(pad([row.ids for row in rows], self.pad_id)).to(self.device)
        lengths = torch.tensor([len(row.ids) for row in rows], device=self.device)
        prompts = torch.tensor([row.prompt for row in rows], device=self.device)
        column = torch.arange(ids.shape[1], device=self.device)
        # Padding stands on the right, where a causal model's real tokens never look: no mask is needed.
        extra = _key_bias(rows, log_gates, slots)
        hidden = self.model.get_decoder()(input_ids=ids, use_cache=False, **extra).last_hidden_state
        # The token at position t is predicted from position t − 1.
        answer = (column >= prompts[:, None]) & (column < lengths[:, None])
        row, position = answer.nonzero(as_tuple=True)
        logp = self._token_logp(hidden[row, position - 1], ids[row, position])
        return logp.new_zeros(len(rows), width).index_put((row, position - prompts[row]), logp)

    def _token_logp(self, hidden: Float[Tensor, "tokens dim"], ids: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        logits = self._logits(hidden)
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

    def _logits(self, hidden: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """What the model's own head gives, in float32 or better."""
        logits = self.model.get_output_embeddings()(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

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
        for batch in buckets(np.asarray([len(row.ids) for row in rows]), self.config.token_budget):
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
        """`model.generate` can't carry a bias per key from step to step, so this loop keeps the cache itself."""
        eos = self.tokenizer.eos_token_id
        ids = torch.from_numpy(pad([row.ids for row in rows], self.pad_id, left=True)).to(self.device)
        mask = torch.from_numpy(pad([np.ones(len(row.ids), np.int64) for row in rows], 0, left=True)).to(self.device)
        extra = _key_bias(rows, log_gates, slots, left=True)
        position = (mask.cumsum(1) - 1).clamp_min(0)
        cache, done = None, torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        logp = torch.zeros(len(rows), device=self.device)
        tokens = []
        for _ in range(self.config.max_new_tokens):
            out = self.model.get_decoder()(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
            cache = out.past_key_values
            best, choice = self._logits(out.last_hidden_state[:, -1]).log_softmax(-1).max(-1)
            logp = logp + best.masked_fill(done, 0.0)
            choice = choice.masked_fill(done, eos)
            tokens.append(choice)
            done = done | (choice == eos)
            if done.all():
                break
            ids, position = choice[:, None], position[:, -1:] + 1
            mask = F.pad(mask, (0, 1), value=1)
            extra = {name: F.pad(bias, (0, 1)) for name, bias in extra.items()}  # an answer's token has no gate
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
        """From a local folder or a hub id; float32 master weights, safetensors only, never remote code."""
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False), config)


def _key_bias(
    rows: Sequence[Row],
    log_gates: Float[Tensor, " slots"] | None,
    slots: Sequence[Int[np.ndarray, " _"] | None] | None,
    left: bool = False,
) -> dict[str, Float[Tensor, "rows tokens"]]:
    """log w per token, 0 where no line owns it; nothing at all where there are no gates."""
    if log_gates is None or slots is None:
        return {}
    token_slots = [
        np.full(len(row.ids), -1) if slot is None else np.append(slot, -1)[row.owner]
        for row, slot in zip(rows, slots, strict=True)
    ]
    table = torch.from_numpy(pad(token_slots, -1, left)).to(log_gates.device)
    return {"key_bias": F.pad(log_gates, (0, 1))[table]}  # slot −1 is the appended zero
