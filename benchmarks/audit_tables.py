"""What `gradient_audit.py` found, as tables in Markdown and as a picture."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

REACH, EXPLAINED = ("in_reach", "near", "far"), "explained"
STOCHASTIC = ("gumbel", "rloo")


class Cost(NamedTuple):
    """Of an objective over those of rag_sequence: seconds of a question, and bytes held for the backward pass."""

    time_ratio: float
    memory_ratio: float


def text(figures: dict[str, dict]) -> str:
    """Markdown: the pooled table, the same by τ, then by reach every setting with its questions."""
    lines = pooled(figures)
    for temperature in next(iter(figures.values()))["temperatures"]:
        lines += ["", f"τ = {temperature} alone:", ""]
        lines += pooled({name: rows["temperatures"][temperature] for name, rows in figures.items()})
    settings = next(iter(figures.values()))["settings"]
    heads = [f"{s['corpus']}, τ = {s['temperature']}, K = {s['k']}" for s in settings]
    for place in REACH:
        title = f"{place.replace('_', ' ')}: cosine / relative error"
        counts = [f"{head} ({s.get(place, {}).get('questions', 0)})" for head, s in zip(heads, settings, strict=True)]
        lines += ["", f"| {title} | " + " | ".join(counts) + " |", "|---" * (len(heads) + 1) + "|"]
        for name, rows in figures.items():
            shown = [s.get(place) for s in rows["settings"]]
            cells = [f"{s['cosine']:.3f} / {s['relative_error']:.3f}" if s else "–" for s in shown]
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pooled(figures: dict[str, dict]) -> list[str]:
    """Medians, and in brackets means, over the questions of several settings."""
    lines = [
        "| | " + " | ".join(f"{place}: cosine | relative error" for place in REACH) + " | variance | time | memory |"
    ]
    lines += ["|---" * 10 + "|"]
    for name, rows in figures.items():
        parts = []
        for place in REACH:
            row = rows.get(place)
            parts += (
                [f"{row['cosine']:.3f} ({row['cosine_mean']:.3f})",
                 f"{row['relative_error']:.3f} ({row['relative_error_mean']:.3f})"] if row else ["–"] * 2
            )  # fmt: skip
        row = next(rows[place] for place in REACH if place in rows)
        spread = f"{row['variance']:.2f}" if name in STOCHASTIC else "–"
        cost = " | ".join("–" if math.isnan(row[key]) else f"{row[key]:.3f}" for key in Cost._fields)
        lines.append(f"| `{name}` | {' | '.join(parts)} | {spread} | {cost} |")
    explained = {name: rows[EXPLAINED] for name, rows in figures.items() if EXPLAINED in rows}
    if explained:
        lines += ["", f"| in reach and {EXPLAINED} | cosine | relative error | cases |", "|---" * 4 + "|"]
    for name, row in explained.items():
        cosine, error = (f"{row[key]:.3f} ({row[f'{key}_mean']:.3f})" for key in ("cosine", "relative_error"))
        lines.append(f"| `{name}` | {cosine} | {error} | {row['questions']} |")
    return lines


def plot(figures: dict[str, dict], path: Path) -> None:
    """Cosine and relative error of the real corpus by reach, an objective per group of bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    names = list(figures)
    for axis, key in zip(axes, ("cosine", "relative_error"), strict=True):
        for i, place in enumerate(REACH):
            heights = [figures[name].get(place, {}).get(key, float("nan")) for name in names]
            axis.bar(np.arange(len(names)) + 0.27 * (i - 1), heights, 0.25, label=f"gold {place.replace('_', ' ')}")
        axis.set_ylabel(f"{key.replace('_', ' ')}, median")
    axes[0].axhline(1, color="grey", lw=0.5)
    axes[0].legend(frameon=False, ncols=len(REACH), loc="lower center", bbox_to_anchor=(0.5, 1))  # above the bars
    axes[1].set_yscale("symlog", linthresh=1)
    axes[1].set_yticks([0, 0.5, 1, 2, 3, 5], ["0", "0.5", "1", "2", "3", "5"])
    axes[1].grid(axis="y", lw=0.3)
    axes[1].set_xticks(np.arange(len(names)), names, rotation=30, ha="right")
    figure.savefig(path, dpi=110)
