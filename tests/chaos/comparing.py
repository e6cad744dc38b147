"""Whether two runs ended the same: bit by bit, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.training.small_runs import checkpoint, rows, same

WEIGHTS = ("state_dict",)
OPTIMIZER = ("optimizer_states", "lr_schedulers")
APART = ("config",)  # it names the directory


def differences(reference: Path, run: Path) -> dict[str, list[str]]:
    """Return what differs, by the part of a run that it belongs to; empty lists where nothing does."""
    found: dict[str, list[str]] = {
        "weights": [],
        "optimizer": [],
        "state": [],
        "metrics.csv": [],
        "result": [],
    }
    for name in ("last", "best"):
        ours, theirs = _content(reference, name), _content(run, name)
        for key in sorted(ours.keys() | theirs.keys()):
            if not same(ours.get(key), theirs.get(key)):
                part = "weights" if key in WEIGHTS else "optimizer" if key in OPTIMIZER else "state"
                found[part].append(f"{name}.ckpt: {key}")
    if rows(reference) != rows(run):
        found["metrics.csv"].append(_first_other_row(reference, run))
    before, after = _result(reference), _result(run)
    found["result"] += [key for key in before if before[key] != after.get(key)]
    return found


def _content(run: Path, name: str) -> dict[str, Any]:
    return {key: value for key, value in checkpoint(run, name).items() if key not in APART}


def _result(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return {key: result.get(key) for key in ("status", "metrics", "best", "epochs", "steps")}


def _first_other_row(reference: Path, run: Path) -> str:
    ours, theirs = rows(reference), rows(run)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            return f"row {number}: {one} and {other}"
    return f"{len(ours)} rows and {len(theirs)}"
