"""How many cores this process may use: those it may run on, and no more than the CPU quota of its container.

Docker's `--cpus`, Kubernetes' limits and systemd's CPUQuota leave all cores visible, and stop a process that has used
up its share until the next period begins. Threads that wait for one another suffer most: 16 of them in a quota of 2
spend seven eighths of the time stopped. Imports neither torch nor anything else of this package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # where version 1 has its cpu controller, below sys/fs/cgroup
_V2 = ("", "unified")
_THREADS = "OMP_NUM_THREADS"
_limited = False  # whether `limit_threads` has set it


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1.

    Args:
        root: Of the file system whose proc and sys/fs/cgroup name the quota.
    """
    cores = _visible_cores()
    # Rounded down: one thread more than the quota has room for makes all of them wait for it.
    return max(1, min([cores, *map(int, _quotas(root))]))


def limit_threads() -> None:
    """Have torch start no more threads than the quota has room for; call before torch is imported.

    The user's own OMP_NUM_THREADS stays. Without a quota torch chooses.
    """
    global _limited
    cores = available_cores()
    if cores == _visible_cores() or threads_are_typed():
        return
    os.environ[_THREADS], _limited = str(cores), True
    if "torch" in sys.modules:  # which has read its environment
        sys.modules["torch"].set_num_threads(min(cores, sys.modules["torch"].get_num_threads()))


def threads_are_typed() -> bool:
    """Return whether the user has chosen the number of threads."""
    return _THREADS in os.environ and not _limited


def environment() -> dict[str, str]:
    """Return the environment for another process of ours, which limits its threads itself."""
    return {name: value for name, value in os.environ.items() if name != _THREADS or not _limited}


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield, in cores, the quotas of this process's control groups and of all groups that contain them."""
    for path in _groups(root, version=2):
        yield from _quota(path / "cpu.max")
    for path in _groups(root, version=1):
        yield from _quota(path / "cpu.cfs_quota_us", path / "cpu.cfs_period_us")


def _groups(root: Path, version: int) -> Iterator[Path]:
    """Yield the folders that may describe a group of this process.

    A container sees its own group where the first of all would be, and may be given the path that the host has for
    it: so the folders above a path count even where the path does not exist.
    """
    group = _group(root, version)
    for place in _V2 if version == 2 else _V1:
        for path in (group, *group.parents):
            yield root / "sys/fs/cgroup" / place / path.relative_to("/")


def _group(root: Path, version: int) -> PurePosixPath:
    """Return the path of this process's group; the first of all where it is not known or outside the container."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        found = (number, controllers) == ("0", "") if version == 2 else "cpu" in controllers.split(",")
        if found and path.startswith("/") and ".." not in path.split("/"):
            return PurePosixPath("/" + path.strip("/"))
    return PurePosixPath("/")


def _quota(*files: Path) -> Iterator[float]:
    """Yield what files with a quota and its period allow; nothing where there is no limit, or none that is readable."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # "max"
        return
    if quota > 0 and period > 0:
        yield quota / period
