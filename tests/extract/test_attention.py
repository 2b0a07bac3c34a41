"""What an encoder with a position bias adds to its logits, summed once for all layers."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from e2erag.extract.attention import gated_attention

CASES = list(product((False, True), (False, True), (None, "frozen", "learns"), (False, True)))
"""Position bias learns, there is a mask, gates, gradients are computed."""


def tensors(position_learns: bool, masked: bool, gates: str | None, dtype: torch.dtype) -> dict[str, Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 5, 4, generator=draw, dtype=dtype).requires_grad_() for _ in range(3))
    position = torch.randn(1, 2, 5, 5, generator=draw, dtype=dtype).requires_grad_(position_learns)
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    bias = -torch.rand(3, 5, generator=draw, dtype=dtype)
    return {
        "query": q, "key": k, "value": v, "position_bias": position, "attention_mask": mask if masked else None,
        "source_bias": None if gates is None else bias.requires_grad_(gates == "learns"),
    }  # fmt: skip


@pytest.mark.parametrize(("position_learns", "masked", "gates", "grad"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_summed_once_is_what_the_softmax_of_the_sum_gives(
    position_learns: bool, masked: bool, gates: str | None, grad: bool, dtype: torch.dtype
) -> None:
    encoder, shared = SimpleNamespace(is_causal=False), {}
    given = tensors(position_learns, masked, gates, dtype)
    logits = given["query"] @ given["key"].transpose(2, 3) + given["position_bias"]
    if gates is not None:
        logits = logits + given["source_bias"][:, None, None]
    if masked:
        logits = logits.masked_fill(~given["attention_mask"], -torch.inf)
    exact = (logits.softmax(-1) @ given["value"]).transpose(1, 2)
    learning = [each for each in given.values() if each is not None and each.requires_grad]
    with torch.set_grad_enabled(grad):
        # A second layer of the same call, with queries of its own, finds the sum there.
        gated_attention(encoder, **(given | {"query": 2 * given["query"]}), scaling=1.0, shared=shared)
        made = shared["made"][0]
        found, _ = gated_attention(encoder, **given, scaling=1.0, shared=shared)
    assert shared["made"][0] is made
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(found, exact, **close)
    if grad:
        probe = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        slopes = [torch.autograd.grad((out * probe).sum(), learning) for out in (found, exact)]
        torch.testing.assert_close(*slopes, **close)


def test_another_call_of_the_encoder_sums_anew() -> None:
    encoder, shared = SimpleNamespace(is_causal=False), {}
    first, second = (tensors(False, False, None, torch.float64) for _ in range(2))
    second["position_bias"] = torch.zeros_like(second["position_bias"])
    gated_attention(encoder, **first, scaling=1.0, shared=shared)
    found, _ = gated_attention(encoder, **second, scaling=1.0, shared=shared)
    exact = (second["query"] @ second["key"].transpose(2, 3)).softmax(-1) @ second["value"]
    torch.testing.assert_close(found, exact.transpose(1, 2))


@pytest.mark.parametrize("gate", ["key_bias", "source_bias"])
def test_gates_that_learn_stay_in_fused_attention(gate: str) -> None:
    """In the keys, of a causal model and of an encoder with padding: as a mask they would fall out of it."""
    query, key, value = (torch.randn(3, 2, 5, 4).requires_grad_() for _ in range(3))
    bias, causal = (-torch.rand(3, 5)).requires_grad_(), gate == "key_bias"
    mask = None if causal else torch.ones(3, 1, 5, 5, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out, _ = gated_attention(SimpleNamespace(is_causal=causal), query, key, value, mask, **{gate: bias})
        out.sum().backward()
    assert bias.grad is not None
    assert bias.grad.any()
