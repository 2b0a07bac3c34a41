"""Times of several ways to do a thing, taken in turn in one run, so that their ratios hold on any machine."""

from collections.abc import Callable, Mapping
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import torch

Times = dict[str, list[float]]


def seconds(work: Callable[[], Any]) -> float:
    """What it takes until it is done: a GPU's calls return before."""
    start = perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter() - start


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of every arm, once in every round, after one to warm up. Every round has its own order, since what ran
    before leaves the caches better for some than for others."""
    draw = Random(0)
    for work in arms.values():
        work()
    times: Times = {name: [] for name in arms}
    for _ in range(rounds):
        for name in draw.sample(list(arms), len(arms)):
            times[name].append(seconds(arms[name]))
    return times


def over(times: Times, a: str, b: str) -> float:
    """The median over rounds of a's seconds for each of b's."""
    return median(x / y for x, y in zip(times[a], times[b], strict=True))
