"""Gradients through many passages in bounded memory: the plain gradient, at the price of a second forward pass."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from e2erag.retriever import Encoder
from e2erag.testing import tiny_encoder

LINES = [f"the pilot of aircraft {n} was {n} years" for n in range(64)]
GATES = 64


def passages(count: int, length: int) -> list[np.ndarray]:
    return [(i + np.arange(1 + i % length)) % len(LINES) for i in range(count)]


def dropping() -> Encoder:
    """A tower that learns with dropout."""
    encoder = tiny_encoder()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    encoder.train()
    encoder.token_budget = 100
    return encoder


def gradient(held: int, gates: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Two forward passes under dropout, then one backward through both; the loss mixes passages as a softmax does."""
    encoder = dropping()
    encoder.held_tokens = held
    lines, rows = encoder.lines(LINES), passages(20, 4)
    log_gates = (-torch.arange(GATES) / 50.0).requires_grad_()
    torch.manual_seed(1)
    first, second = (
        encoder.encode_lines(lines, each, log_gates if gates else None, each) for each in (rows, rows[::-1])
    )
    loss = (first @ second.T / 0.05).logsumexp(1).sum()
    loss.backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    if gates:
        assert log_gates.grad is not None
        found["gates"] = log_gates.grad
    return loss.detach(), found


@pytest.mark.parametrize("gates", [True, False])
def test_the_gradient_in_chunks_is_the_plain_gradient(gates: bool) -> None:
    """Dropout on, two forward passes before the backward: nothing held, some held, everything held, all the same to
    1e-6 of the largest."""
    loss, plain = gradient(10**9, gates)
    assert plain
    for held in (0, 250):
        other, chunked = gradient(held, gates)
        assert torch.equal(loss, other)
        assert chunked.keys() == plain.keys()
        for name, value in plain.items():
            scale = max(1.0, float(value.abs().max()))
            torch.testing.assert_close(chunked[name] / scale, value / scale, atol=1e-6, rtol=0)


def test_dropout_is_on_in_the_test_above() -> None:
    """Two passes under it differ, so equality there isn't that of a plain network."""
    encoder = dropping()
    assert (encoder.encode_text(["seats 4"]) - encoder.encode_text(["seats 4"])).abs().max() > 1e-3


def peak_bytes(count: int, held: int) -> int:
    """The most memory that tensors of a forward and backward pass take at a time, beside what was there before."""
    encoder = tiny_encoder()
    encoder.token_budget, encoder.held_tokens = 512, held
    encoder.requires_grad_(False)
    encoder.transformer.encoder.requires_grad_(True)
    for p in encoder.transformer.encoder.parameters():
        p.grad = torch.zeros_like(p)
    lines, rows = encoder.lines(LINES), passages(count, 4)
    gates = torch.zeros(GATES, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        encoder.encode_lines(lines, rows, gates, rows).square()[:, :3].sum().backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = np.asarray([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum().max())


def test_memory_does_not_grow_with_the_passages() -> None:
    """512 tokens at a time. Held whole, eight times as many passages take more than six times the memory; in chunks,
    once there are enough to fill them, four times as many hardly more than before."""
    assert peak_bytes(256, 10**9) > 6 * peak_bytes(32, 10**9)
    few, many = peak_bytes(128, 0), peak_bytes(512, 0)
    assert many < 1.25 * few
