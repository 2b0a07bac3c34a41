"""How near does a step's gradient in what makes passages' vectors come to the exact one, where few of them are encoded?

    python benchmarks/passage_gradient.py [--quick] [--json FILE] [--out FOLDER] [--corpora synthetic tiny real]

What makes vectors, an encoder and the extractor's gates, is common to all passages. Here it is a linear map of them,
s_z = qᵀ·A·d_z / τ at A = I, and compared is the gradient in A of batches of eight questions: its cosine to the exact
one and |g − g*| / |g*|, medians over batches (of 16 draws each, where something is drawn). Exact is −log Σ_z
p(z|x)·p(y|x,z) with every passage read and moving. A step reads the K best of each question (`marginal`), and of the
other passages

still    none moves: their stored scores stand in Z without gradient;
n drawn  n move for all of them (`FitConfig.negatives`);
all      each moves, and what is left of the error is that only K are read.

Corpora are those of `gradient_audit.py`; the JSON file has every setting's figures.
"""

import argparse
import json
from pathlib import Path

import torch
from gradient_audit import KS, TEMPERATURES, Step, synthetic
from reading_table import FOLDER, Size, Table, read, read_tiny
from torch import Tensor
from torch.nn import functional as F

from e2erag.artefact import write_file
from e2erag.retriever import ExactIndex, Hits, Spans, draw
from e2erag.train import OBJECTIVES, Options

BATCH, DRAWS, NEGATIVES = 8, 16, (4, 16, 64)


def gradients(step: Step, batch: slice) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The exact gradient in A of a batch of questions, and what steps have for it, of each draw."""
    (slope,) = torch.autograd.grad(OBJECTIVES["marginal"](step.evidence, Options()).sum(), step.evidence.prior_logp)
    q, rows, ids = step.q.detach()[batch], step.rows, step.evidence.ids[batch]
    p, slope = step.prior.detach()[batch].exp(), slope[batch]
    exact = torch.einsum("bd,bn,ne->de", q, p - step.posterior[batch], rows)
    read = torch.einsum("bd,bk,bke->de", q, slope, step.found[batch])
    pull = -slope.sum(1)  # on log Z
    fresh = ids.unique()
    still = torch.zeros_like(p)
    still[:, fresh] = p[:, fresh]
    rest = 1 - still.sum(1, keepdim=True)
    index = ExactIndex.of(F.pad(rows, (0, 1)).float())
    asked = F.pad(q, (0, 1), value=1.0).float()
    spans = Spans(
        torch.stack([torch.arange(len(rows))] * 2 + [torch.arange(len(rows)) + 1, torch.zeros(len(rows))], 1).long(),
        0.5,
    )
    hits = Hits(ids, torch.zeros(ids.shape))

    def moved(share: Tensor) -> Tensor:
        return read + torch.einsum("bd,b,bn,ne->de", q, pull, share, rows)

    found = {"still": [moved(still)]}
    for count in NEGATIVES:
        found[f"{count} drawn"] = []
        for seed in range(DRAWS):
            noise = torch.Generator().manual_seed(seed)
            drawn = draw(index, asked, hits, ids, spans, fresh, count, None, noise)
            found[f"{count} drawn"].append(moved(still.index_add(1, drawn.rows, rest * drawn.share.double())))
    return exact, found | {"all": [moved(p)]}


def compare(table: Table, temperature: float, k: int) -> dict[str, dict[str, float]]:
    """Medians over batches, per way."""
    step = Step(table, temperature, k)
    every = table.token_logp.sum(2).double()
    step.posterior = (step.prior.detach() + every).softmax(1)
    errors: dict[str, list[tuple[float, float]]] = {}
    for start in range(0, len(step.q) - BATCH + 1, BATCH):
        exact, found = gradients(step, slice(start, start + BATCH))
        for name, slopes in found.items():
            cosine = [float(F.cosine_similarity(g.flatten(), exact.flatten(), dim=0)) for g in slopes]
            relative = [float((g - exact).norm() / exact.norm()) for g in slopes]
            errors.setdefault(name, []).append((sum(cosine) / len(slopes), sum(relative) / len(slopes)))
    medians = {name: torch.tensor(each).median(0).values.tolist() for name, each in errors.items()}
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
