"""Timing that noise disturbs least: cases alternate, medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: str, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time several cases turn by turn.

    Args:
        cases: What to time, by name.
        repeats: Timed runs of each.
        device: 'cpu' or 'cuda'; the latter is waited for.
        warmup: Runs of each that are not timed.

    Returns:
        Median, standard deviation and least of the seconds of each case, and n.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for run in cases.values():
        for _ in range(warmup):
            run()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "median_seconds": statistics.median(times),
            "sd_seconds": statistics.stdev(times) if repeats > 1 else 0.0,
            "least_seconds": min(times),
            "n": repeats,
        }
        for name, times in seconds.items()
    }
