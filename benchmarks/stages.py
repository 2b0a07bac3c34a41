"""What each stage's learning is worth: `make demo`'s training beside the same number of steps with a stage frozen, or
over ordinary chunks.

    python benchmarks/stages.py [--quick] [--json FILE] [--seeds 0 1 2] [--arms NAME ...] [--out FOLDER]
                                [--set NAME=VALUE ...] [--bm25 WEIGHT]

Of the ten accident reports of examples/ntsb every seed draws six to learn from and four to test on (for `demo`, which
counts as seed 0, they are `make demo`'s). Training takes `fit`'s settings, or those with `--set`'s changes, and answers
alone; scores are dense and BM25's, or with `--bm25 0` dense alone. Arms: `untrained`; `all` (three stages learn);
`extractor frozen`, `gates frozen` (spans and cuts learn, lines stay as they are), `retriever frozen`, `generator
frozen`; `fixed-N` (chunks of N tokens with an eighth of overlap: there is no extractor, the other two learn). All read
K passages an answer, so beside what is found and answered stands how many tokens are read.

Printed are means over all seeds' questions and, in brackets, the 95 % bootstrap interval of each arm's difference to
`all`, question by question, with soft and with hard gates. `fit`'s settings were developed with `all` on the split of
`make demo`, which no seed below 4 draws, but of the same reports: that speaks for `all`.

A run can be stopped: what is done stays in `--out`, one file per arm and seed (those with `--set` in a folder of their
own, and those with another `--bm25`), and is not done again.
"""

import argparse
import json
from hashlib import sha256
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from e2erag import RAG
from e2erag.artefact import write_file
from e2erag.demo import EXAMPLES
from e2erag.evaluation import METRICS, bootstrap, evaluate
from e2erag.extract import Extractor
from e2erag.questions import Question, read_questions
from e2erag.retriever import RetrieverConfig
from e2erag.train import FitConfig

FROZEN = {
    "all": (),
    "extractor frozen": ("extractor",),
    "gates frozen": ("extractor.gates",),
    "retriever frozen": ("retriever",),
    "generator frozen": ("generator",),
    "fixed-128": ("extractor",),
    "fixed-256": ("extractor",),
}
MODES, GAP = ("soft", "hard"), "gap"


def drawn(draw: int | str, counts: tuple[int, int] = (6, 4)) -> list[tuple[list[Path], list[Question]]]:
    """So many reports to learn from and to test on, each with the questions about them."""
    halves = [read_questions(EXAMPLES / f"{name}.jsonl") for name in ("train", "test")]
    asked = [question for half in halves for question in half]
    if draw == "demo":
        parts = [[EXAMPLES / name for name in sorted({q.file for q in half if q.file})] for half in halves]
    else:
        files = Random(f"reports {draw}").sample(sorted(EXAMPLES.glob("*.pdf")), sum(counts))
        parts = [files[: counts[0]], files[counts[0] :]]
    return [(part, [q for q in asked if q.file in {path.name for path in part}]) for part in parts]


def run(arm: str, draw: int | str, quick: bool, settings: dict[str, Any], bm25: float) -> dict[str, object]:
    """Train on some reports' questions; then all reports are indexed, and the others' questions asked."""
    (seen, learn), (_, test) = drawn(draw)
    seed = 0 if draw == "demo" else draw
    seen, reports = sorted(seen), sorted(EXAMPLES.glob("*.pdf"))
    if quick:
        seen, learn, test, reports = seen[:1], [q for q in learn if q.file == seen[0].name][:4], test[:2], reports[:2]
    rag, seconds, steps = RAG.from_pretrained(seed=seed, retrieval=RetrieverConfig(bm25=bm25 or None)), 0.0, 0
    if arm.startswith("fixed"):
        size = int(arm.split("-")[1])
        rag.model.extractor = Extractor.fixed(size, size // 8, rag.model.extractor.config.text_dim)
    if arm in FROZEN:
        rag.index(seen)
        start = perf_counter()
        plain = [Question(q.question, q.answers) for q in learn]  # no page is told
        settings = {"epochs": 1 if quick else 3, "progress": False} | settings
        steps = rag.fit(plain, seed=seed, freeze=FROZEN[arm], **settings).steps
        seconds = perf_counter() - start
    rag.index(reports)
    found = evaluate(rag, test)
    return {"steps": steps, "seconds": seconds} | {mode: getattr(found, mode).scores.tolist() for mode in MODES}


def table(cells: dict[str, list[dict]], mode: str) -> tuple[list[str], dict[str, dict[str, list[float]]]]:
    """Per arm means, and differences to `all`, each with its interval; lines to print and the same as figures."""

    def of(cell: dict) -> np.ndarray:
        return np.asarray(cell[mode]) if mode != GAP else np.asarray(cell["soft"]) - np.asarray(cell["hard"])

    scores = {arm: np.concatenate([of(cell) for cell in parts]) for arm, parts in cells.items()}
    head = "soft less hard" if mode == GAP else f"{mode} gates"
    lines, figures = [f"{head:17}" + "".join(f"{name:>32}" for name in METRICS)], {}
    for arm, values in scores.items():
        figures[arm], line = {}, f"{arm:17}"
        for i, name in enumerate(METRICS):
            known = values[~np.isnan(values[:, i]), i]
            figures[arm][name] = [float(known.mean()), *bootstrap(known)]
            digits, beside = 0 if name == "tokens read" else 2, ""
            if arm != "all" and "all" in scores:
                change = values[:, i] - scores["all"][:, i]
                change = change[~np.isnan(change)]
                low, high = bootstrap(change)
                figures[arm][f"{name} less all's"] = [float(change.mean()), low, high]
                beside = f" [{low:+.{digits}f}, {high:+.{digits}f}]"
            line += f"{f'{known.mean():.{digits}f}{beside}':>32}"
        lines.append(line)
    return lines, figures


def _seed(text: str) -> int | str:
    return text if text == "demo" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a step, two questions, two arms: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=_seed, nargs="+", default=[0, 1, 2], help="numbers, and demo")
    parser.add_argument("--arms", nargs="+", choices=["untrained", *FROZEN], default=["untrained", *FROZEN])
    parser.add_argument("--out", type=Path, default=Path("runs/stages"), help="what is done stays there")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of `fit`")
    parser.add_argument("--bm25", type=float, default=1.0, metavar="WEIGHT", help="in the scores; 0: dense alone")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (change.split("=", 1) for change in options.set)}
    FitConfig().changed(**settings)  # which refuses what can't be
    named = settings if options.bm25 == 1.0 else settings | {"bm25": options.bm25}
    if named:
        options.out /= sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
    if options.quick:
        options.arms, options.seeds, options.out = ["all", "fixed-128"], [0], options.out / "quick"
    cells: dict[str, list[dict]] = {}
    for seed in options.seeds:
        for arm in options.arms:
            path = options.out / f"{arm.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                options.out.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(run(arm, seed, options.quick, settings, options.bm25)))
            cells.setdefault(arm, []).append(json.loads(path.read_text()))
            print(f"seed {seed}, {arm}: {cells[arm][-1]['steps']} steps, {cells[arm][-1]['seconds']:.0f} s", flush=True)
    figures = {}
    print("(in brackets the interval of the difference to all)")
    for mode in (*MODES, GAP):
        lines, figures[mode] = table(cells, mode)
        print("\n" + "\n".join(lines))
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
