"""Gates as one more dimension of the keys against a float mask with gradient: time, forward and backward.

    python benchmarks/attention.py [--quick] [--json FILE]

Both in one run on the same tensors (SmolLM2-135M's heads, causal), in the precision that the processor computes fastest
in, on a GPU where there is one. FlexAttention, which takes log w as a function of the score, goes back on GPUs
alone: elsewhere only what it gives is compared. Differences are of float32.

Then a whole encoder, all-MiniLM-L6-v2, over passages of 64, 128 and 256 tokens, with gates in its keys, as a mask, and
with none (`bare`). `frozen` is without gradient, where on a CPU what would stand in keys is a mask too: there `bare`
tells what it costs.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from e2erag.extract.attention import gated_attention
from e2erag.models import resolve
from e2erag.precision import autocast
from e2erag.rag import RETRIEVER
from e2erag.retriever import Encoder

HEADS, DIM = 9, 64


def seconds(step: object, repeats: int) -> float:
    """The median of several runs, after one to warm up; 0: that one."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return sorted(times[1:])[repeats // 2] if repeats else times[0]


def encoder(repeats: int, device: str, lengths: tuple[int, ...]) -> dict[str, float]:
    """2,048 tokens of it, one form after the other in every round: medians as ratios to gates in keys."""
    model, figures = Encoder.load(resolve(RETRIEVER)).to(device), {}
    model.take_gates("another encoder")
    for length in lengths:
        ids = torch.randint(1000, 20000, (2048 // length, length), device=device)
        there = torch.ones_like(ids, dtype=torch.bool)
        there[1::2, -length // 8 :] = False
        gates = F.logsigmoid(torch.randn(ids.shape, device=device)).requires_grad_()
        forms = {"keys": (True, gates), "mask": (False, gates), "bare": (True, None)}

        def embedded(given: torch.Tensor | None, ids: torch.Tensor = ids, there: torch.Tensor = there) -> torch.Tensor:
            return model.embed(ids, there, given)

        def step(given: torch.Tensor | None, embedded: Callable[..., torch.Tensor] = embedded) -> None:
            embedded(given).sum().backward()

        for way, work, context in (("", step, nullcontext), ("_frozen", embedded, torch.no_grad)):
            times: dict[str, list[float]] = {name: [] for name in forms}
            with context():
                for _ in range(repeats + 1):
                    for name, (model.takes_keys, given) in forms.items():
                        times[name].append(seconds(partial(work, given), 0))
            median = {name: sorted(each[1:])[repeats // 2] for name, each in times.items()}
            for name in ("mask", "bare"):
                figures[f"encoder_{length}{way}_{name}_over_keys"] = median[name] / median["keys"]
        made = []
        for model.takes_keys in (True, False):
            made.append(embedded(gates).detach())
        figures[f"encoder_{length}_difference"] = (made[0] - made[1]).abs().max().item()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    repeats, rows, tokens = (3 if options.quick else 11), 10, 300
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (rows, HEADS, tokens, DIM)
    with autocast(torch.device(device)):
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    gate = F.logsigmoid(torch.randn(rows, tokens, device=device)).to(dtype).requires_grad_()
    module = SimpleNamespace(is_causal=True)
    below = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    blocks = create_block_mask(lambda row, head, i, j: i >= j, None, None, tokens, tokens, device=device)
    attend = torch.compile(flex_attention) if device == "cuda" else flex_attention

    def keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return gated_attention(module, q, k, v, None, DIM**-0.5, gate)[0].transpose(1, 2)

    def mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        bias = torch.where(below, gate[:, None, None, :], torch.finfo(gate.dtype).min)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, score_mod=lambda score, row, head, i, j: score + gate[row, j], block_mask=blocks)

    figures = {}
    with torch.no_grad():
        exact = keys(*(each.detach().float() for each in (q, k, v)))
        for form in (mask, flex):
            other = form(*(each.detach().float() for each in (q, k, v)))
            figures[f"{form.__name__}_difference"] = (exact - other).abs().max().item()
    for form in (keys, mask, flex) if device == "cuda" else (keys, mask):
        figures[f"{form.__name__}_seconds"] = seconds(lambda form=form: form(q, k, v).sum().backward(), repeats)
        figures[f"{form.__name__}_over_keys"] = figures[f"{form.__name__}_seconds"] / figures["keys_seconds"]
    figures |= encoder(repeats, device, (128,) if options.quick else (64, 128, 256))
    for name, value in figures.items():
        print(f"{name:34} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
