"""A function in a process of its own that can be killed, without the seconds that imports take."""

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
    """A fork of this process, in a session of its own, with what it prints in a file.

    Args:
        function: Run there; what it returns, a whole number or None, is the exit code.
        arguments: Given to it.
        output: The file.
    """

    def __init__(self, function: Callable[..., int | None], *arguments: Any, output: Path) -> None:
        self.output = output
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self._run, args=(function, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking beside threads, which only wait here
            self.process.start()

    def _run(self, function: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
        os.setsid()
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest has put files of its own in the place of these.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        warnings.simplefilter("default")  # a run of the user's, where a warning is no error
        torch.set_num_threads(1)
        sys.exit(function(*arguments) or 0)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something that the process brings about.

        Raises:
            AssertionError: It ended or hangs before that.
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
        """Return the exit code; negative for the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"it hangs: {self.printed()}")
        return self.process.exitcode

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def survivors(self, seconds: float) -> list[int]:
        """Return which processes of the session still live after so much time; asks until none does."""
        deadline = time.monotonic() + seconds
        while (alive := _session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive


def _session(leader: int) -> list[int]:
    """Return the live processes of a session, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
        state, session = after_name[0], int(after_name[3])
        if session == leader and state != "Z":
            found.append(int(entry.name))
    return found
