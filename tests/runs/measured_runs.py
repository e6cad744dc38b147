"""Small runs for the benchmark to measure, one with a worker process, and a check whether workers are paused."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alexnet_exp.runs.benchmark.subject import Subject
from tests.data.makers import write_folder

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells what a process does.")


def subject(folder: Path, *overrides: str) -> Subject:
    settings = ["model=alexnet_cifar", "data=digits", "logger=none", *overrides]
    options: Any = SimpleNamespace(repeats=2, steps=3)
    return Subject(options, settings, "cpu", folder, further={"workers": 1})


def photographs(folder: Path) -> list[str]:
    """Return the settings of a run that decodes small JPEG files with one worker process."""
    write_folder(folder / "images", {f"{split}/{c}": 20 for split in ("train", "val") for c in "ab"})
    root = f"data.root={folder / 'images'}"
    return ["data=folder", root, "data.cache=off", "data.num_workers=1", "data.batch_size=8"]


def working() -> list[bool]:
    """Return for each worker whether it is not stopped; wait a moment for a SIGSTOP to take effect."""
    for _ in range(100):
        states = [
            Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
            for child in multiprocessing.active_children()
        ]
        if set(states) <= {"T"}:
            break
        time.sleep(0.01)
    return [state != "T" for state in states]
