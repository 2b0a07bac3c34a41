"""Gates in attention and pooling against gates in pooling alone: what a refresh costs, and what each finds.

    python benchmarks/gates.py [--quick] [--json FILE]

SQuAD paragraphs are broken into lines with as many boilerplate lines mixed in. Gates are set by hand: text open,
boilerplate at w. `recall@1` is of the questions' own paragraph among all of them, with all-MiniLM-L6-v2 in float32; the
same paragraphs without their boilerplate lines (`removed`) and with all of them open (w = 1) stand beside. `refresh` is
the time from other gates to other vectors: encoding again, or pooling the stored sums of lines again.
"""

import argparse
import json
from pathlib import Path
from random import Random
from textwrap import wrap
from time import perf_counter

import numpy as np
import torch
from squad_pdf import FOLDER, articles
from torch import Tensor

from e2erag.artefact import write_file
from e2erag.extract import CLOSED
from e2erag.models import resolve
from e2erag.rag import RETRIEVER
from e2erag.retriever import Encoder, LineSums

BOILERPLATE = (
    """
Continued on the next page|All rights reserved|Visit our website for further information|Share this article with friends
Printed on recycled paper|Sign up for our weekly newsletter|Terms of use and privacy policy apply|Back to the top
Reproduction without written permission is prohibited|This page was last updated in November|Read more in our archive
Advertisement: subscribe today and save half of the price|Cookies help us deliver our services|Draft, not for citation
""".strip()
    .replace("\n", "|")
    .split("|")
)


class Mixed:
    """Paragraphs as lines with boilerplate mixed in, and questions with the number of their paragraph."""

    def __init__(self, paragraphs: int, questions: int, folder: Path) -> None:
        random = Random(0)
        pool = [(p, [q for q in a.questions if q.paragraph == p.id]) for a in articles(folder) for p in a.paragraphs]
        drawn = random.sample(pool, min(paragraphs, len(pool)))
        asked = [(q.text, number) for number, (_, own) in enumerate(drawn) for q in own]
        self.questions = random.sample(asked, min(questions, len(asked)))
        self.texts: list[str] = []
        self.passages: list[np.ndarray] = []
        boilerplate: list[bool] = []
        for paragraph, _ in drawn:
            text = [(line, False) for line in wrap(paragraph.text, 80)]
            rows = text + [(random.choice(BOILERPLATE), True) for _ in text]
            order = sorted(range(len(rows)), key=lambda i: i + 0.5 if i < len(text) else random.uniform(0, len(text)))
            self.passages.append(len(self.texts) + np.arange(len(rows)))
            self.texts += [rows[i][0] for i in order]
            boilerplate += [rows[i][1] for i in order]
        self.boilerplate = np.asarray(boilerplate)

    def gates(self, w: float) -> Tensor:
        """log w of every line: 0 for text."""
        return torch.where(torch.from_numpy(self.boilerplate), max(CLOSED, float(np.log(max(w, 1e-30)))), 0.0)


def compare(data: Mixed) -> dict[str, float]:
    """Recall of each mode and gate, and the time of a refresh."""
    encoder = Encoder.load(resolve(RETRIEVER))
    lines, passages = encoder.lines(data.texts), data.passages
    queries = encoder.encode_text([question for question, _ in data.questions], "query")
    gold = torch.tensor([number for _, number in data.questions])

    def recall(vectors: Tensor) -> float:
        return float(((queries @ vectors.T).argmax(1) == gold).double().mean())

    start = perf_counter()
    sums: LineSums = encoder.line_sums(lines, passages, passages)
    figures = {
        "questions": float(len(gold)),
        "paragraphs": float(len(passages)),
        "store_seconds": perf_counter() - start,
    }
    figures["removed recall@1"] = recall(encoder.encode_lines(lines, [p[~data.boilerplate[p]] for p in passages]))
    seconds: dict[str, list[float]] = {"attend": [], "pool": []}
    for w in (1.0, 0.3, 0.0):
        gates = data.gates(w)
        start = perf_counter()
        attended = encoder.encode_lines(lines, passages, gates, passages)
        between = perf_counter()
        pooled = sums.pool(gates)
        seconds["pool"].append(perf_counter() - between)
        seconds["attend"].append(between - start)
        figures |= {f"attend w={w} recall@1": recall(attended), f"pool w={w} recall@1": recall(pooled)}
    figures |= {f"{name} refresh_seconds": min(values) for name, values in seconds.items()}
    figures["refresh_ratio"] = figures["attend refresh_seconds"] / figures["pool refresh_seconds"]
    figures["sums_over_vectors_bytes"] = sums.rows.nbytes / attended.nbytes
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few paragraphs: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--paragraphs", type=int, default=200)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where SQuAD lies")
    options = parser.parse_args()
    count, asked = (16, 32) if options.quick else (options.paragraphs, options.questions)
    with torch.no_grad():
        figures = compare(Mixed(count, asked, options.folder))
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}")
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
