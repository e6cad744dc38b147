"""One job of a sweep: a process that runs the command line of a single run in its own directory.

The process is `python -m alexnet_exp.sweeps.job PARENT_PID ARGUMENTS...`.
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
OUTPUT = "output.log"  # stdout and stderr of a job
_TAIL = 20_000  # characters read from its end
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"


class JobFailed(UserError):
    """The error of a job that did not finish, for Hydra: its directory, and the reason."""


@dataclass
class Job:
    """A job and its state.

    Args:
        number: Position in the sweep.
        overrides: All of its overrides, including those that the jobs share.
        directory: Its run directory.
        flags: Hydra's flags of the sweep that also apply to the job: --config-dir DIR.
    """

    number: int
    overrides: list[str]
    directory: Path
    flags: list[str] = field(default_factory=list)
    state: str = WAITING
    why: str = ""  # of a failed job
    tries: int = 0
    process: subprocess.Popen[bytes] | None = None
    devices: tuple[str, ...] | None = None  # its GPUs
    started: float = 0.0
    old_result: int | None = None  # mtime in ns of a result.json left by an earlier start

    @property
    def arguments(self) -> list[str]:
        """The arguments of `train`: a job that has already started resumes from its last checkpoint."""
        begun = (self.directory / "config.yaml").exists()
        return [*self.flags, *self.overrides, f"{'resume' if begun else 'hydra.run.dir'}={self.directory}"]

    @property
    def command(self) -> str:
        """The equivalent command line."""
        return shell_command(["alexnet-exp", "train", *map(typed, self.arguments)])

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process, after ending any process that an earlier sweep left in the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        end_orphan(self.directory)
        self.note_result()
        self.tries, self.started = self.tries + 1, time.time()
        with open(self.directory / OUTPUT, "ab") as output:  # after the output of earlier tries
            self.process = subprocess.Popen(
                [*PROGRAM, str(os.getpid()), *self.arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its jobs
            )
        self.state = RUNNING  # first: if the next line raises, the pool must still kill the process
        remember(self.directory, self.process.pid)

    def poll(self) -> bool:
        """Return whether the process has ended, and set the state if so."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        forget(self.directory)
        # The exit code alone does not say that result.json was written, and that is what a resumed sweep goes by.
        if code == 0 and (self.result() or {}).get("status") == "finished":
            self.state = FINISHED
        else:
            self.state, self.why = FAILED, self._reason(code)
        return True

    def result(self) -> dict[str, Any] | None:
        """Read its result.json; None if it is missing or damaged."""
        return Run(self.directory).result or None

    def note_result(self) -> None:
        """Remember the result.json of an earlier start, which must not be taken for that of the next one."""
        self.old_result = self._result_written()

    def error(self) -> str | None:
        """Return the error in result.json, without secrets, if this start wrote it."""
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
        """Return trainer.max_epochs, once the job has written its config."""
        epochs = Run(self.directory).config.get("trainer.max_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else None

    def killed(self) -> bool:
        """Return whether a signal ended it (out of memory, preempted): not a fault of the settings or the code."""
        return self.process is not None and (self.process.returncode or 0) < 0

    def _reason(self, code: int) -> str:
        if code < 0:
            with contextlib.suppress(ValueError):  # most real-time signals have no name
                return f"killed by {signal.Signals(-code).name}"
            return f"killed by signal {-code}"
        if error := self.error():
            return error
        lines = self.last_lines(1)
        return lines[0] if lines else f"exit code {code}"

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines it printed, without secrets."""
        try:
            text = (self.directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        # Redact before splitting into lines: a private key has many.
        return [line for line in redact(text[-_TAIL:]).splitlines() if line.strip()][-count:]

    def signal(self, number: int) -> None:
        """Send a signal to the process if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.process is not None and self.process.poll() is None:
            # The whole group: SIGKILL leaves a job no time to end its own ranks and workers.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            forget(self.directory)


def main() -> int:
    from alexnet_exp.training.launch.ranks import die_with_parent

    # Before the slow imports: a parent that ignores SIGTERM passes that on, and nothing could stop this process until
    # the run installs its own handler, which saves the last step.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    from alexnet_exp.cli import main as command_line

    return command_line(["train", *sys.argv[2:]])


FILE_NAME = ".process.json"
_SAVE_SECONDS = 30.0  # for an orphan to save its last step
_POLL_SECONDS = 0.05

Identity = list[str]  # PID namespace, PID, start time: PIDs are reused


def identity(pid: int) -> Identity | None:
    """Return what identifies a process; None if it does not exist."""
    started = _started(pid)
    return None if started is None else [_place(), str(pid), started]


def is_gone(process: Identity) -> bool | None:
    """Return whether a process has ended; None if it is on another machine, where we cannot look."""
    place, pid, started = process
    return None if place != _place() else _started(int(pid)) != started


def remember(directory: Path, pid: int) -> None:
    """Record the process that writes to a directory."""
    if (process := identity(pid)) is not None:
        write_atomically(directory / FILE_NAME, json.dumps(process))


def forget(directory: Path) -> None:
    """Remove the record of a process that ended; if that fails, the next sweep finds the process gone."""
    with contextlib.suppress(OSError):
        (directory / FILE_NAME).unlink()


def end_orphan(directory: Path, seconds: float = _SAVE_SECONDS) -> bool:
    """End a process that a killed sweep left running: two must not write to one directory.

    It gets time to save its last step, so that nothing is trained twice.

    Args:
        directory: The directory of a job.
        seconds: Time to save before it is killed.

    Returns:
        Whether there was one.
    """
    try:
        process = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    gone = is_gone(process)
    if gone is None:
        return False  # on another machine: its record stays, and its lock on the run directory protects it
    if not gone:
        pid = int(process[1])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            if not _ends(process, seconds):
                os.killpg(pid, signal.SIGKILL)  # a job leads its own process group
                _ends(process, seconds)
    forget(directory)
    return not gone


def _ends(process: Identity, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_gone(process) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return bool(is_gone(process))


def _place() -> str:
    """Identify the PID namespace: a host, or a container, which may have the host's name."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return the start time of a process, in the system's own format; None if it has ended."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]  # a zombie: ended, but not reaped by its parent
    # macOS and BSD have no /proc.
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
