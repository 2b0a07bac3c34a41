"""What the benchmarks share of figures: intervals over seeds, and the file of `--json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2erag.artefact import write_file


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """As JSON, which has no NaN: where there is no figure it is null."""
    known = json.loads(json.dumps(figures), parse_constant=lambda _: None)
    write_file(path, json.dumps(known, indent=2))


def interval(values: Sequence[float]) -> list[float]:
    """Mean over the seeds and its 95 % t interval; one seed has none."""
    known = np.asarray([value for value in values if not np.isnan(value)])
    if len(known) < 2:
        return [float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan")]
    half = T95[min(len(known), len(T95) + 1) - 2] * known.std(ddof=1) / len(known) ** 0.5
    return [float(known.mean()), float(known.mean() - half), float(known.mean() + half)]


T95 = (12.706, 4.303, 3.182, 2.776, 2.571)  # of 1, 2, ... degrees of freedom
