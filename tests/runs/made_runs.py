"""Run directories made by hand: what a training run writes, without the training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml


def make_run(
    path: Path,
    top1: float | None = None,
    *,
    val: list[float] | None = None,
    status: str | None = "finished",
    typed: list[str] | None = None,
    images_per_second: float | None = 1234.5,
    images: dict[str, int] | None = None,
    **config: Any,
) -> Path:
    """Write a run directory.

    Args:
        path: The directory.
        top1: test/top1 of result.json; None: the run was not tested.
        val: val/top1 of each epoch, in metrics.csv.
        status: Of result.json; None: there is none.
        typed: overrides.yaml.
        images_per_second: Of result.json.
        images: Of result.json, by split.
        config: Settings by group, on top of {seed: 0, trainer: {max_epochs: 2}}.
    """
    path.mkdir(parents=True)
    settings = {"seed": 0, "trainer": {"max_epochs": 2}, "paths": {"output_dir": str(path.parent)}} | config
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "overrides.yaml").write_text(yaml.safe_dump(typed or []))
    values = val or []
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "images_per_second", "val/loss", "val/top1"])
        writer.writeheader()
        for epoch, value in enumerate(values, 1):
            writer.writerow({"epoch": epoch, "step": 10 * epoch - 5, "images_per_second": 100.0 * epoch})
            writer.writerow({"epoch": epoch, "step": 10 * epoch, "val/loss": 1 - value, "val/top1": value})
    if status is not None:
        metrics = {} if top1 is None else {"test/top1": top1}
        metrics |= {"val/top1": values[-1]} if values else {}
        result = {"status": status, "metrics": metrics, "epochs": len(values)}
        facts = {"images_per_second": images_per_second, "images": images}
        result |= {key: value for key, value in facts.items() if value is not None}
        (path / "result.json").write_text(json.dumps(result))
    return path
