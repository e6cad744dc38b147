"""Timing that noise disturbs least: cases alternate, medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Row = dict[str, Any]  # one measured case; see `rows`


def alternate(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: str, warmup: int = 2, parts: int = 1
) -> dict[str, dict[str, float]]:
    """Time several cases turn by turn.

    Args:
        cases: What to time, by name.
        repeats: Timed runs of each.
        device: 'cpu' or 'cuda'; the latter is waited for.
        warmup: Runs of each that are not timed.
        parts: Steps in one run; the figures are for a single step.

    Returns:
        `summary` of the seconds of each case.
    """
    wait = waiting(device)
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
    return {name: summary(times, parts) for name, times in seconds.items()}


def waiting(device: str) -> Callable[[], None]:
    """Return what waits until the device has done its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def summary(seconds: list[float], parts: int = 1) -> dict[str, float]:
    """Return median, standard deviation and least of the seconds, and n.

    Args:
        seconds: Of each timed run.
        parts: Steps in one run; the figures are for a single step.
    """
    each = [s / parts for s in seconds]
    return {
        "median_seconds": statistics.median(each),
        "sd_seconds": statistics.stdev(each) if len(each) > 1 else 0.0,
        "least_seconds": min(each),
        "n": len(each),
    }


def rows(
    what: str,
    times: Mapping[str, Mapping[str, float]],
    images: int | None = None,
    reference: str | None = None,
) -> list[Row]:
    """Make the rows of one comparison.

    Args:
        what: Its title.
        times: `summary` of every case, by name.
        images: Images of one run, for images per second.
        reference: The case whose median the ratios divide by the case's own: above 1 is faster than it.
    """
    made = []
    for case, figures in times.items():
        row: Row = {"what": what, "case": case, **figures}
        if images is not None:
            row["images_per_second"] = images / figures["median_seconds"]
        if reference is not None:
            row["ratio"] = times[reference]["median_seconds"] / figures["median_seconds"]
            row["ratio_is"] = f"times as fast as {reference}"
        made.append(row)
    return made
