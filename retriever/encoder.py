"""A sentence-transformers model whose lines can be turned down, in attention and pooling or in pooling alone.

    attention logit of a key token t   +=  log w[line(t)]                              ("attend" only)
    sentence embedding                  =  Σ_t w[line(t)] h_t / Σ_t w[line(t)]        (mean pooling)

A gate of 1 is the plain model (bit for bit where no line of a passage is turned down); a gate of 0 is the passage
without the line, up to the position numbers of what follows it. With pooling alone the other lines have still seen it,
but then the h_t don't depend on gates, and a passage is pooled anew from its lines' sums (`LineSums`).
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from e2erag.extract.tokens import LineTokens, buckets, pad, per_call
from e2erag.retriever.gate_mask import check_mask, gate_mask, in_keys, takes_keys
from e2erag.retriever.line_sums import LineSums
from e2erag.retriever.lora import load_lora, save_lora, without_lora

POOLING = ("mean", "cls", "lasttoken")
HEAD = ("Dense", "Dropout", "LayerNorm", "Normalize")
"""Modules of sentence-transformers that may follow pooling, in any number and order."""
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names of a model's prompts for questions and passages, as `encode_query` and `encode_document` look for them."""

Role = Literal["query", "document"]


class Encoder(nn.Module):
    """Tokens of passages (or a question) in, one vector each out.

    Attributes:
        width: components of a token's state, and of what is pooled.
        dim: components of a vector: the first `truncate_dim` where the model's configuration has that, taken after its
            head, as sentence-transformers does.
        normalizes: whether vectors come with length 1.
        similarity: how the model's own configuration compares two vectors: "cosine" where it doesn't say.
        takes_keys: whether gates reach attention through its keys, so that fused kernels and windows stay
            (`take_gates`); else they are a mask in place of the model's own. None: not tried yet.
        token_budget: tokens of a padded batch; with `held_tokens` it bounds memory. Small, so that on a CPU a batch's
            activations stay in the cache; a GPU wants more.
        held_tokens: tokens whose graph is kept for the backward pass. Batches beyond it are computed again there, one
            at a time and with the random state that they had, as in GradCache (Gao et al. 2021, "Scaling Deep
            Contrastive Learning Batch Size under Memory Limited Setup"). So however many passages there are, the graph
            of held_tokens + token_budget tokens is the most that stands at a time, at the price of one more forward
            pass, and the gradient is the same.
    """

    def __init__(self, model: SentenceTransformer, token_budget: int = 2048, held_tokens: int = 16384) -> None:
        super().__init__()
        names = [type(module).__name__ for module in model]
        if names[:2] != ["Transformer", "Pooling"] or not all(map(_of_vectors, list(model)[2:])):
            raise ValueError(
                "a retriever is a sentence-transformers model made of Transformer, Pooling and any of "
                f"{', '.join(HEAD)} that change the sentence's vector; this one is {' → '.join(names)}"
            )
        self.model = model
        settings: dict[str, Any] = model[1].get_config_dict()  # type: ignore[operator]  # nn.Module hides its methods
        self.pooling = str(settings["pooling_mode"])
        self.width = int(settings["embedding_dimension"])
        size = [self.width, *(int(module.out_features) for module in self.head if hasattr(module, "out_features"))][-1]
        self.dim = min(size, model.truncate_dim or size)
        self.normalizes = bool(self.head) and type(self.head[-1]).__name__ == "Normalize" and self.dim == size
        if self.pooling not in POOLING:
            raise ValueError(f"pooling must be one of {', '.join(POOLING)}, this model has {self.pooling!r}")
        self.pool_prompt = bool(settings.get("include_prompt", True))
        self.causal = any(getattr(module, "is_causal", False) for module in self.transformer.modules())
        self.token_budget, self.held_tokens = token_budget, held_tokens
        self.similarity = str(model.similarity_fn_name)
        self.takes_keys: bool | None = None

    @property
    def transformer(self) -> Any:
        return self.model[0].auto_model

    @property
    def head(self) -> list[Any]:
        """The model's own modules that come after pooling."""
        return list(self.model)[2:]

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_tokens(self) -> int:
        """Longest input of the model, special tokens included."""
        limit = self.model.max_seq_length
        return limit or int(getattr(self.transformer.config, "max_position_embeddings", 512))

    def longest(self, role: Role | None) -> int:
        """Longest input in this role: the model's, or less where its configuration says so (`query_length`)."""
        own = None if role is None else getattr(self.model[0], f"{role}_length", None)
        return self.max_tokens if own is None else min(int(own), self.max_tokens)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def take_gates(self) -> bool:
        """Get attention ready for gates, once: in its keys, or as a mask in place of its own.

        Returns: `takes_keys`.

        Raises:
            ValueError: neither reaches it."""
        if self.takes_keys is None:
            keys = takes_keys(self.transformer)
            if not keys:
                way_out = "pool" if self.pooling == "mean" else "hard"
                check_mask(self.transformer, self.causal, self.max_tokens, f'RetrieverConfig(gates="{way_out}")')
            self.takes_keys = keys
        return self.takes_keys

    def settings(self) -> dict[str, Any]:
        """How vectors are made of tokens' states, beside the weights."""
        head = [{"module": type(module).__name__, **module.get_config_dict()} for module in self.head]
        return {"mode": self.pooling, "head": head}

    def token_fingerprint(self) -> str:
        """A hash of the tokenizer and the longest input: two encoders that share it cut texts into the same tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules = {"vocabulary": self.tokenizer.get_vocab(), "special": str(self.tokenizer.special_tokens_map)}
        else:
            rules = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # as the last call set them
        text = json.dumps([rules, self.longest("document")], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def lines(self, texts: Sequence[str]) -> LineTokens:
        """The lines of a corpus, tokenised once.

        A tokenizer that reads a line's end (byte-level BPE) gets one after every line, the last one too."""
        whole, first, second = self.tokenizer(["a\nb", "a", "b"], add_special_tokens=False)["input_ids"]
        return LineTokens(self.tokenizer, texts, "" if whole == first + second else "\n")

    @torch.no_grad()
    def line_features(self, lines: LineTokens, first: int | None = None) -> Float[Tensor, "lines dim"]:
        """The mean word embedding of each line (or of the `first` ones): text feature of the extractor, a look-up."""
        table = self.transformer.get_input_embeddings().weight
        count = len(lines) if first is None else first
        ids, offsets = torch.from_numpy(lines.ids[: lines.offsets[count]]), torch.from_numpy(lines.offsets[:count])
        return F.embedding_bag(ids.to(table.device), table, offsets.to(table.device), mode="mean")

    def prompt(self, role: Role) -> str:
        """What the model's own configuration puts in front of a question or a passage, "" where it has nothing."""
        prompts, default = self.model.prompts, self.model.default_prompt_name
        named = next((name for name in PROMPTS[role] if name in prompts), default)
        return "" if named is None else prompts.get(named) or ""

    def encode_text(self, texts: Sequence[str], role: Role | None = None) -> Float[Tensor, "texts dim"]:
        """Plain texts, with the model's own prompt for that role in front; gradient flows."""
        prompt = "" if role is None else self.prompt(role)
        rows = self.tokenizer([prompt + text for text in texts], truncation=True, max_length=self.longest(role))
        ids = [np.asarray(row, np.int64) for row in rows["input_ids"]]
        return self(ids, skip=self._skip(role))

    def encode_lines(
        self,
        lines: LineTokens,
        passages: Sequence[Int[np.ndarray, " _"]],
        log_gates: Float[Tensor, " slots"] | None = None,
        slots: Sequence[Int[np.ndarray, " _"]] | None = None,
        attend: bool = True,
    ) -> Float[Tensor, "passages dim"]:
        """Passages given as line numbers.

        Args:
            lines: the corpus' lines, from `lines`.
            passages: per passage its line numbers, in reading order. Cut at the model's longest input.
            log_gates: log w, looked up by `slots`; None reads every line in full.
            slots: per passage and line, the position of its gate in `log_gates`.
            attend: whether gates act on attention too, or on pooling alone.
        """
        ids, owners = self._rows(lines, passages)
        if log_gates is None or slots is None:
            return self(ids, skip=self._skip("document"))
        gated = [np.append(slot, -1)[owner] for slot, owner in zip(slots, owners, strict=True)]
        return self(ids, log_gates, gated, self._skip("document"), attend)

    @torch.no_grad()
    def line_sums(
        self,
        lines: LineTokens,
        passages: Sequence[Int[np.ndarray, " _"]],
        slots: Sequence[Int[np.ndarray, " _"]],
    ) -> LineSums:
        """What `encode_lines` with `attend=False` pools, summed per passage and line: see `LineSums`."""
        ids, owners = self._rows(lines, passages)
        skip = self._skip("document")
        sizes = np.asarray([len(slot) + 1 for slot in slots])  # the last entry: tokens that no line owns
        begin = np.cumsum(sizes) - sizes
        entry = [b + np.where(o < 0, n - 1, o) for b, n, o in zip(begin, sizes, owners, strict=True)]
        rows = torch.zeros(int(sizes.sum()), self.width + 1, device=self.device)
        for batch in self._batches(ids, entry):
            assert batch.owner is not None
            pooled = batch.mask.clone()
            pooled[:, :skip] = False
            at = batch.owner[pooled]
            hidden = self._hidden(batch.ids, batch.mask)[pooled].to(rows.dtype)
            rows.index_add_(0, at, F.pad(hidden, (0, 1), value=1.0))
        slot = np.concatenate([np.append(slot, -1) for slot in slots]) if len(slots) else np.zeros(0, np.int64)
        return LineSums.of(rows, slot, sizes, self.finish)

    @property
    def room(self) -> int:
        """Tokens that a passage may have, beside the model's own special tokens and prompt."""
        before, after = _special(self.tokenizer)
        return self.longest("document") - len(before) - len(self._prefix("document")) - len(after)

    def _prefix(self, role: Role | None) -> Int[np.ndarray, " n"]:
        """The prompt's tokens in front of a text: all but the text's own where they stay as they are, else alone."""
        prompt = "" if role is None else self.prompt(role)
        if not prompt:
            return np.zeros(0, np.int64)
        alone, joined, text = self.tokenizer([prompt, f"{prompt}a", "a"], add_special_tokens=False)["input_ids"]
        own = joined[: -len(text)] if joined[-len(text) :] == text else alone
        return np.asarray(own, np.int64)

    def _skip(self, role: Role | None) -> int:
        """Leading tokens that aren't pooled: those of the prompt and before it, where the model's pooling says so."""
        prefix = self._prefix(role)
        return 0 if self.pool_prompt or not len(prefix) else len(_special(self.tokenizer)[0]) + len(prefix)

    def _rows(
        self, lines: LineTokens, passages: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[list[Int[np.ndarray, " _"]], list[Int[np.ndarray, " _"]]]:
        """Per passage its tokens, and for each the position of its line in the passage; −1 where no line owns it."""
        before, after = _special(self.tokenizer)
        before, limit = np.concatenate([before, self._prefix("document")]), self.room
        ids, owners = [], []
        for passage in passages:
            tokens, owner = lines.gather(passage, limit)
            ids.append(np.concatenate([before, tokens, after]))
            owners.append(np.concatenate([np.full(len(before), -1), owner, np.full(len(after), -1)]))
        return ids, owners

    def _batches(
        self, ids: Sequence[Int[np.ndarray, " _"]], owners: Sequence[Int[np.ndarray, " _"]] | None = None
    ) -> Iterator["_Batch"]:
        """Rows of similar length, padded together up to `token_budget` tokens."""
        call = per_call(self.device.type, self.token_budget)
        for rows in buckets(np.asarray([len(row) for row in ids]), self.token_budget, call):
            table = torch.from_numpy(pad([ids[i] for i in rows], self.tokenizer.pad_token_id or 0)).to(self.device)
            lengths = torch.tensor([len(ids[i]) for i in rows], device=self.device)
            mask = torch.arange(table.shape[1], device=self.device) < lengths[:, None]
            owner = None if owners is None else torch.from_numpy(pad([owners[i] for i in rows], -1)).to(self.device)
            yield _Batch(rows, table, mask, owner)

    def forward(
        self,
        ids: Sequence[Int[np.ndarray, " _"]],
        log_gates: Float[Tensor, " slots"] | None = None,
        owners: Sequence[Int[np.ndarray, " _"]] | None = None,
        skip: int = 0,
        attend: bool = True,
    ) -> Float[Tensor, "rows dim"]:
        """Token rows in, vectors out, in the order given; rows of similar length are computed together.

        `owners` names each token's entry in `log_gates`, −1 for a token that no gate turns down. The first `skip`
        tokens of a row aren't pooled."""
        if not len(ids):
            return torch.zeros(0, self.dim, device=self.device)
        gates = None if log_gates is None else F.pad(log_gates, (0, 1))  # entry −1 is a gate of one
        parts, order, held = [], [], 0
        for batch in self._batches(ids, owners if gates is not None else None):
            given = (batch.ids, batch.mask, None if gates is None else gates[batch.owner], None, skip, attend)
            held += batch.ids.numel()
            if held > self.held_tokens and torch.is_grad_enabled():
                parts.append(checkpoint(self.embed, *given, use_reentrant=False))
            else:
                parts.append(self.embed(*given))
            order.append(batch.rows)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device)
        return torch.cat(parts)[back]

    def embed(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        log_gates: Float[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        skip: int = 0,
        attend: bool = True,
    ) -> Float[Tensor, "rows dim"]:
        """One padded batch; vectors in float32 whatever the precision inside."""
        hidden = self._hidden(ids, mask, log_gates if attend else None, position_ids)
        if self.pooling == "mean":
            pooled = mask & (torch.arange(ids.shape[1], device=ids.device) >= skip)
            weight = pooled.to(hidden.dtype) * (1.0 if log_gates is None else log_gates.exp())
            # No einsum: autocast would take it to bfloat16, and the scores with it.
            vectors = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1e-9)
        elif self.pooling == "cls":
            vectors = hidden[:, skip]
        else:
            vectors = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        return self.finish(vectors)

    def finish(self, pooled: Float[Tensor, "rows width"]) -> Float[Tensor, "rows dim"]:
        """What comes after pooling, in float32: the model's head, and the components that are kept."""
        with torch.autocast(pooled.device.type, enabled=False):
            features = {"sentence_embedding": pooled}
            for module in self.head:
                features = module(features)
        return features["sentence_embedding"][:, : self.dim]

    def _hidden(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        log_gates: Float[Tensor, "rows tokens"] | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens dim"]:
        extra = {} if position_ids is None else {"position_ids": position_ids}
        attention: Tensor = mask.long()
        if log_gates is not None and self.take_gates():
            extra |= in_keys(log_gates)
        elif log_gates is not None:
            attention = gate_mask(log_gates.to(self.transformer.dtype), mask, self.causal)
        hidden = self.transformer(input_ids=ids, attention_mask=attention, **extra).last_hidden_state
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def save(self, folder: Path) -> None:
        """The whole model with its prompts, and its adapters (if any) in a folder `lora` inside."""
        with without_lora(self.transformer):
            self.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
        save_lora(self.transformer, folder / "lora")

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """From a local folder or a hub id, as `SentenceTransformer` takes it; never with remote code."""
        encoder = cls(SentenceTransformer(str(folder), device="cpu", trust_remote_code=False).eval())
        load_lora(encoder.transformer, Path(folder) / "lora")
        return encoder


class _Batch(NamedTuple):
    """Rows that are computed together: their numbers, padded tokens, which of these are there, and who owns them."""

    rows: Int[np.ndarray, " rows"]
    ids: Int[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    owner: Int[Tensor, "rows tokens"] | None


def _of_vectors(module: Any) -> bool:
    """Whether a module makes a sentence's vector of a sentence's vector."""
    names = (getattr(module, f"module_{end}_name", "sentence_embedding") for end in ("input", "output"))
    return type(module).__name__ in HEAD and all(name == "sentence_embedding" for name in names)


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers that are saved: two encoders that share it give the same vectors. Reads
    them once."""
    digest = blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _special(tokenizer: Any) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """The special tokens that a tokenizer puts before and after a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return np.asarray(full[:start], np.int64), np.asarray(full[start + len(bare) :], np.int64)
