"""The process that writes into a job's directory, as a later sweep finds it.

A process's number is used again; with the time that it started, it is one of its kind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from alexnet_exp.tracking.run_directory import write_atomically

FILE_NAME = ".process.json"
_SAVE_SECONDS = 30.0  # for a process that nobody waits for to save its last step
_POLL_SECONDS = 0.05

Identity = list[str]  # place, number, start


def identity(pid: int) -> Identity | None:
    """Return what tells a process from all others; None if it is not there."""
    started = _started(pid)
    return None if started is None else [_place(), str(pid), started]


def is_gone(process: Identity) -> bool | None:
    """Return whether a process has ended; None for one of another machine, of which nothing is known here."""
    place, pid, started = process
    return None if place != _place() else _started(int(pid)) != started


def remember(directory: Path, pid: int) -> None:
    """Write down that a process works in a directory."""
    if (process := identity(pid)) is not None:
        write_atomically(directory / FILE_NAME, json.dumps(process))


def forget(directory: Path) -> None:
    """Take the note away: the process has ended. One that cannot be taken away is found out by the next sweep."""
    with contextlib.suppress(OSError):
        (directory / FILE_NAME).unlink()


def end_orphan(directory: Path, seconds: float = _SAVE_SECONDS) -> bool:
    """End a process that a killed sweep has left working in a directory: no two may write there.

    It may save its last step first, so that nothing is trained twice.

    Args:
        directory: Of a job.
        seconds: How long it may take to save.

    Returns:
        Whether there was one.
    """
    try:
        process = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    found = is_gone(process) is False
    if found:
        pid = int(process[1])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if not _ends(process, seconds):
                os.killpg(pid, signal.SIGKILL)  # jobs lead a group of their own
                _ends(process, seconds)
    forget(directory)
    return found


def _ends(process: Identity, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_gone(process) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return bool(is_gone(process))


def _place() -> str:
    """Name what numbers processes: a machine, or a container, which may have the machine's name."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when a process started, in the system's own words; None if it has ended."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]  # ended, but its parent has not asked yet
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None
