"""The number of cores that this process may use: its CPU affinity, limited by the CPU quota of its container.

Docker's `--cpus`, Kubernetes' limits and systemd's CPUQuota leave all cores visible, but throttle a process that has
used up its quota until the next period. Threads that wait for each other suffer most: 16 threads with a quota of 2
are stopped for seven eighths of the time. Imports neither torch nor anything else of this package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # folders of the cpu controller in version 1, below sys/fs/cgroup
_V2 = ("", "unified")
_THREADS = "OMP_NUM_THREADS"
_limited = False  # whether `limit_threads` has set it


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1.

    Args:
        root: Root of the file system with proc and sys/fs/cgroup.
    """
    # Rounded down: a single thread too many makes all others wait for it.
    return max(1, min([_visible_cores(), *map(int, _quotas(root))]))


def limit_threads() -> None:
    """Limit torch's threads to the quota; call before torch is imported.

    Respects the user's OMP_NUM_THREADS, and does nothing without a quota.
    """
    global _limited
    cores = available_cores()
    if cores == _visible_cores() or threads_are_typed():
        return
    os.environ[_THREADS], _limited = str(cores), True
    if "torch" in sys.modules:  # torch reads the variable only on import
        sys.modules["torch"].set_num_threads(min(cores, sys.modules["torch"].get_num_threads()))


def threads_are_typed() -> bool:
    """Return whether the user has set the number of threads."""
    return _THREADS in os.environ and not _limited


def environment() -> dict[str, str]:
    """Return the environment for a child process, without our limit: it sets its own."""
    return {name: value for name, value in os.environ.items() if name != _THREADS or not _limited}


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas in cores of this process's control groups and of all their ancestors."""
    for path in _groups(root, version=2):
        yield from _quota(path / "cpu.max")
    for path in _groups(root, version=1):
        yield from _quota(path / "cpu.cfs_quota_us", path / "cpu.cfs_period_us")


def _groups(root: Path, version: int) -> Iterator[Path]:
    """Yield the folders that may describe a control group of this process.

    A container sees its own group at the root, but may report the host's path for it: the parents of a path therefore
    count even if the path does not exist.
    """
    group = _group(root, version)
    for place in _V2 if version == 2 else _V1:
        for path in (group, *group.parents):
            yield root / "sys/fs/cgroup" / place / path.relative_to("/")


def _group(root: Path, version: int) -> PurePosixPath:
    """Return the path of this process's group, or the root if it is unknown or outside the container."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        # "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        found = (number, controllers) == ("0", "") if version == 2 else "cpu" in controllers.split(",")
        if found and path.startswith("/") and ".." not in path.split("/"):
            return PurePosixPath("/" + path.strip("/"))
    return PurePosixPath("/")


def _quota(*files: Path) -> Iterator[float]:
    """Yield quota / period as read from the files; nothing without a limit or if they cannot be read."""
    try:
        # cpu.max holds both numbers; version 1 has a file for each.
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # "max"
        return
    if quota > 0 and period > 0:
        yield quota / period
