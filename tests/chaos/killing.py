"""Training in a subprocess, and when to kill it."""

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
PATIENCE_SECONDS = 600  # a run that takes longer is stuck


@dataclass(frozen=True)
class Kill:
    """When to kill a process.

    Args:
        kind: 'clock' (`seconds` after its start), 'step' (`seconds` after `step`) or 'save' (with half a checkpoint on
            disk, at the first save after `step`).
        seconds: See `kind`.
        step: Minimum number of optimizer steps before the kill.
    """

    kind: str
    seconds: float = 0.0
    step: int = 0

    def __str__(self) -> str:
        where = {"clock": f"{self.seconds:.2f} s after start", "save": f"in a save after step {self.step}"}
        return where.get(self.kind, f"{self.seconds * 1000:.0f} ms after step {self.step}")


@contextmanager
def training(run_dir: Path, settings: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start or resume a run; its output is appended to output.txt next to the run directory.

    Args:
        run_dir: If it holds a run, only `resume=` is passed; otherwise also `settings`.
        settings: Overrides.
    """
    again = [] if (run_dir / "config.yaml").exists() else settings
    command = [sys.executable, str(ROOT / "train.py"), *again, f"resume={run_dir}"]
    # One thread each: their number affects the order of summation, and several runs share the cores.
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
    """Start or resume a run and let it finish; return the seconds it took.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    with training(run_dir, settings) as process:
        if process.wait(PATIENCE_SECONDS):
            raise RuntimeError(f"exit code {process.returncode}; see {run_dir.parent / 'output.txt'}")
    return time.perf_counter() - started


def killed(run_dir: Path, settings: list[str], kill: Kill) -> bool:
    """Start or resume a run and kill it; return False if it ended first."""
    with training(run_dir, settings) as process:
        if kill.kind == "clock":
            return not _ends_within(process, kill.seconds)
        if not _wait_for_step(process, run_dir, kill.step):
            return False
        if kill.kind == "save":
            return _stop_during_save(process, run_dir / "checkpoints")
        return not _ends_within(process, kill.seconds)


def last_step(run_dir: Path) -> int:
    """Return the step of the last row of metrics.csv, or -1 if there is none."""
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
    begun = time.time()  # the process truncates or rewrites rows of earlier parts of the run
    while process.poll() is None and time.monotonic() < deadline:
        file = run_dir / "metrics.csv"
        if file.exists() and file.stat().st_mtime > begun and last_step(run_dir) >= step:
            return True
        time.sleep(0.01)
    return False


def _stop_during_save(process: subprocess.Popen[bytes], checkpoints: Path) -> bool:
    """Stop the process when it starts writing a checkpoint; return True if it is stopped halfway."""
    while process.poll() is None:
        if any(checkpoints.glob(".last.ckpt.*.tmp")):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)  # until it has stopped
            if any(checkpoints.glob(".last.ckpt.*.tmp")):
                return True  # the caller kills it there
            process.send_signal(signal.SIGCONT)
        time.sleep(POLL_SECONDS)
    return False
