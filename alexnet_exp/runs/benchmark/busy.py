"""CPU load by other processes during a measurement (Linux)."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LEAST = 0.1  # cores; an idle desktop uses less
_OTHERS_TIME = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal


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
