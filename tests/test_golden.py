"""The first 20 losses of three experiments on the processor: a change that moves numbers is seen.

The stored values (golden_losses.json) are from one thread, float32, no compiler. `python -m tests.test_golden` writes
them anew, where numbers were meant to move.

Tolerance: processors sum in different orders, which changes a float32 loss by some 1e-7 of itself, and every step
starts from what the last one left. How fast that grows depends on the recipe. TOLERANCE has ten times and more of what
two threads, or the instructions of AVX2 or SSE4 instead of AVX-512, were measured to change (2.1e-7, 5.1e-5 and 2.1e-5
of the loss, torch 2.15.0). A change of the recipe makes more (`test_a_small_change_of_the_recipe_is_seen`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.runs.train.command import train
from alexnet_exp.tracking.run_reader import read_metrics

STORED = Path(__file__).with_name("golden_losses.json")
STEPS = 20
EXPERIMENTS: dict[str, list[str]] = {
    "alexnet_cifar": [],  # SGD, crops and mirror images
    # Batch normalisation, label smoothing, a learning-rate cycle. At its own rate of 0.1, and with the cycle squeezed
    # into 20 steps, differences of 1e-7 grow to 1e-2: nothing could be told apart.
    "cifar10_fast_cpu": ["optimizer.lr=0.001"],
    "convnet_18pct": [],  # cuda-convnet's norm, and its rates and decays for single layers
}
TOLERANCE = {"alexnet_cifar": 1e-5, "cifar10_fast_cpu": 1e-3, "convnet_18pct": 3e-4}  # of the loss
# The data is what every machine has: the digits, under the experiments' own settings.
SETTINGS = [
    "data=digits", "data.batch_size=32", "data.val_size=100", "trainer=cpu", f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "compile=false",
    "channels_last=false", "logger=csv", "test=false", "callbacks.checkpoint.enabled=false",
    "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false", "trainer.limit_val_batches=0",
]  # fmt: skip


def losses(experiment: str, run_dir: Path, *overrides: str) -> list[float]:
    """Return the losses of an experiment's first steps."""
    typed = [f"experiment={experiment}", *SETTINGS, *EXPERIMENTS[experiment], *overrides]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(plain(compose("train", typed)), typed, run_dir, "python train.py")
    finally:
        torch.set_num_threads(threads)
    return [
        row["train/loss_step"] for row in read_metrics(run_dir / "metrics.csv") if "train/loss_step" in row
    ]


def furthest(found: list[float], stored: list[float]) -> float:
    """Return the greatest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, stored, strict=True))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_first_losses_are_those_stored(experiment: str, tmp_path: Path) -> None:
    found, stored = losses(experiment, tmp_path), json.loads(STORED.read_text())[experiment]
    assert len(found) == STEPS
    assert furthest(found[:1], stored[:1]) < 1e-5  # nothing has been added up yet
    assert furthest(found, stored) < TOLERANCE[experiment], list(zip(found, stored, strict=True))


@pytest.mark.parametrize("change", ["optimizer.lr=0.0101", "augment.pad=3", "optimizer.momentum=0.91"])
def test_a_small_change_of_the_recipe_is_seen(change: str, tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text())["alexnet_cifar"]
    assert furthest(losses("alexnet_cifar", tmp_path, change), stored) > TOLERANCE["alexnet_cifar"]


def write() -> None:
    """Store the losses that this machine finds."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: losses(name, Path(folder) / name) for name in EXPERIMENTS}
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write()
