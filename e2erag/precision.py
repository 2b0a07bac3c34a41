"""Which precision a device computes fastest in without losing the answer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[Any]:
    """ "auto": bfloat16 where the device computes in it, else no cast.

    Weights stay in float32: a learning rate of 5e-5 is below bfloat16's resolution of a weight. float16 is never
    used: processors don't compute in it, and its range is too small for log-probabilities.

    Leave the context between a pass without gradient and one with: it caches the cast weights, and those cast
    without gradient would cut the graph of the second pass.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and cpu_has_bf16()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private in torch: absent means no
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))
