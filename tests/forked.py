"""Run a function in a forked process that can be killed, without waiting for imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Forked:
    """A fork of this process, in its own session, with its output in a file.

    Args:
        function: Called in the fork; the int or None that it returns is the exit code.
        arguments: Arguments of the function.
        output: File for stdout and stderr.
    """

    def __init__(self, function: Callable[..., int | None], *arguments: Any, output: Path) -> None:
        self.output = output
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self._run, args=(function, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, which are idle here
            self.process.start()

    def _run(self, function: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
        os.setsid()
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest has replaced these with its own.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        warnings.simplefilter("default")  # as in a user's run, where warnings are not errors
        torch.set_num_threads(1)
        sys.exit(function(*arguments) or 0)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for the process to make a condition true.

        Raises:
            AssertionError: The process ended first, or took too long.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < deadline, self.printed()
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """Return the exit code; negative if a signal ended the process."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"it hangs: {self.printed()}")
        return self.process.exitcode

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def survivors(self, seconds: float) -> list[int]:
        """Wait up to `seconds` for all processes of the session to end; return those still alive."""
        deadline = time.monotonic() + seconds
        while (alive := _session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive


def _session(leader: int) -> list[int]:
    """Return the live processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        state, session = after_name[0], int(after_name[3])
        if session == leader and state != "Z":
            found.append(int(entry.name))
    return found
