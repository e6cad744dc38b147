"""Two small trained networks whose answers differ between images, views and networks, and a data set for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alexnet_exp.cli import main
from alexnet_exp.runs.train import train
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
]  # stored images of 32 pixels, an input of 24


def make_runs(folder: Path, seeds: int = 2, *overrides: str) -> tuple[Arrays, list[dict[str, Any]]]:
    """Write data to folder/data and runs to folder/run0, folder/run1; return images and results."""
    arrays = write_cifar10(folder / "data", per_batch=20)
    results = []
    for seed in range(seeds):
        config, typed = settings(
            f"paths.data_dir={folder / 'data'}", f"seed={seed}", *overrides, base=TINY
        )
        results.append(train(config, typed, folder / f"run{seed}", "python train.py"))
    return arrays, results


def alexnet_exp(*arguments: object) -> int:
    """Run a verb."""
    return main([str(argument) for argument in arguments])
