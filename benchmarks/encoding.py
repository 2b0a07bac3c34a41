"""Passages per second against `SentenceTransformer.encode`, and the memory of a gradient through K·B passages.

    python benchmarks/encoding.py [--quick] [--json FILE] [--count 5000] [--threads N]

Both encode the same SQuAD paragraphs with all-MiniLM-L6-v2 in float32, in turns: sentence-transformers in batches of 32
(its default, sorted by length within a call), ours in token budgets. A machine that is busy with other things distorts
both; so each turn is a fifth of the paragraphs (96 at least), and the ratio is of the medians over slices of the same
length distribution. With `--threads 1` seconds are the processor's, which other work disturbs less.

Memory is the most that the tensors of one forward and backward pass take at a time, for 64 passages: with the whole
graph held, and in chunks.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter, process_time

import numpy as np
import torch
from squad_pdf import FOLDER, articles
from torch.profiler import ProfilerActivity, profile

from e2erag.artefact import write_file
from e2erag.models import resolve
from e2erag.rag import RETRIEVER
from e2erag.retriever import Encoder, RetrieverConfig

SLICE = 96
"""Paragraphs of a turn at least: three batches of sentence-transformers."""


def sample(count: int, folder: Path = FOLDER) -> list[str]:
    """Paragraphs drawn by a fixed seed."""
    texts = [p.text for article in articles(folder, "corpus442") for p in article.paragraphs]
    return Random(0).sample(texts, min(count, len(texts)))


def encode_ratio(count: int = 5000, threads: int | None = None, folder: Path = FOLDER) -> dict[str, float]:
    """Both ways over the same paragraphs in turns: passages/s of each, their ratio, and the largest difference."""
    if threads:
        torch.set_num_threads(threads)
    clock = process_time if threads == 1 else perf_counter
    encoder = load()
    texts = sample(count, folder)
    size = max(SLICE, len(texts) // 5)

    def ours(part: list[str]) -> torch.Tensor:
        lines = encoder.lines(part)
        return encoder.encode_lines(lines, [np.asarray([i]) for i in range(len(part))])

    def theirs(part: list[str]) -> torch.Tensor:
        return encoder.model.encode(part, convert_to_tensor=True)

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    apart = 0.0
    with torch.no_grad():
        ours(texts[:SLICE]), theirs(texts[:SLICE])
        for turn, start in enumerate(range(0, len(texts), size)):
            part, vectors = texts[start : start + size], {}
            ways: list[tuple[str, Callable[[list[str]], torch.Tensor]]] = [("ours", ours), ("theirs", theirs)]
            for name, way in ways if turn % 2 else ways[::-1]:
                begin = clock()
                vectors[name] = way(part)
                seconds[name].append((clock() - begin) / len(part))
            apart = max(apart, (vectors["ours"] - vectors["theirs"]).abs().max().item())
    rate = {name: float(1 / np.median(values)) for name, values in seconds.items()}
    return {
        "passages": float(len(texts)),
        "ours_per_second": rate["ours"],
        "sentence_transformers_per_second": rate["theirs"],
        "encode_ratio": rate["ours"] / rate["theirs"],
        "largest_difference": apart,
    }


def load() -> Encoder:
    return Encoder.load(resolve(RETRIEVER))


def peak_bytes(encoder: Encoder, texts: list[str], held: int) -> tuple[int, float]:
    """The most that a forward and backward pass takes beside weights and their gradients; its seconds."""
    encoder.held_tokens = held
    for p in encoder.parameters():
        p.grad = torch.zeros_like(p)
    rows = [np.asarray([i]) for i in range(len(texts))]
    gates = torch.zeros(len(texts), requires_grad=True)
    begin = process_time()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        encoder.encode_lines(encoder.lines(texts), rows, gates, rows).square()[:, :8].sum().backward()
    taken = process_time() - begin
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = np.asarray([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum().max()), taken


def memory(passages: int = 64, folder: Path = FOLDER) -> dict[str, float]:
    """Megabytes with the whole graph and in chunks, and how much longer chunks take."""
    encoder, texts = load(), sample(passages, folder)
    encoder.token_budget = RetrieverConfig().token_budget
    (whole, fast), (chunked, slow) = (peak_bytes(encoder, texts, held) for held in (10**9, 0))
    return {
        "gradient_passages": float(passages),
        "whole_mb": whole / 1e6,
        "chunked_mb": chunked / 1e6,
        "chunked_over_whole_seconds": slow / fast,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few hundred paragraphs and eight passages")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--threads", type=int, help="of torch; 1 measures the processor's seconds")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where SQuAD lies")
    options = parser.parse_args()
    figures = encode_ratio(2 * SLICE if options.quick else options.count, options.threads, options.folder)
    figures |= memory(8 if options.quick else 64, options.folder)
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
