"""Compare two finished runs: bit by bit, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tracking.read_wandb import read_finished, read_wandb
from tests.training.small_runs import checkpoint, rows, same

WEIGHTS = ("state_dict",)
OPTIMIZER = ("optimizer_states", "lr_schedulers")
APART = ("config",)  # it contains the run directory
TIMED = "images_per_second"
Row = dict[str, float]


def differences(reference: Path, run: Path) -> dict[str, list[str]]:
    """Return the differences by part of the run; a list is empty where there are none."""
    found: dict[str, list[str]] = {
        "weights": [],
        "optimizer": [],
        "state": [],
        "metrics.csv": [],
        "W&B": [],
        "result": [],
    }
    for name in ("last", "best"):
        ours, theirs = _content(reference, name), _content(run, name)
        for key in sorted(ours.keys() | theirs.keys()):
            if not same(ours.get(key), theirs.get(key)):
                part = "weights" if key in WEIGHTS else "optimizer" if key in OPTIMIZER else "state"
                found[part].append(f"{name}.ckpt: {key}")
    if rows(reference) != rows(run):
        found["metrics.csv"].append(_first_difference(rows(reference), rows(run)))
    found["W&B"] += _history_differences(reference, run)
    before, after = _result(reference), _result(run)
    found["result"] += [key for key in before if before[key] != after.get(key)]
    return found


def _content(run: Path, name: str) -> dict[str, Any]:
    return {key: value for key, value in checkpoint(run, name).items() if key not in APART}


def _result(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return {key: result.get(key) for key in ("status", "metrics", "best", "epochs", "steps")}


def _first_difference(ours: list[Row], theirs: list[Row]) -> str:
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            return f"row {number}: {one} and {other}"
    return f"{len(ours)} rows and {len(theirs)}"


def _history_differences(reference: Path, run: Path) -> list[str]:
    """Describe how the W&B histories of two runs differ."""
    (ours, _), (theirs, ids) = history(reference), history(run)
    said = [] if len(ids) == 1 else [f"{len(ids)} ids: {', '.join(sorted(ids))}"]
    return said if ours == theirs else [*said, _first_difference(ours, theirs)]


def history(run: Path) -> tuple[list[Row], set[str]]:
    """Return the W&B history of a run, and its run ids.

    All files of an id are merged, and the last record of a step wins, as when they are synced. Throughput is left out.
    """
    files = sorted(run.glob("wandb/*run-*/run-*.wandb"), key=lambda file: file.parent.name)
    parts = [*map(read_wandb, files[:-1]), read_finished(files[-1])]
    latest: dict[tuple[Any, ...], Row] = {}
    for part in parts:
        for row in part.metric_rows():
            kept = {key: value for key, value in row.items() if key != TIMED}
            latest[kept["step"], *sorted(kept)] = kept
    # A part that was killed before it wrote anything has no id.
    return [latest[key] for key in sorted(latest)], {part.run_id for part in parts if part.run_id}
