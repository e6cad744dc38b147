"""Robust timing: cases alternate, so that all see the same machine, and medians are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Row = dict[str, Any]  # a measured case; see `rows`


def alternate(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: str, warmup: int = 2, parts: int = 1
) -> dict[str, dict[str, float]]:
    """Time several cases in alternation.

    Args:
        cases: Functions to time, by name.
        repeats: Timed runs per case.
        device: 'cpu' or 'cuda', which is synchronised after each run.
        warmup: Untimed runs per case.
        parts: Steps per run; results are per step.

    Returns:
        `summary` of each case.
    """
    wait = waiting(device)
    for run in cases.values():
        for _ in range(warmup):
            run()
    wait()  # or the first timed run would include the rest of the warm-up
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: summary(times, parts) for name, times in seconds.items()}


def waiting(device: str) -> Callable[[], None]:
    """Return the function that synchronises the device."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def summary(seconds: list[float], parts: int = 1) -> dict[str, float]:
    """Return median, standard deviation and minimum in seconds, and n.

    Args:
        seconds: Duration of each run.
        parts: Steps per run; results are per step.
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
    """Return the rows of a comparison.

    Args:
        what: Title of the comparison.
        times: `summary` of every case, by name.
        images: Images per step, for images per second.
        reference: The case to compare with; `ratio` is its median over that of the case, so > 1 is faster.
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
