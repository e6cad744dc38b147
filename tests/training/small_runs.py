"""Runs that take a second: a narrow network, a few of the embedded digits, on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.runs.train.command import train
from alexnet_exp.runs.train.resume import resumed_arguments, resumed_settings
from alexnet_exp.tracking.run_reader import read_metrics

NARROW = [f"model.features.conv{i}.out_channels=8" for i in range(1, 6)]
SMALL = [
    "model=alexnet_cifar",
    *NARROW,
    "data=digits",
    "data.train_subset=200",
    "data.val_size=50",
    "data.test_subset=60",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
    "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false",
]  # 7 steps of 32 images an epoch
DROPOUT = ["model.features.conv3.then=[relu,dropout]", "model.dropout=0.5"]


def settings(*overrides: str, base: list[str] = SMALL) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a small run as the command line would compose them, and the overrides."""
    typed = [*base, *overrides]
    return plain(compose("train", typed)), typed


def run(run_dir: Path, *overrides: str, callbacks: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train in `run_dir` with the test's own `callbacks`, and return the content of result.json."""
    config, typed = settings(*overrides)
    config["callbacks"] |= callbacks or {}
    return train(config, typed, run_dir, "python train.py")


def resume(run_dir: Path, *overrides: str) -> dict[str, Any] | None:
    """Continue `run_dir` as `train.py resume=DIR ...` does; None if there was nothing to do."""
    settings_file = run_dir / "config.yaml"
    saved = yaml.safe_load(settings_file.read_text())
    saved["callbacks"] = {
        k: v for k, v in saved["callbacks"].items() if "_target_" not in v
    }  # without the test's own
    settings_file.write_text(yaml.safe_dump(saved))
    typed = resumed_arguments([f"resume={run_dir}", *overrides])
    resumed = resumed_settings(plain(compose("train", typed)), typed)
    if resumed is None:
        return None
    config, typed = resumed
    return train(config, typed, run_dir, "python train.py")


def rows(run_dir: Path) -> list[dict[str, float]]:
    """Read metrics.csv without the one column that differs between runs."""
    return [
        {k: v for k, v in row.items() if k != "images_per_second"}
        for row in read_metrics(run_dir / "metrics.csv")
    ]


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    """Read a checkpoint of a run; only tensors and plain values are allowed."""
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Return whether two nested structures of tensors and plain values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same_end(one: Path, other: Path) -> None:
    """Compare the checkpoints and metrics of an uninterrupted and a resumed run."""
    for name in ("last", "best"):
        a, b = checkpoint(one, name), checkpoint(other, name)
        different = [key for key in a | b if not same(a.get(key), b.get(key))]
        # These contain the directory, or the run length, which may have been different when best was saved.
        assert set(different) <= {"config", "callbacks", "run_length"}, different
        assert same(a["callbacks"]["BestAndLast"]["best"], b["callbacks"]["BestAndLast"]["best"])
    assert rows(one) == rows(other)


def train_until(run_dir: Path, steps: int, *overrides: str) -> None:
    """Start a run that Ctrl-C stops after `steps` optimizer steps."""
    with pytest.raises(KeyboardInterrupt):
        run(run_dir, *overrides, callbacks={"stop": {"_target_": f"{__name__}.StopAfter", "steps": steps}})


class StopAfter(Callback):
    """Stop the run as Ctrl-C does, after `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.steps:
            raise KeyboardInterrupt
