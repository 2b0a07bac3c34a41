"""A run as one picture: every figure that it has logged over the steps."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float

from e2erag.artefact import write_file
from e2erag.train.health import figures

COLUMNS = 4


def draw_run(history: Sequence[dict[str, float]], path: Path) -> Path | None:
    """Draw what a run logged, a panel per figure: each step pale, their running mean dark.

    Needs matplotlib (extra `draw`); without it nothing is drawn, and a warning says so."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        warnings.warn('no dashboard without matplotlib: pip install "e2erag[draw]"', stacklevel=2)
        return None
    names = figures(history)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.4 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    steps = np.arange(1, len(history) + 1)
    for number, name in enumerate(names, 1):
        values = np.asarray([row.get(name, np.nan) for row in history])
        panel = figure.add_subplot(rows, COLUMNS, number)
        panel.plot(steps, values, color="#9db7d5", linewidth=0.8, marker="." if len(steps) < 3 else None)
        panel.plot(steps, running_mean(values), color="#1f4e8c", linewidth=1.6)
        panel.set_title(f"{name}\n{names[name]}", fontsize=7, loc="left")
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.ticklabel_format(axis="y", useOffset=False)
        panel.grid(alpha=0.25)
    figure.supxlabel("step", fontsize=8)
    picture = BytesIO()
    canvas.print_png(picture)
    write_file(path, picture.getvalue())
    return path


def running_mean(values: Float[np.ndarray, " steps"], share: float = 0.1) -> Float[np.ndarray, " steps"]:
    """Mean of each value and those before it, over `share` of the run; missing ones are left out."""
    width = max(int(len(values) * share), 1)
    known = ~np.isnan(values)
    sums, counts = (np.cumsum(np.concatenate([[0.0], x])) for x in (np.where(known, values, 0.0), known))
    low = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    high = np.arange(1, len(values) + 1)
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])
