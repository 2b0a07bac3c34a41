"""A step within a memory budget: what is measured, what is chosen, and what the step takes then."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from e2erag import RAG, RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.questions import Question
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig, marginal
from e2erag.train.memory import Chunks, Stage, chunks, measured, within

ASKED = [Question(f"how old was the pilot of aircraft {i} ?", (str(i),)) for i in range(4)]
K = 8


def system(reading: str = "marginal") -> RAG:
    """32 passages of eight lines: some 80 tokens for the encoder, 240 for the reader."""
    rag = tiny_rag(
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(8,), identity_lines=0, kinds=()),
        config=RAGConfig(k=K, mode="soft", precision="float32", reading=reading),
        reader="t5" if reading == "fid" else "llama",
    )
    pages = [[f"the pilot of aircraft {i} was {n} years" for n in range(8)] for i in range(32)]
    rag.index([tiny_document(pages)])
    assert len(rag.corpus.passages) == 32
    return rag


def step(rag: RAG) -> tuple[int, Tensor]:
    """The most bytes that tensors of a step take at a time, gradients of weights aside; and these gradients."""
    learning = [p for p in rag.model.parameters() if p.requires_grad]
    for p in learning:
        p.grad = torch.zeros_like(p)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        marginal(rag.terms(ASKED, K, "soft")).mean().backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = np.asarray([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum().max()), torch.cat([p.grad.flatten() for p in learning])


@pytest.mark.parametrize(
    ("reading", "shares"),
    [
        ("marginal", (1 / 3, 2 / 3)), ("concat", (2 / 3, 0.9)), ("parallel", (2 / 3, 0.9)), ("fid", (2 / 3, 0.9)),
    ],
)  # fmt: skip
def test_a_step_stays_within_its_budget(reading: str, shares: tuple[float, float]) -> None:
    """Shares of what the step takes with everything held (eight passages in one row take half of it): the peak is at
    most 5 % over the budget, more than a third of it is used, and the gradient is the same."""
    rag = system(reading)
    with within(rag, 10**9, ASKED, 4, K):
        whole, expected = step(rag)
    for share in shares:
        with within(rag, int(share * whole), ASKED, 4, K):
            peak, slope = step(rag)
        assert 1 / 3 < peak / (share * whole) < 1.05
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=1e-4)


def test_what_is_configured_comes_back_and_a_run_takes_its_budget() -> None:
    """`fit` trains within it; the chunks are those configured before and afterwards, and without a budget."""
    rag = system()
    tower, generator = rag.model.retriever.passage, rag.model.generator
    before = (tower.token_budget, tower.held_tokens, generator.config)
    with within(rag, 0, ASKED, 4, K):
        assert (tower.token_budget, tower.held_tokens, generator.config) == before
    seen, terms = [], rag.terms
    rag.terms = lambda *given, **named: (
        seen.append((tower.held_tokens, generator.config.held_tokens)) or terms(*given, **named)
    )
    for budget in (10**7, 2 * 10**7):
        rag.fit(ASKED, FitConfig(epochs=1, k=K, memory_budget=budget, progress=False))
    (low_encoder, low_reader), (high_encoder, high_reader) = seen
    assert 0 < low_encoder < high_encoder < before[1]
    assert 0 < low_reader < high_reader
    assert (tower.token_budget, tower.held_tokens, generator.config) == before


def test_a_budget_is_shared_by_what_stages_need() -> None:
    """1,000 bytes, of which 100 are held beside: batches of 25 and 12 tokens, of which one is under way (2 × 5 × 25);
    of 650 bytes the reader holds all of its 20 tokens, and the encoder what is left, 90 of its 200. Rows stay whole,
    and what was configured isn't exceeded."""
    encoder, reader = Stage(5.0, 10, 1000, 200), Stage(10.0, 4, 1000, 20)
    assert chunks(1000, (encoder, reader), 100.0) == [Chunks(25, 90), Chunks(12, 20)]
    # the questions take most of it: one row of 10 tokens at a time still fits into the rest
    assert chunks(1000, [Stage(1.0, 10, 1000, 100)] * 2, 970.0) == [Chunks(15, 0)] * 2
    assert chunks(1000, (encoder._replace(most=15), reader._replace(longest=40))) == [Chunks(15, 14), Chunks(40, 13)]


def test_a_budget_without_room_for_a_row_is_refused() -> None:
    """It says what the longest row needs."""
    with pytest.raises(ValueError, match="one row and its gradients, 100,000 bytes here, got 10,000 bytes: raise it"):
        chunks(10_000, (Stage(1000.0, 50, 2048, 500),))
    with pytest.raises(ValueError, match="memory_budget must be at least 0, got -1"):
        FitConfig(memory_budget=-1)
    rag = system()
    encoder, reader, beside = measured(rag, ASKED, 4, K)
    assert beside > 0
    assert encoder.step == 4 * K * encoder.longest
    assert reader.step == 4 * (K + 1) * reader.longest
    more, as_many, _ = measured(rag, ASKED, 4, K, negatives=5)
    assert more.step == (4 * K + 5) * encoder.longest  # they are encoded and not read
    assert as_many.step == reader.step
    with pytest.raises(ValueError, match="memory_budget holds at least"):
        rag.fit(ASKED, memory_budget=1000, progress=False)


def test_the_longest_row_is_the_longest_that_training_reads() -> None:
    """Of several answers training reads the first; the longest question may be another's than the longest pair's."""
    rag = system()
    few = [Question("how old ?", ("the pilot was 85 years " * 9,)), Question("how old was the pilot ? " * 3, ("85",))]
    _, expected, asked = measured(rag, few, 4, K)
    _, reader, beside = measured(rag, [*few, Question("and ?", ("1", "the pilot was 85 years " * 20))], 4, K)
    assert reader == expected
    assert beside == asked > measured(rag, few[:1], 4, K)[2]


@pytest.mark.parametrize("reading", ["marginal", "fid"])
def test_what_is_read_without_gradient_takes_nothing_of_a_budget(reading: str) -> None:
    """As `pdist` has it read: a budget that a row with its graph wouldn't fit into is enough, and the reader keeps its
    batches."""
    rag = system(reading)
    encoder, reader, beside = measured(rag, ASKED, 4, K)
    same, unheld, as_much = measured(rag, ASKED, 4, K, reader_learns=False)
    assert same == encoder
    assert as_much == beside
    assert unheld.bytes < reader.bytes / 1000
    least = int(2 * encoder.bytes * encoder.longest + beside) + 10_000
    with pytest.raises(ValueError, match="memory_budget holds at least"):
        rag.fit(ASKED, k=K, memory_budget=least, progress=False, calibrate=0)
    settings = {"k": K, "epochs": 1, "freeze": ("extractor",), "progress": False, "calibrate": 0}
    run = rag.fit(ASKED, objective="pdist", memory_budget=least, **settings)
    assert run.history[0]["gradient_retriever"] > 0
