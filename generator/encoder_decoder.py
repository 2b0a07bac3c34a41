"""An encoder–decoder (T5, BART) as the reader: the encoder reads the prompt, the decoder holds the answer alone.

A passage's gates stand on its tokens' keys wherever they are looked at: in the encoder's own attention and in the
decoder's attention over the encoder. A row of several parts is Fusion-in-Decoder (Izacard & Grave 2021): every passage
is encoded with the question and without the other passages, and the decoder attends to all of them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from e2erag.extract.tokens import pad
from e2erag.generator.attention import TokenGates
from e2erag.generator.cache import go_on
from e2erag.generator.prompt import Row


class EncoderDecoder:
    """How an encoder–decoder computes the states from which an answer's tokens are predicted."""

    def __init__(self, model: Any, tokenizer: Any, pad_id: int) -> None:
        start = model.generation_config.decoder_start_token_id
        if start is None:
            raise ValueError(
                f"an encoder–decoder starts its answers with a token that its generation_config names, but in that of "
                f"{type(model).__name__} decoder_start_token_id is None: set it there"
            )
        self.model, self.pad_id = model, pad_id
        # What the tokenizer puts around a text: T5 ends it with </s>, BART also starts it with <s>.
        special = list(tokenizer("")["input_ids"])
        end = special.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in special else len(special)
        self.around = special[:end], special[end:]
        # The answer's own <s> is given like the start token, not predicted (`exclude_bos_score` in Hugging Face's RAG).
        self.start = np.asarray([start, *special[:end]], np.int64)

    def states(
        self, rows: Sequence[Row], gates: TokenGates | None
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """For every token of every answer: the state it is predicted from, its row, the token itself."""
        answers = [row.ids[row.prompt :] for row in rows]
        inputs = pad([np.concatenate([self.start, answer[:-1]]) for answer in answers], self.pad_id)
        # Padding stands on the right, where a decoder's real tokens never look: no mask is needed.
        hidden = self.model.get_decoder()(
            input_ids=torch.from_numpy(inputs).to(self.model.device), use_cache=False, **self._encode(rows, gates)
        ).last_hidden_state
        row = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(answer) for answer in answers]))
        position = torch.from_numpy(np.concatenate([np.arange(len(answer)) for answer in answers]))
        state = hidden[row.to(hidden.device), position.to(hidden.device) + len(self.start) - 1]
        return state, row.to(hidden.device), torch.from_numpy(np.concatenate(answers)).to(hidden.device)

    def _encode(self, rows: Sequence[Row], gates: TokenGates | None) -> dict[str, Any]:
        """The prompts through the encoder: what a decoder needs of them.

        Parts of a prompt are encoded each on its own, and stand one after the other for the decoder."""
        device = self.model.device
        sizes = torch.tensor([row.prompt for row in rows], device=device)
        bounds = [np.asarray([0, row.prompt]) if row.parts is None else row.parts for row in rows]
        cut = [(i, slice(a, b)) for i, bound in enumerate(bounds) for a, b in pairwise(bound.tolist())]
        ids = torch.from_numpy(pad([rows[i].ids[part] for i, part in cut], self.pad_id)).to(device)
        lengths = torch.tensor([part.stop - part.start for _, part in cut], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        bias: dict[str, Any] = {"shared": {}}
        source_bias = {}
        if gates is not None:
            bias["source_bias"] = gates.bias([gates.slots[i][part] for i, part in cut])
            source_bias = {
                "source_bias": gates.bias([slot[: row.prompt] for slot, row in zip(gates.slots, rows, strict=True)])
            }
        hidden = self.model.get_encoder()(input_ids=ids, attention_mask=mask, **bias).last_hidden_state
        if len(cut) > len(rows):
            hidden = pad_sequence(hidden[mask].split(sizes.tolist()), batch_first=True)
            mask = torch.arange(hidden.shape[1], device=device) < sizes[:, None]
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask, **source_bias}

    def logits(self, hidden: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens vocabulary"]:
        """What the model's own head gives, in float32 or better."""
        if getattr(self.model.config, "scale_decoder_outputs", False):  # T5 where both embeddings are one
            hidden = hidden * self.model.config.d_model**-0.5
        logits = self.model.get_output_embeddings()(hidden)
        shift = getattr(self.model, "final_logits_bias", None)  # BART
        logits = logits if shift is None else logits + shift
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def decode(
        self, rows: Sequence[Row], gates: TokenGates | None
    ) -> Callable[[Int[Tensor, " rows"] | None], Float[Tensor, "rows dim"]]:
        """A function from the token chosen last (None at first) to the state that the next one is predicted from."""
        source, cache = self._encode(rows, gates), None
        start = torch.from_numpy(self.start).to(self.model.device).expand(len(rows), -1)

        def step(chosen: Int[Tensor, " rows"] | None) -> Float[Tensor, "rows dim"]:
            nonlocal cache
            ids = start if chosen is None else chosen[:, None]
            hidden, cache = go_on(self.model.get_decoder(), cache, input_ids=ids, **source)
            return hidden[:, -1]

        return step
