"""What one answer may say of a passage's lines: the values stay, the slopes compete."""

import numpy as np
import pytest
import torch
from helpers import in_double

from e2erag.config import RAGConfig
from e2erag.joint import Reading
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.slopes import competing
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import marginal

SLOTS = [np.asarray([2, 0, 5]), None, np.asarray([0, 1]), np.asarray([4])]
ASKED = [
    Question("how old was the pilot in accident NYC08 ?", ("85",)),
    Question("who made the engine in accident DEN07 ?", ("continental",)),
]


def slopes(limit: float, weights: torch.Tensor) -> torch.Tensor:
    """Of six gates, where each line of each passage has its weight in a sum."""
    gates = torch.linspace(-1, 0, 6, dtype=torch.float64).requires_grad_()
    values, slots = competing(gates, SLOTS, limit)
    flat = np.concatenate([passage for passage in slots if passage is not None])
    assert [None if passage is None else len(passage) for passage in slots] == [3, None, 2, 1]
    torch.testing.assert_close(values[flat], gates[np.concatenate([SLOTS[0], SLOTS[2], SLOTS[3]])])
    (values[flat] * weights).sum().backward()
    return gates.grad


def test_slopes_lose_their_mean_and_are_clipped_passage_by_passage() -> None:
    """By hand; gate 0 stands in two passages, and a line alone in its passage has nothing to compete with."""
    weights = torch.tensor([3.0, 0.0, 0.0, 0.1, 0.3, 7.0], dtype=torch.float64)
    whole = torch.tensor([-1.0 - 0.1, 0.1, 2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(slopes(100.0, weights), whole)
    clipped = torch.tensor([-1.0, 0.0, 2.0, 0.0, 0.0, -1.0], dtype=torch.float64) / 6**0.5
    clipped += torch.tensor([-0.1, 0.1, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(slopes(1.0, weights), clipped)


def test_without_a_limit_slopes_are_what_they_are() -> None:
    """Zero hands back the very gates and slots."""
    gates = torch.zeros(6, requires_grad=True)
    values, slots = competing(gates, SLOTS, 0.0)
    assert values is gates
    assert all(a is b for a, b in zip(slots, SLOTS, strict=True))


def test_no_passage_and_no_line_are_no_trouble() -> None:
    gates = torch.zeros(6, requires_grad=True)
    for given in ([], [None], [np.zeros(0, np.int64), None]):
        values, slots = competing(gates, given, 1.0)
        assert len(values) == 0
        assert len(slots) == len(given)
        values.sum().backward()
        assert not gates.grad.any()


def indexed(reading: Reading) -> RAG:
    reader = "t5" if reading == "fid" else "llama"
    system = tiny_rag(config=RAGConfig(k=3, mode="soft", precision="float32", reading=reading), reader=reader)
    in_double(system.model)
    with torch.no_grad():
        system.model.extractor.gates.bias[:3] -= 4.0
    pages = [["accident NYC08", "the pilot was 85", "seats 4"], ["accident DEN07", "engine continental", "damage none"]]
    system.index([tiny_document(pages)])
    return system


@pytest.mark.parametrize("reading", ["marginal", "concat", "parallel", "fid"])
def test_the_loss_and_every_other_gradient_stay(reading: Reading) -> None:
    """A limit changes what the extractor's gates learn from an answer, and nothing else."""
    found = []
    for limit in (0.0, 1e-3):
        system = indexed(reading)
        loss = marginal(system.terms(ASKED, 3, "soft", slope_limit=limit)).mean()
        loss.backward()
        found.append((loss, system.model))
    (free, one), (limited, other) = found
    torch.testing.assert_close(free, limited)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        gates = name.startswith("extractor.gates")
        if a.grad is not None and not gates:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert not torch.allclose(one.extractor.gates.bias.grad, other.extractor.gates.bias.grad, rtol=1e-2)
    # Centred slopes say nothing of all lines at once: the bias of what is read hears nothing of the answer. (That of
    # what is found does: a passage's lines compete with those it carries.)
    assert other.extractor.gates.bias.grad[1].abs() < 1e-9 < one.extractor.gates.bias.grad[1].abs()
