"""Which chunks of a step fit into a memory budget: tokens computed at a time, and tokens whose graph is held."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from e2erag.drawing import pages_of
from e2erag.questions import Question
from e2erag.rag import RAG

UNDER_WAY = 2.0
"""A batch that is being computed or going back, in multiples of its graph: its gradients stand beside what it saved."""
SHARE = 0.25
"""Of a budget, at most, for the batch under way, where rows are short enough: the rest saves a second forward pass."""


class Stage(NamedTuple):
    """An encoder or a reader on a run's longest rows.

    Attributes:
        bytes: that a token's graph holds.
        longest: tokens of a row.
        most: `token_budget` as configured; it isn't raised.
        step: tokens of a step, at most.
    """

    bytes: float
    longest: int
    most: int
    step: int


class Chunks(NamedTuple):
    """`token_budget` and `held_tokens` of a stage."""

    token_budget: int
    held_tokens: int


def chunks(memory: int, stages: Sequence[Stage], beside: float = 0.0) -> list[Chunks]:
    """Per stage what keeps a step within so many bytes: the batch under way, and the graphs of all stages together.

    Args:
        beside: bytes of graph that are held whatever the chunks, the questions'.

    Raises:
        ValueError: not even one row at a time fits."""
    room = min(SHARE * memory, memory - beside)
    budgets = [max(min(int(room / (UNDER_WAY * s.bytes)), s.most), s.longest) for s in stages]
    work = max(UNDER_WAY * s.bytes * budget for s, budget in zip(stages, budgets, strict=True))
    if work + beside > memory:
        need = max(UNDER_WAY * s.bytes * s.longest for s in stages) + beside
        raise ValueError(
            f"memory_budget holds at least the graph of one row and its gradients, {_size(need)} here, got "
            f"{_size(memory)}: raise it, lower GeneratorConfig's max_tokens or ExtractorConfig's, or take a smaller "
            "batch_size"
        )
    rest, held = memory - work - beside, [0] * len(stages)
    left = sorted(range(len(stages)), key=lambda i: stages[i].step)
    for place, i in enumerate(left):  # what one doesn't need the others get
        held[i] = min(stages[i].step, int(rest / sum(stages[j].bytes for j in left[place:])))
        rest -= held[i] * stages[i].bytes
    return [Chunks(*each) for each in zip(budgets, held, strict=True)]


def _size(number: int | float) -> str:
    return f"{number / 1e6:,.1f} MB" if number >= 1e6 else f"{number:,.0f} bytes"


@contextmanager
def within(
    rag: RAG,
    memory: int,
    questions: Sequence[Question],
    batch_size: int,
    k: int,
    negatives: int = 0,
    reader_learns: bool = True,
) -> Iterator[None]:
    """While a system learns, chunks by `chunks`, as its longest rows measure; afterwards those that were configured.

    The budget is of activations: weights, their gradients, the optimiser's, the index and the lines judged (`judged`)
    take theirs beside it. 0: as configured. Where the reader doesn't learn from the objective, passages
    are read without gradient."""
    if not memory:
        yield
        return
    retriever, generator = rag.model.retriever, rag.model.generator
    towers = {id(tower): tower for tower in (retriever.passage, retriever.query)}.values()
    before, config = [(tower.token_budget, tower.held_tokens) for tower in towers], generator.config
    encoder, reader, beside = measured(rag, questions, batch_size, k, negatives, reader_learns)
    encoding, reading = chunks(memory, (encoder, reader), beside)
    for tower in towers:
        tower.token_budget, tower.held_tokens = encoding
    generator.config = replace(config, token_budget=reading.token_budget, held_tokens=reading.held_tokens)
    try:
        yield
    finally:
        for tower, old in zip(towers, before, strict=True):
            tower.token_budget, tower.held_tokens = old
        generator.config = config


@torch.enable_grad()
def measured(
    rag: RAG, questions: Sequence[Question], batch_size: int, k: int, negatives: int = 0, reader_learns: bool = True
) -> tuple[Stage, Stage, float]:
    """The passage tower and the reader on the k longest passages and the longest question and answer, and bytes of the
    graph of a batch of questions."""
    corpus, _ = rag._ready()
    model, passages = rag.model, len(corpus.passages)
    ends = torch.from_numpy(corpus.retriever_lines.offsets)
    start, stop = corpus.spans.spans[:, 1], corpus.spans.spans[:, 2]
    ids = (ends[stop] - ends[start]).topk(min(k, passages)).indices.sort().values
    longest = max(questions, key=lambda q: len(q.question) + len(q.answers[0]))  # training reads the first answer
    asked, answers = [longest.question], [longest.answers[0]]
    posed = [max((q.question for q in questions), key=len)]
    gates = model.gates(corpus, "soft", lines=pages_of(corpus, ids))
    flat, found = torch.zeros(passages, device=model.device), ids[None]
    encoder, generator = model.retriever.passage, model.generator
    lines, _ = model.gated_lines(corpus, ids, gates)
    sizes = [min(int(corpus.retriever_lines.sizes[each].sum()), encoder.room) for each in lines]
    special = encoder.longest("document") - encoder.room
    if model.reading == "marginal":
        rows, slots = model.rows(corpus, asked, answers, found, gates, "soft")
        bias: Tensor = gates.read
        rows_each = k + 1  # each alone, and the closed book
    else:
        prior = flat[found].log_softmax(1)
        rows, bias, slots = model.fused_rows(corpus, asked, answers, found, prior, gates, "soft")  # type: ignore[assignment]  # none without gates
        rows_each = 2  # all in one, and the closed book

    def read() -> Tensor:
        with model.autocast(), torch.set_grad_enabled(reader_learns):
            return generator.token_log_likelihood(rows, bias, slots, -(2**62))  # all of it held

    held, encoder.held_tokens = encoder.held_tokens, 2**62
    try:
        encoded = _saved(model, lambda: model.encode(corpus, ids, gates, flat, "soft"))
        question = _saved(model, lambda: model.retriever.encode_questions(posed))
    finally:
        encoder.held_tokens = held
    tokens, read_tokens = [size + special for size in sizes], [row.size for row in rows]
    return (
        _stage(encoded, tokens, encoder.token_budget, batch_size * k + negatives),
        _stage(_saved(model, read), read_tokens, generator.config.token_budget, batch_size * rows_each),
        float(question * batch_size),
    )


def _stage(kept: int, tokens: list[int], most: int, rows: int) -> Stage:
    return Stage(kept / sum(tokens), max(tokens), most, rows * max(tokens))


def _saved(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward one, beside the weights; at least 1 (where nothing learns)."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()  # while it stands, no storage is used twice
    total = sum(size for place, size in kept.items() if place not in weights)
    del out
    return max(total, 1)
