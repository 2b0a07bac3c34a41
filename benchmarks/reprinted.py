"""What extractors that `extractor_learns.py` has trained are worth where the unseen articles are printed in other ways.

    python benchmarks/reprinted.py [--quick] [--json FILE] [--seeds 0 1 2] [--prints 4] [--out FOLDER]

That script prints its unseen articles once, and where pages happen to be cut moves recall@1 by as much as a third of
the distance that gates can close. Here each seed's articles are printed several times over, with other looks, notices
and sidebars, all of kinds for unseen articles; the extractors are those that it has left in `--out`. Finding alone is
measured: nothing printed here is learned from, and no answer is read.

Arms: `printed` and `clean` (nothing trained; with what stands around the text, and without), `soft` and `hard` gates as
trained, and hard gates by hand: `oracle` (all boilerplate shut, all text open), `shut` (all boilerplate shut, text as
trained) and `open` (all text open, boilerplate as trained), which tell what the trained ones lack.

Share of the distance closed: (arm − printed) / (clean − printed), of recall@1 in the mean over the prints.

A run can be stopped: what is done stays in `--out`, one file per seed and print, and is not done again.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from dropped import trained
from extractor_learns import QUICK, TEXT, Labelled, Print, Size, articles, cut, measure, place, printed, system
from figures import interval, write_figures
from safetensors.torch import load_file
from squad_pdf import FOLDER, UNSEEN
from torch import Tensor

from e2erag.artefact import write_file

BY_HAND = ("oracle", "shut", "open")
ARMS = ("printed", "clean", "soft", "hard", *BY_HAND)


def prints(seed: int, number: int, size: Size, folder: Path) -> tuple[Print, Print]:
    """The seed's unseen articles with everything around the text, and the text alone, printed for the n-th time."""
    pool = articles(FOLDER, "dev32")
    drawn = Random(f"test {seed}").sample(pool, len(pool))
    chosen, others = [cut(a, size.paragraphs) for a in drawn[: size.articles[1]]], drawn[size.articles[1] :]
    base = UNSEEN + seed + 1000 * number
    folder.mkdir(parents=True, exist_ok=True)
    full, bare = (printed(chosen, others, size.questions[1], size.share, base, folder, bare) for bare in (False, True))
    return full, bare


def cell(
    seed: int, number: int, size: Size, extractor: Path, folder: Path, arms: Sequence[str]
) -> dict[str, dict[str, float]]:
    """These arms' figures on one print."""
    full, bare = prints(seed, number, size, folder)
    rag = system(seed, size, None)
    text = torch.tensor([role in TEXT for role in full.roles])
    learned, untrained, figures = deepcopy(rag.model.extractor), rag.model.extractor, {}
    learned.load_state_dict(load_file(extractor))
    by_hand: dict[str, Tensor] = {}
    for arm in sorted(arms, key=ARMS.index):
        if arm in BY_HAND and not by_hand:
            rag.model.extractor = learned
            rag.index(full.documents)
            kept = learned.log_gates(rag.model.gates(rag.corpus, "hard").extraction.retrieve, "hard") == 0
            by_hand = {"oracle": text, "shut": text & kept, "open": text | kept}
        rag.model.extractor = untrained if arm in ("printed", "clean") else learned
        if arm in BY_HAND:
            rag.model.extractor = Labelled(learned.config, by_hand[arm]).eval()
        rag.config = replace(rag.config, mode="hard" if arm in ("hard", *BY_HAND) else "soft")
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
        "distance_closed": {arm: told([closed(seed, arm) for seed in cells]) for arm in ARMS[2:]},
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
            figures = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
            if missing := set(ARMS) - set(figures):
                figures |= cell(seed, number, size, of[seed], out / "pdf", [*missing])
                write_file(done, json.dumps(figures, indent=2))
                print(f"seed {seed}, print {number}", file=sys.stderr, flush=True)
            cells[seed].append(figures)
    figures = summary(cells)
    print(json.dumps(figures, indent=2))
    if options.json:
        write_figures(options.json, figures | {"cells": cells})


if __name__ == "__main__":
    main()
