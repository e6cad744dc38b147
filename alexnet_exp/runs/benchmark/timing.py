"""Robust timing: cases alternate, so that all see the same machine, medians are reported, and other work is noticed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]  # a measured case; see `rows`
_LEAST = 0.1  # cores; an idle desktop uses less
_OTHERS_TIME = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal


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


class OtherWork:
    """Context manager that measures the CPU time of processes that this one did not start.

    Args:
        proc: The proc file system; if it does not exist, no other work is reported.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.proc = proc
        self.cores = 0.0  # kept busy by other processes, on average

    def disturbs(self, threads: int) -> bool:
        """Return whether this many threads and the other work need more cores than the machine has."""
        return self.cores > _LEAST and self.cores + threads > self.num_cores

    @property
    def num_cores(self) -> int:
        return os.cpu_count() or 1

    def __enter__(self) -> OtherWork:
        self._start, self._before = time.monotonic(), self._others()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.monotonic() - self._start
        # The kernel counts in hundredths of a second: too coarse for less than a second.
        self.cores = max(0.0, self._others() - self._before) / seconds if seconds >= 1 else 0.0

    def _others(self) -> float:
        """Return the busy seconds of all cores since boot, without those of this process and its descendants."""
        try:
            words = (self.proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return 0.0
        busy = sum(int(words[i]) for i in _OTHERS_TIME)
        return (busy - _ticks_of_tree(self.proc, os.getpid())) / os.sysconf("SC_CLK_TCK")


def _ticks_of_tree(proc: Path, root: int) -> int:
    """Return the CPU time of a process and its descendants, including those that have ended.

    Source: proc_pid_stat(5)
    """
    ticks, parents = {}, {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The process name, in parentheses, may contain anything.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        pid = int(path.parent.name)
        # Columns utime, stime, cutime and cstime.
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))

    def is_below(pid: int) -> bool:
        while pid and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return sum(spent for pid, spent in ticks.items() if is_below(pid))
