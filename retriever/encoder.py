"""A sentence-transformers model whose lines can be turned down: the gates enter attention and pooling.

    attention logit of a key token t   +=  log w[line(t)]
    sentence embedding                  =  Σ_t w[line(t)] h_t / Σ_t w[line(t)]        (mean pooling)

A gate of 1 is the plain model (bit for bit where no line of a passage is turned down); a gate of 0 is the passage
without the line, up to the position numbers of what follows it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.extract.tokens import LineTokens, buckets, pad

POOLING = ("mean", "cls", "lasttoken")


class Encoder(nn.Module):
    """Tokens of passages (or a question) in, one vector each out."""

    def __init__(self, model: SentenceTransformer, token_budget: int = 8192) -> None:
        """`token_budget` bounds a padded batch, and with it the memory of a pass without gradient."""
        super().__init__()
        names = [type(module).__name__ for module in model]
        if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise ValueError(
                "a retriever is a sentence-transformers model made of Transformer, Pooling and (optionally) "
                f"Normalize; this one is {' → '.join(names)}"
            )
        self.model = model
        settings: dict[str, Any] = model[1].get_config_dict()  # type: ignore[operator]  # nn.Module hides its methods
        self.pooling = str(settings["pooling_mode"])
        self.dim = int(settings["embedding_dimension"])
        if self.pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, this model has {self.pooling!r}")
        self.normalize = len(names) == 3
        self.causal = any(getattr(module, "is_causal", False) for module in self.transformer.modules())
        self.token_budget = token_budget

    @property
    def transformer(self) -> Any:
        return self.model[0].auto_model

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_tokens(self) -> int:
        """Longest input of the model, special tokens included."""
        limit = self.model.max_seq_length
        return limit or int(getattr(self.transformer.config, "max_position_embeddings", 512))

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def lines(self, texts: Sequence[str]) -> LineTokens:
        """The lines of a corpus, tokenised once."""
        return LineTokens(self.tokenizer, texts)

    @torch.no_grad()
    def line_features(self, lines: LineTokens, first: int | None = None) -> Float[Tensor, "lines dim"]:
        """The mean word embedding of each line (or of the `first` ones): text feature of the extractor, a look-up."""
        table = self.transformer.get_input_embeddings().weight
        count = len(lines) if first is None else first
        ids, offsets = torch.from_numpy(lines.ids[: lines.offsets[count]]), torch.from_numpy(lines.offsets[:count])
        return F.embedding_bag(ids.to(table.device), table, offsets.to(table.device), mode="mean")

    def encode_text(self, texts: Sequence[str], prompt: str | None = None) -> Float[Tensor, "texts dim"]:
        """Plain texts (questions), with the model's own prompt of that name in front; gradient flows."""
        prefix = (self.model.prompts.get(prompt) or "") if prompt else ""
        rows = self.tokenizer([prefix + text for text in texts], truncation=True, max_length=self.max_tokens)
        ids = [np.asarray(row, np.int64) for row in rows["input_ids"]]
        return self(ids)

    def encode_lines(
        self,
        lines: LineTokens,
        passages: Sequence[Int[np.ndarray, " _"]],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"]] | None = None,
    ) -> Float[Tensor, "passages dim"]:
        """Passages given as line numbers.

        Args:
            lines: the corpus' lines, from `lines`.
            passages: per passage its line numbers, in reading order. Cut at the model's longest input.
            log_gates: log w, looked up by `slots`; None reads every line in full.
            slots: per passage and line, the position of its gate in `log_gates`.
        """
        before, after = _special(self.tokenizer)
        prefix, limit = self._document_prefix(), self.room
        ids, owners = [], []
        for index, passage in enumerate(passages):
            tokens, owner = lines.gather(passage, limit)
            ids.append(np.concatenate([before, prefix, tokens, after]))
            if log_gates is not None and slots is not None:
                special = np.full(len(before) + len(prefix), -1)
                owners.append(np.concatenate([special, slots[index][owner], np.full(len(after), -1)]))
        return self(ids, log_gates, owners or None)

    @property
    def room(self) -> int:
        """Tokens that a passage may have, beside the model's own special tokens and prompt."""
        before, after = _special(self.tokenizer)
        return self.max_tokens - len(before) - len(self._document_prefix()) - len(after)

    def _document_prefix(self) -> Int[np.ndarray, " n"]:
        text = self.model.prompts.get("document") or ""
        rows = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return np.asarray(rows, np.int64)

    def forward(
        self,
        ids: Sequence[Int[np.ndarray, " _"]],
        log_gates: Float[Tensor, " slots"] | None = None,
        owners: Sequence[Int[np.ndarray, " _"]] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Token rows in, vectors out, in the order given; rows of similar length are computed together.

        `owners` names each token's entry in `log_gates`, −1 for a token that no gate turns down."""
        if not len(ids):
            return torch.zeros(0, self.dim, device=self.device)
        parts, order = [], []
        for rows in buckets(np.asarray([len(row) for row in ids]), self.token_budget):
            table = torch.from_numpy(pad([ids[i] for i in rows], self.tokenizer.pad_token_id or 0)).to(self.device)
            lengths = torch.tensor([len(ids[i]) for i in rows], device=self.device)
            mask = torch.arange(table.shape[1], device=self.device) < lengths[:, None]
            gates = None
            if log_gates is not None and owners is not None:
                owner = torch.from_numpy(pad([owners[i] for i in rows], -1)).to(self.device)
                gates = F.pad(log_gates, (0, 1))[owner]  # entry −1 is the appended zero: a gate of one
            parts.append(self.embed(table, mask, gates))
            order.append(rows)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device)
        return torch.cat(parts)[back]

    def embed(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        log_gates: Float[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """One padded batch; vectors in float32 whatever the precision inside."""
        attention: Tensor = mask.long()
        weight = mask.to(self.transformer.dtype)
        if log_gates is not None:
            closed = torch.finfo(log_gates.dtype).min
            attention = torch.where(mask, log_gates, closed)[:, None, None, :]
            if self.causal:  # a ready-made 4-D mask is taken as it is, so it must be causal itself
                n = ids.shape[1]
                below = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
                attention = torch.where(below, attention, closed)
            weight = weight * log_gates.exp()
        extra = {} if position_ids is None else {"position_ids": position_ids}
        hidden = self.transformer(input_ids=ids, attention_mask=attention, **extra).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.pooling == "mean":
            # No einsum: autocast would take it to bfloat16, and the scores with it.
            vectors = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1e-9)
        elif self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            vectors = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """From a local folder or a hub id, as `SentenceTransformer` takes it; never with remote code."""
        return cls(SentenceTransformer(str(folder), device="cpu", trust_remote_code=False))


def _special(tokenizer: Any) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """The special tokens that a tokenizer puts before and after a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return np.asarray(full[:start], np.int64), np.asarray(full[start + len(bare) :], np.int64)
