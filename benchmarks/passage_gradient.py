"""How near does a step's gradient in what makes passages' vectors come to the exact one, where few of them are encoded?

    python benchmarks/passage_gradient.py [--quick] [--json FILE] [--out FOLDER] [--corpora synthetic tiny real]

What makes vectors, an encoder and the extractor's gates, is common to all passages. Here it is a linear map of them,
s_z = qᵀ·A·d_z / τ at A = I, and compared is the gradient in A of batches of eight questions: its cosine to the exact
one and |g − g*| / |g*|, medians over batches (of means of 16 draws, where something is drawn). Exact is −log Σ_z
p(z|x)·p(y|x,z) with every passage read and moving. A step reads the K best of each question (`marginal`), and of the
other passages

own      none moves, their stored scores stand in Z without gradient: what a step does by itself, since a question's
         gradient then doesn't depend on which others are in its batch;
batch    those move that are read for another question of the batch;
n drawn  these, and n for all of the others (`FitConfig.negatives`);
all      each moves, and what is left of the error is that only K are read.

Corpora are those of `gradient_audit.py`; the JSON file has every setting's figures.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gradient_audit import KS, TEMPERATURES, Step, synthetic
from reading_table import FOLDER, Size, Table, read, read_tiny
from torch import Tensor
from torch.nn import functional as F

from e2erag.artefact import write_file
from e2erag.retriever import OVERFETCH, ExactIndex, Softmax, Spans
from e2erag.train import OBJECTIVES, Options

BATCH, DRAWS, NEGATIVES = 8, 16, (4, 16, 64)


def gradients(table: Table, temperature: float, k: int) -> Iterator[tuple[Tensor, dict[str, list[Tensor]]]]:
    """Per batch of questions, the exact gradient in A and what steps have for it, of each draw."""
    step = Step(table, temperature, k)
    (slopes,) = torch.autograd.grad(OBJECTIVES["marginal"](step.evidence, Options()).sum(), step.evidence.prior_logp)
    rows, prior, queries = step.rows, step.prior.detach(), step.q.detach()
    posterior = (prior + table.token_logp.sum(2)).softmax(1)
    first = torch.arange(len(rows))
    spans = Spans(torch.stack([first, first, first + 1, torch.zeros_like(first)], 1), 0.5)  # none repeats another
    index = ExactIndex.of(F.pad(rows, (0, 1)).float())
    for batch in torch.arange(len(queries)).split(BATCH):
        q, p, slope, ids = queries[batch], prior[batch].exp(), slopes[batch], step.evidence.ids[batch]
        asked, fresh = F.pad(q, (0, 1), value=1.0).float(), ids.unique()
        softmax = Softmax(index, asked, index.search(asked, OVERFETCH * k), ids, spans, fresh, shared=True)
        read = torch.einsum("bd,bk,bke->de", q, slope, step.found[batch])
        encoded = torch.zeros_like(p)
        encoded[:, fresh] = p[:, fresh]
        rest = 1 - encoded.sum(1, keepdim=True)
        own = torch.zeros_like(p).scatter(1, ids, p.gather(1, ids))
        ways = {"own": [own], "batch": [encoded]}
        for count in NEGATIVES:
            drawn = [softmax.draw(count, torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
            ways[f"{count} drawn"] = [encoded.index_add(1, each.rows, rest * each.share.double()) for each in drawn]
        ways["all"] = [p]
        weights = {name: [-slope.sum(1, keepdim=True) * moving for moving in each] for name, each in ways.items()}
        exact = q.T @ (p - posterior[batch]) @ rows
        yield exact, {name: [read + q.T @ weight @ rows for weight in each] for name, each in weights.items()}


def compare(table: Table, temperature: float, k: int) -> dict[str, dict[str, float]]:
    """Medians over batches, per way."""
    errors: dict[str, list[list[float]]] = {}
    for exact, found in gradients(table, temperature, k):
        for name, each in found.items():
            cosine = [float(F.cosine_similarity(g.flatten(), exact.flatten(), dim=0)) for g in each]
            relative = [float((g - exact).norm() / exact.norm()) for g in each]
            errors.setdefault(name, []).append([float(np.mean(cosine)), float(np.mean(relative))])
    medians = {name: np.median(each, axis=0).tolist() for name, each in errors.items()}
    return {name: {"cosine": cosine, "relative_error": relative} for name, (cosine, relative) in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few passages and questions: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gradient_audit"), help="where tables of readings are kept"
    )
    parser.add_argument("--corpora", nargs="+", choices=("synthetic", "tiny", "real"), default=["synthetic", "tiny"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    options = parser.parse_args()
    made = {
        "synthetic": lambda: synthetic(1_000 if options.quick else 10_000, 8 if options.quick else 96),
        "tiny": lambda: read_tiny(300, 8, options.out) if options.quick else read_tiny(10_000, 24, options.out),
        "real": lambda: read(Size(), options.out, options.folder),
    }
    figures = [
        {"corpus": corpus, "temperature": temperature, "k": k, **compare(table, temperature, k)}
        for corpus, table in ((name, made[name]()) for name in options.corpora)
        for temperature in TEMPERATURES
        for k in KS
    ]
    ways = [name for name in figures[0] if name not in ("corpus", "temperature", "k")]
    print("| cosine / relative error | " + " | ".join(ways) + " |")
    print("|---" * (len(ways) + 1) + "|")
    for row in figures:
        cells = [f"{row[way]['cosine']:.3f} / {row[way]['relative_error']:.3f}" for way in ways]
        print(f"| {row['corpus']}, τ = {row['temperature']}, K = {row['k']} | " + " | ".join(cells) + " |")
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
