"""A training as a process of its own, and the moments at which it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 600  # a run that takes longer hangs


@dataclass(frozen=True)
class Kill:
    """When to kill a process.

    Args:
        kind: 'clock' (so many seconds after its start), 'step' (so many seconds after a step) or 'save' (with half a
            checkpoint on disk, at the first save after a step).
        seconds: See `kind`.
        step: Optimizer steps taken, at least.
    """

    kind: str
    seconds: float = 0.0
    step: int = 0

    def __str__(self) -> str:
        where = {"clock": f"{self.seconds:.2f} s after start", "save": f"in a save after step {self.step}"}
        return where.get(self.kind, f"{self.seconds * 1000:.0f} ms after step {self.step}")


@contextmanager
def training(run_dir: Path, settings: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start or continue a run in a directory; what it prints is added to output.txt beside it.

    Args:
        run_dir: Continued with `resume=` alone where it holds a run; else `settings` say what to train.
        settings: Overrides.
    """
    again = [] if (run_dir / "config.yaml").exists() else settings
    command = [sys.executable, str(ROOT / "train.py"), *again, f"resume={run_dir}"]
    # One thread each: how many there are decides the order of sums, and several runs share the cores.
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**own, "OMP_NUM_THREADS": "1"}
    with open(run_dir.parent / "output.txt", "ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def finish(run_dir: Path, settings: list[str]) -> float:
    """Let a run go to its end; return how many seconds that took.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    with training(run_dir, settings) as process:
        if process.wait(PATIENCE_SECONDS):
            raise RuntimeError(f"exit code {process.returncode}; see {run_dir.parent / 'output.txt'}")
    return time.perf_counter() - started


def killed(run_dir: Path, settings: list[str], kill: Kill) -> bool:
    """Start or continue a run and kill it; return False if it ended before its moment came."""
    with training(run_dir, settings) as process:
        if kill.kind == "clock":
            return not _ends_within(process, kill.seconds)
        if not _wait_for_step(process, run_dir, kill.step):
            return False
        if kill.kind == "save":
            return _stop_in_a_save(process, run_dir / "checkpoints")
        return not _ends_within(process, kill.seconds)


def last_step(run_dir: Path) -> int:
    """Return the step of the last row of metrics.csv, -1 without one."""
    try:
        text = (run_dir / "metrics.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return -1
    header, *rows = text[: text.rfind("\n")].split("\n")
    return int(rows[-1].split(",")[header.split(",").index("step")]) if rows else -1


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait_for_step(process: subprocess.Popen[bytes], run_dir: Path, step: int) -> bool:
    """Wait until a step is in metrics.csv; return False if the process ended first."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    begun = time.time()  # rows of an earlier part of the run are cut or rewritten by the process itself
    while process.poll() is None and time.monotonic() < deadline:
        file = run_dir / "metrics.csv"
        if file.exists() and file.stat().st_mtime > begun and last_step(run_dir) >= step:
            return True
        time.sleep(0.01)
    return False


def _stop_in_a_save(process: subprocess.Popen[bytes], checkpoints: Path) -> bool:
    """Hold the process when it begins to write a checkpoint; kill it if it had not come to the end of that."""
    while process.poll() is None:
        if any(checkpoints.glob(".last.ckpt.*.tmp")):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)  # until it stands still
            if any(checkpoints.glob(".last.ckpt.*.tmp")):
                return True  # killed where it stands
            process.send_signal(signal.SIGCONT)
        time.sleep(POLL_SECONDS)
    return False
