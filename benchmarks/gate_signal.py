"""What does the answer's loss say of each line, before anything has learned? By the line's role, for each path alone.

    python benchmarks/gate_signal.py [--quick] [--json FILE] [--questions 120] [--seed 100] [--explore 0] [--untaught]

Every gate is open, or with `--explore 4` reading gates are turned down at random by up to 4 nats, as training does. For
every line of the passages read, the slope of −log p(y|x) in its log w is summed by the role that the line was printed
for: positive where turning the line down helps. The retrieval gates' slopes go through the passages' embeddings, the
reading gates' through the reader's attention; `signal` is mean over standard error, over batches of four. Same print,
same passages and same reader as `extractor_learns.py`; `--untaught` takes one that hasn't learned the form of answers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from extractor_learns import TEXT, Print, Size, prepare, system, teach
from squad_pdf import FOLDER
from torch.nn import functional as F

from e2erag import RAG
from e2erag.artefact import write_file
from e2erag.corpus import Gates
from e2erag.train import marginal

BATCH = 4


def slopes(
    rag: RAG, data: Print, count: int, k: int, batch: int = BATCH, explore: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """d(−log p)/d(log w) per batch, path (finding, reading) and line; how often each line was read. Gates are open, but
    for reading turned down at random by so many nats at most (`Extractor.explored`)."""
    corpus, whole = rag.corpus, rag.model.gates
    assert corpus is not None
    leaves: list[torch.Tensor] = []
    noise = torch.Generator().manual_seed(0)
    rag.model.extractor.explore = explore

    def gates(*inputs: object) -> Gates:
        found = whole(*inputs)  # type: ignore[arg-type]
        lines = [torch.zeros(len(corpus)), rag.model.extractor.explored(torch.zeros(len(corpus)), noise)]
        leaves[:] = [F.pad(each, (0, len(corpus))).requires_grad_() for each in lines]
        return Gates(*leaves, found.extraction)

    rag.model.gates = gates  # type: ignore[method-assign]
    rows, read = [], np.zeros(len(corpus))
    for start in range(0, count, batch):
        asked = [question for question, _ in data.questions[start : start + batch]]
        terms = rag.terms(asked, k, "soft", negligible=0.02)
        marginal(terms).sum().backward()
        rows.append([leaf.grad[: len(corpus)].numpy() for leaf in leaves if leaf.grad is not None])
        for passage in terms.ids[terms.ids >= 0].tolist():
            read[corpus.lines(passage)[0]] += 1
    return np.asarray(rows), read


def table(values: np.ndarray, read: np.ndarray, roles: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per role: lines read per question, and per path the slope per question and its signal."""
    kinds = np.asarray(roles)
    groups = {"all text": np.isin(kinds, TEXT), "all boilerplate": ~np.isin(kinds, TEXT)}
    groups |= {role: kinds == role for role in sorted(set(roles))}
    out = {}
    for name, chosen in groups.items():
        out[name] = {"lines": float(read[chosen].sum() / (BATCH * len(values)))}
        for path, per_line in zip(("finding", "reading"), values.transpose(1, 0, 2), strict=True):
            sums = per_line[:, chosen].sum(1) / BATCH
            error = sums.std(ddof=1) / len(sums) ** 0.5
            out[name] |= {path: float(sums.mean()), f"{path} signal": float(sums.mean() / max(error, 1e-12))}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few questions: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--explore", type=float, default=0.0, help="nats")
    parser.add_argument("--untaught", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    parser.add_argument("--out", type=Path, default=Path("runs/gate_signal"))
    options = parser.parse_args()
    size = Size(articles=(2, 2), paragraphs=4, questions=(12, 12), form=4) if options.quick else Size()
    (options.out / "pdf").mkdir(parents=True, exist_ok=True)
    prints = prepare(options.seed, size, options.folder, options.out)
    reader = options.out / f"reader-{options.seed}-{size.form}"
    rag = system(options.seed, size, None if options.untaught else teach(options.seed, size, prints["form"], reader))
    data = prints["train full"]
    rag.model.requires_grad_(False)
    rag.index(data.documents)
    asked = min(options.questions, len(data.questions))
    figures = table(*slopes(rag, data, asked, size.k, explore=options.explore), data.roles)
    names = list(next(iter(figures.values())))
    print(f"{'per question':18}" + "".join(f"{name:>16}" for name in names))
    for role, row in figures.items():
        print(f"{role:18}" + "".join(f"{row[name]:16.3f}" for name in names))
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
