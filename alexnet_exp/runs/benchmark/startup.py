"""Time from starting a command to its result, each time in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark.subject import Subject
from alexnet_exp.runs.benchmark.timing import Row, alternate, rows, summary

_CLI = [sys.executable, "-m", "alexnet_exp.cli", "train"]
_LIMIT = 300  # seconds


class FirstStep(Callback):
    """Record when the first training step ends, and stop the run.

    Args:
        path: File to write.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        Path(self.path).write_text(str(time.time()))
        trainer.should_stop = True


def measure_startup(subject: Subject) -> list[Row]:
    """Time help, tab completion, imports, and the first training step of the run, in alternation.

    Returns:
        One row each; Python alone, and the import of torch and Lightning, serve as references. The first step is
        skipped if the run's images are missing.
    """
    quick = {
        "python": [sys.executable, "-c", "pass"],
        "import alexnet_exp": [sys.executable, "-c", "import alexnet_exp"],
        "train --help": [*_CLI, "--help"],
        "tab completion": [*_CLI, "-sc", "query=bash"],
        "import torch, lightning": [sys.executable, "-c", "import torch, lightning"],
    }
    times = alternate({k: partial(_run, v) for k, v in quick.items()}, subject.repeats, "cpu", warmup=1)
    if subject.has_images():
        first = [_first_step(subject) for _ in range(subject.repeats + 1)]  # the first fills the caches
        times["first step of train"] = summary(first[1:])
    else:
        subject.notes.append("The first step of train is not timed, because the run's images were not found.")
    return rows("start-up", times)


def _first_step(subject: Subject) -> float:
    """Return the seconds from starting a run to the end of its first step."""
    mark = subject.scratch / "first_step"
    callback = f"{FirstStep.__module__}.{FirstStep.__name__}"
    arguments = [
        *subject.overrides,
        f"+callbacks.first_step={{_target_: {callback}, path: '{mark}'}}",
        f"trainer.accelerator={'gpu' if subject.device == 'cuda' else 'cpu'}",
        "trainer.devices=1",
        f"paths.cache_dir={subject.scratch / 'cache'}",
        "trainer.limit_val_batches=1",
        "test=false",
        f"hydra.run.dir={subject.scratch / f'run_{time.monotonic_ns()}'}",
    ]
    start = time.time()  # not perf_counter: the callback reads the clock in another process
    _run([*_CLI, *arguments])
    return float(mark.read_text()) - start


def _run(command: list[str]) -> None:
    # The variables that bash sets for a completion script; the other commands ignore them.
    completion = {"COMP_LINE": "train.py model=alexnet_", "COMP_POINT": "23"}
    environment = {**os.environ, **completion, "WANDB_MODE": "offline"}
    # In the current directory, not in the scratch folder, since paths in the settings may be relative.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise UserError(f"{' '.join(command)} failed with exit code {done.returncode}: {lines[-1]}")
