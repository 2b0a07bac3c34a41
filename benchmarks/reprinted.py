"""What extractors that `extractor_learns.py` has trained are worth where the unseen articles are printed in other ways.

    python benchmarks/reprinted.py [--quick] [--json FILE] [--seeds 0 1 2] [--prints 4] [--out FOLDER]

That script prints its unseen articles once, and where pages happen to be cut moves recall@1 by as much as a third of
the distance that gates can close. Here each seed's articles are printed several times over, with other looks, notices
and sidebars, all of kinds for unseen articles; the extractors are those that it has left in `--out`. Finding alone is
measured: nothing printed here is learned from, and no answer is read.

Share of the distance closed: (extractor − printed) / (clean − printed), of recall@1 in the mean over the prints.

A run can be stopped: what is done stays in `--out`, one file per seed and print, and is not done again.
"""

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random

from dropped import trained
from extractor_learns import QUICK, Print, Size, articles, cut, measure, place, printed, system
from figures import interval, write_figures
from safetensors.torch import load_file
from squad_pdf import FOLDER, UNSEEN

from e2erag.artefact import write_file

ARMS = ("printed", "clean", "soft", "hard")


def prints(seed: int, number: int, size: Size, folder: Path) -> tuple[Print, Print]:
    """The seed's unseen articles with everything around the text, and the text alone, printed for the n-th time."""
    pool = articles(FOLDER, "dev32")
    drawn = Random(f"test {seed}").sample(pool, len(pool))
    chosen, others = [cut(a, size.paragraphs) for a in drawn[: size.articles[1]]], drawn[size.articles[1] :]
    base = UNSEEN + seed + 1000 * number
    folder.mkdir(parents=True, exist_ok=True)
    full, bare = (printed(chosen, others, size.questions[1], size.share, base, folder, bare) for bare in (False, True))
    return full, bare


def cell(seed: int, number: int, size: Size, extractor: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Every arm's figures on one print."""
    full, bare = prints(seed, number, size, folder)
    rag = system(seed, size, None)
    figures = {}
    for arm in ARMS:
        rag.config = replace(rag.config, mode="hard" if arm == "hard" else "soft")
        if arm == "soft":
            rag.model.extractor.load_state_dict(load_file(extractor))
        data = bare if arm == "clean" else full
        rag.index(data.documents)
        with warnings.catch_warnings(action="ignore"):  # of no answers there is no mean
            figures[arm] = measure(rag, data, replace(size, read=0))
    return figures


def summary(cells: dict[int, list[dict[str, dict[str, float]]]]) -> dict[str, object]:
    """Recall@1 of every arm and the share closed, by seed in the mean over its prints and as [mean, low, high]."""

    def mean(seed: int, arm: str, figure: str = "recall@1") -> float:
        return sum(each[arm][figure] for each in cells[seed]) / len(cells[seed])

    def closed(seed: int, mode: str) -> float:
        distance = mean(seed, "clean") - mean(seed, "printed")
        return (mean(seed, mode) - mean(seed, "printed")) / distance if distance > 0 else float("nan")

    def told(values: list[float]) -> dict[str, object]:
        return {"by seed": values, "mean": interval(values)}

    return {
        "prints": {seed: len(each) for seed, each in cells.items()},
        "recall@1": {arm: told([mean(seed, arm) for seed in cells]) for arm in ARMS},
        "distance_closed": {mode: told([closed(seed, mode) for seed in cells]) for mode in ("soft", "hard")},
        "tokens_stored_ratio": told(
            [mean(s, "hard", "tokens_stored") / mean(s, "printed", "tokens_stored") for s in cells]
        ),
        "boilerplate_dropped": told([mean(seed, "hard", "read_boilerplate_dropped") for seed in cells]),
        "text_dropped": told([mean(seed, "hard", "read_text_dropped") for seed in cells]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few questions, one seed, one print: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prints", type=int, default=4, help="how many times, beside that script's own")
    parser.add_argument("--out", type=Path, default=Path("runs/extractor_learns"))
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    if options.quick:
        options.seeds, options.prints = options.seeds[:1], 1
    out, of = place(options.out, size), trained(options.out, size, options.seeds, options.quick)
    cells: dict[int, list[dict[str, dict[str, float]]]] = {seed: [] for seed in options.seeds}
    for number in range(1, options.prints + 1):
        for seed in options.seeds:
            done = out / f"reprinted-{seed}-{number}.json"
            if not done.is_file():
                figures = cell(seed, number, size, of[seed], out / "pdf")
                write_file(done, json.dumps(figures, indent=2))
                print(f"seed {seed}, print {number}", file=sys.stderr, flush=True)
            cells[seed].append(json.loads(done.read_text(encoding="utf-8")))
    figures = summary(cells)
    print(json.dumps(figures, indent=2))
    if options.json:
        write_figures(options.json, figures | {"cells": cells})


if __name__ == "__main__":
    main()
