"""Two small trained networks whose outputs differ between images, views and networks, and their data set."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.runs.train.command import train
from tests.data.makers import Arrays, write_cifar10
from tests.training.small_runs import settings

TINY = [
    "model=alexnet_tf_cifar",
    "model.features.conv1.out_channels=4",
    "model.features.conv2.out_channels=4",
    "model.classifier.fc8.weight_std=0.2",  # images and views differ
    "data=cifar10",
    "data.batch_size=16",
    "data.val_size=30",
    "data.mean=[0,0,0]",
    "data.std=[0.00392156862745098,0.00392156862745098,0.00392156862745098]",
    "augment=paper",
    "augment.mean_image=centre",
    "optimizer.lr=0.00001",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
    "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false",
]  # images stored at 32 pixels, an input of 24


def make_runs(folder: Path, seeds: int = 2, *overrides: str) -> tuple[Arrays, list[dict[str, Any]]]:
    """Write data to folder/data and runs to folder/run0, folder/run1; return images and results."""
    arrays = write_cifar10(folder / "data", per_batch=20)
    results = []
    for seed in range(seeds):
        config, typed = settings(f"paths.data_dir={folder / 'data'}", f"seed={seed}", *overrides, base=TINY)
        results.append(train(config, typed, folder / f"run{seed}", "python train.py"))
    return arrays, results


def alexnet_exp(*arguments: object) -> int:
    """Run a verb."""
    return main([str(argument) for argument in arguments])


def evaluated(out: Path, *arguments: object) -> dict[str, Any]:
    """Evaluate into `out`, on CPU, and return result.json."""
    assert alexnet_exp("evaluate", *arguments, "device=cpu", f"hydra.run.dir={out}") == 0
    return json.loads((out / "result.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """Evaluate with invalid arguments; check that nothing is written, and return the one-line error."""
    capsys.readouterr()
    assert alexnet_exp("evaluate", *arguments, "device=cpu", f"hydra.run.dir={out}") == 1
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
