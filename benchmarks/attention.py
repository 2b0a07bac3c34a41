"""Reading gates as one more dimension of the keys against a float mask with gradient: time, forward and backward.

    python benchmarks/attention.py [--quick] [--json FILE]

Both in one run on the same tensors (SmolLM2-135M's heads, causal), so that the ratio holds on any machine.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from e2erag.generator.attention import gated_attention

HEADS, DIM = 9, 64


def seconds(step: object, repeats: int) -> float:
    """The median of several runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    repeats, rows, tokens = (3 if options.quick else 11), 10, 300
    torch.manual_seed(0)
    shape = (rows, HEADS, tokens, DIM)
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gate = torch.nn.functional.logsigmoid(torch.randn(rows, tokens)).bfloat16().requires_grad_()
    module = SimpleNamespace(is_causal=True)
    below = torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def keys() -> torch.Tensor:
        return gated_attention(module, q, k, v, None, DIM**-0.5, gate)[0].transpose(1, 2)

    def mask() -> torch.Tensor:
        bias = torch.where(below, gate[:, None, None, :], torch.finfo(gate.dtype).min)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    apart = (keys() - mask()).abs().max().item()
    figures = {
        "keys_seconds": seconds(lambda: keys().sum().backward(), repeats),
        "mask_seconds": seconds(lambda: mask().sum().backward(), repeats),
        "largest_difference": apart,
    }
    figures["mask_over_keys"] = figures["mask_seconds"] / figures["keys_seconds"]
    for name, value in figures.items():
        print(f"{name:20} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
