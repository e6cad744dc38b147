"""One job of a sweep: a process that runs the single-run command line in a directory of its own.

`python -m alexnet_exp.sweeps.job PARENT_PID ARGUMENTS...` is that process.
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_exp.config.overrides import typed
from alexnet_exp.errors import UserError, shell_command
from alexnet_exp.files import write_atomically
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_reader import Run

PROGRAM = [sys.executable, "-m", "alexnet_exp.sweeps.job"]
OUTPUT = "output.log"  # what a job printed
_TAIL = 20_000  # characters of it that are looked at
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"


class JobFailed(UserError):
    """What Hydra is told of a job that did not finish: its directory, and why."""


@dataclass
class Job:
    """A job and what has become of it.

    Args:
        number: Position in the sweep.
        overrides: What it sets, the settings that all jobs share included.
        directory: Its run directory.
        flags: Hydra's flags of the sweep that hold for the job too: --config-dir DIR.
    """

    number: int
    overrides: list[str]
    directory: Path
    flags: list[str] = field(default_factory=list)
    state: str = WAITING
    why: str = ""  # it failed
    tries: int = 0
    process: subprocess.Popen[bytes] | None = None
    devices: tuple[str, ...] | None = None  # the GPUs it holds
    started: float = 0.0
    old_result: int | None = None  # when the result was written that an earlier start has left, in ns

    @property
    def arguments(self) -> list[str]:
        """What `train` takes: a job that has begun goes on from its last checkpoint."""
        begun = (self.directory / "config.yaml").exists()
        return [*self.flags, *self.overrides, f"{'resume' if begun else 'hydra.run.dir'}={self.directory}"]

    @property
    def command(self) -> str:
        """What a person would type."""
        return shell_command(["alexnet-exp", "train", *map(typed, self.arguments)])

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process; what it prints goes to output.log. One that an earlier sweep left here is ended first."""
        self.directory.mkdir(parents=True, exist_ok=True)
        end_orphan(self.directory)
        self.note_result()
        self.tries, self.started = self.tries + 1, time.time()
        with open(self.directory / OUTPUT, "ab") as output:
            self.process = subprocess.Popen(
                [*PROGRAM, str(os.getpid()), *self.arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its jobs
            )
        self.state = RUNNING  # from here on there is a process to end, whatever comes
        remember(self.directory, self.process.pid)

    def poll(self) -> bool:
        """Look whether the process has ended, and note how."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        forget(self.directory)
        if code == 0 and (self.result() or {}).get("status") == "finished":
            self.state = FINISHED
        else:
            self.state, self.why = FAILED, self._reason(code)
        return True

    def result(self) -> dict[str, Any] | None:
        """Read its result.json; None without a whole one."""
        return Run(self.directory).result or None

    def note_result(self) -> None:
        """Remember the result that is there ahead of a start: it says nothing of how that one ends."""
        self.old_result = self._result_written()

    def error(self) -> str | None:
        """Return what its result.json says went wrong, without secrets, if this start has written it."""
        if self._result_written() == self.old_result:
            return None
        error = (self.result() or {}).get("error")
        return None if error is None else redact(str(error))

    def _result_written(self) -> int | None:
        try:
            return (self.directory / "result.json").stat().st_mtime_ns
        except OSError:
            return None

    def max_epochs(self) -> int | None:
        """Return how many epochs it trains, once its settings are written and say so."""
        epochs = Run(self.directory).config.get("trainer.max_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else None

    def killed(self) -> bool:
        """Whether something outside ended it: no fault of the settings or the code."""
        return self.process is not None and (self.process.returncode or 0) < 0

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        if error := self.error():
            return error
        lines = self.last_lines(1)
        return lines[0] if lines else f"exit code {code}"

    def last_lines(self, count: int) -> list[str]:
        """Return the end of what it printed, without secrets."""
        try:
            text = (self.directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        # Ahead of the cut into lines: a private key has many.
        return [line for line in redact(text[-_TAIL:]).splitlines() if line.strip()][-count:]

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is still there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End the process and all that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            forget(self.directory)


def main() -> int:
    from alexnet_exp.training.launch.ranks import die_with_parent

    # Ahead of all that takes time. Once the run listens, SIGTERM saves the last step; ignored, it would end nothing.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    from alexnet_exp.cli import main as command_line

    return command_line(["train", *sys.argv[2:]])


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


if __name__ == "__main__":
    sys.exit(main())
