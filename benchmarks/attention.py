"""Gates as one more dimension of the keys, and as a mask: time, of a reader's attention and of a whole encoder.

    python benchmarks/attention.py [--quick] [--json FILE]

All forms in turn in one run on the same tensors, in the precision that the processor computes fastest in, on a GPU
where there is one. `keys`, `mask` and no gates (`bare`): forward and backward, and (`frozen`) forward alone with
nothing to learn, for which `gated_attention` takes the mask on a CPU. `difference` is between keys and mask.

reader      attention alone, with SmolLM2-135M's heads, causal, 300 tokens. FlexAttention takes log w as a function of
            the score and goes back on GPUs alone: elsewhere only what it gives is compared, in float32.
encoder_N   all-MiniLM-L6-v2, 2,048 tokens in passages of N, of which every other has an eighth of padding.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import torch
from rounds import interleaved, over
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from e2erag.extract import attention
from e2erag.models import resolve
from e2erag.precision import autocast
from e2erag.rag import RETRIEVER
from e2erag.retriever import Encoder

HEADS, DIM, TOKENS, ROWS = 9, 64, 300, 10
Form = Callable[[], Tensor]


def compared(learning: dict[str, Form], frozen: dict[str, Form], rounds: int) -> dict[str, float]:
    """Of each form's time, the ratio to keys'; forward and backward, and forward alone."""
    steps = {name: lambda form=form: form().sum().backward() for name, form in learning.items()}
    times, figures = interleaved(steps, rounds), {}
    with torch.no_grad():
        still = interleaved(frozen, rounds)
    for name in learning.keys() - {"keys"}:
        figures[f"{name}_over_keys"] = over(times, name, "keys")
    for name in frozen.keys() - {"keys"}:
        figures[f"frozen_{name}_over_keys"] = over(still, name, "keys")
    return dict(sorted(figures.items())) | {"keys_seconds": median(times["keys"])}


def in_keys(work: Form) -> Form:
    """Gates in keys, also where a mask would be taken."""

    def always() -> Tensor:
        with patch.object(attention, "_as_mask", lambda _: False):
            return work()

    return always


def reader(rounds: int, device: torch.device) -> dict[str, float]:
    with autocast(device):
        half = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if half else torch.float32
    q, k, v = (torch.randn(ROWS, HEADS, TOKENS, DIM, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    gate = F.logsigmoid(torch.randn(ROWS, TOKENS, device=device)).to(dtype).requires_grad_()
    below = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).tril()[None, None]
    blocks = create_block_mask(lambda row, head, i, j: i >= j, None, None, TOKENS, TOKENS, device=str(device))
    attend = torch.compile(flex_attention) if device.type == "cuda" else flex_attention

    def forms(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> dict[str, Form]:
        def keys() -> Tensor:
            return attention.gated_attention(SimpleNamespace(is_causal=True), q, k, v, None, DIM**-0.5, gate)[0]

        return {
            "keys": in_keys(keys),
            "mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=attention.with_bias(below, gate)),
            "bare": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "flex": lambda: attend(q, k, v, score_mod=lambda s, row, head, i, j: s + gate[row, j], block_mask=blocks),
        }

    learning, frozen = forms(q, k, v, gate), forms(*(each.detach() for each in (q, k, v, gate)))
    if device.type != "cuda":
        del learning["flex"], frozen["flex"]
    exact = forms(*(each.detach().float() for each in (q, k, v, gate)))
    with torch.no_grad():
        plain = exact["keys"]().transpose(1, 2)
        differences = {n: (plain - exact[f]()).abs().max().item() for n, f in (("", "mask"), ("flex_", "flex"))}
    return compared(learning, frozen, rounds) | {f"{name}difference": value for name, value in differences.items()}


def encoder(rounds: int, device: torch.device, length: int) -> dict[str, float]:
    model = Encoder.load(resolve(RETRIEVER)).to(device)
    model.take_gates()
    ids = torch.randint(1000, 20000, (2048 // length, length), device=device)
    there = torch.ones_like(ids, dtype=torch.bool)
    there[1::2, -length // 8 :] = False
    gates = F.logsigmoid(torch.randn(ids.shape, device=device)).requires_grad_()

    def forms(gates: Tensor) -> dict[str, Form]:
        def masked() -> Tensor:
            with patch.object(model, "takes_keys", False):
                return model.embed(ids, there, gates)

        return {
            "keys": in_keys(lambda: model.embed(ids, there, gates)),
            "mask": masked,
            "bare": lambda: model.embed(ids, there),
        }

    frozen = forms(gates.detach())
    with torch.no_grad():
        difference = (frozen["keys"]() - frozen["mask"]()).abs().max().item()
    return compared(forms(gates), frozen, rounds) | {"difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one length")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rounds, device = 3 if options.quick else 11, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    parts = {"reader": reader(rounds, device)}
    for length in (128,) if options.quick else (64, 128, 256):
        parts[f"encoder_{length}"] = encoder(rounds, device, length)
    figures = {f"{part}_{name}": value for part, found in parts.items() for name, value in found.items()}
    for name, value in figures.items():
        print(f"{name:34} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
