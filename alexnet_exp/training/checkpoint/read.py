"""Read a checkpoint and validate its structure before anything uses it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet_exp.data.decode import FITS
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.metrics import METRICS, name_of
from alexnet_exp.training.checkpoint.safe_load import load_safely

MAX_SIDE = 8192  # pixels; a checkpoint must not make us allocate huge images
_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint of this package onto CPU; never runs code from the file.

    Raises:
        UserError: If the file is missing or damaged, holds anything but tensors and plain values, or was not written
            by this package.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint {path}.")
    checkpoint = load_safely(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "config" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of alexnet_exp: it has no config; use weights= for a plain state dict."
        )
    for key, is_valid in _FORM.items():
        if not is_valid(checkpoint.get(key)):
            raise UserError(
                f"{path} is not a checkpoint of alexnet_exp: its {key} is not what a run writes there."
            )
    return checkpoint


def checkpoints_before(last: Path) -> dict[int, Path]:
    """Return the previous last.ckpt files, keyed by how many saves ago they were written."""
    found = {file: re.fullmatch(rf"{last.stem}-(\d+)", file.stem) for file in last.parent.glob("last-*.ckpt")}
    return dict(sorted((int(match[1]), file) for file, match in found.items() if match))


def check_progress(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Check the training state, that is everything resuming needs besides the weights.

    Raises:
        UserError: Names the first invalid entry.
    """
    for key, is_valid in _PROGRESS.items():
        if not is_valid(checkpoint.get(key)):
            raise UserError(f"Cannot resume from {path}: its {key} is not what a run writes there.")


def is_weights(value: Any) -> bool:
    """Return whether a value is a state dict."""
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(group), dict) for group in _GROUPS)


def is_classes(value: Any) -> bool:
    """Return whether a value can be a list of class names."""
    return isinstance(value, list) and value != [] and all(isinstance(name, str) for name in value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE  # isinstance would accept True


def is_preprocessing(value: Any) -> bool:
    """Return whether a value can be the `preprocessing` entry (`ImageData.preprocessing`)."""
    if not isinstance(value, dict) or "mean_image" not in value or type(value.get("channels")) is not int:
        return False
    channels, mean = value["channels"], value["mean_image"]
    return (
        channels in (1, 3)
        and all(_are_numbers(value.get(key), channels) for key in ("mean", "std"))
        and all(_is_side(value.get(key)) for key in ("image_size", "stored_size"))
        and (mean is None or (isinstance(mean, Tensor) and mean.ndim == 3 and len(mean) == channels))
        and (mean is None or mean.is_floating_point())
        and value.get("fit", "crop") in FITS  # older checkpoints have no fit
        and isinstance(value.get("crop"), bool)
    )


def _are_numbers(value: Any, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(isinstance(x, float) and math.isfinite(x) for x in value)


def _is_splits(value: Any) -> bool:
    """Return whether a value can be the `splits` entry, which older checkpoints lack."""
    return value is None or (
        isinstance(value, dict)
        and all(isinstance(split, str) and _is_split(facts) for split, facts in value.items())
    )


def _is_split(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_count(value.get("count")):
        return False
    digest = value.get("digest")
    return (digest is None or isinstance(digest, str)) and isinstance(value.get("origin"), str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_states(value: Any) -> bool:
    """Return whether a value can be `optimizer_states`: the state dict of exactly one optimizer."""
    return (isinstance(value, list) and len(value) == 1) and all(
        isinstance(each, dict)
        and isinstance(each.get("state"), dict)
        and isinstance(each.get("param_groups"), list)
        and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in each["param_groups"])
        for each in value
    )


def _are_loops(value: Any) -> bool:
    try:
        progress = value["fit_loop"]["epoch_progress"]["current"]
        return _is_count(progress["processed"]) and _is_count(progress["completed"])
    except (KeyError, TypeError, IndexError):  # IndexError: a tensor in place of a dict
        return False


def _are_sums(value: Any) -> bool:
    # (ranks, 4): loss, top-1, top-5, images
    return isinstance(value, Tensor) and value.ndim == 2 and len(value) > 0 and value.shape[1] == 4


def _are_metrics(value: Any) -> bool:
    """Return whether a value can be the latest metrics: every split has the same, but those that train lacks."""
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and isinstance(v, float) for k, v in value.items()
    ):
        return False
    splits = {key.partition("/")[0] for key in value}
    names = [{key for key in value if key.startswith(f"{split}/")} for split in splits]
    untrained = {metric.name for metric in METRICS if "train" not in metric.splits}
    same = len({frozenset(name_of(key) for key in each) - untrained for each in names}) <= 1
    return same and all({f"{split}/loss", f"{split}/top1"} <= value.keys() for split in splits)


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+\.\d+\.\d+[\w.+-]*", value) is not None


# What every verb reads; below, what only resuming needs.
_FORM: dict[str, Callable[[Any], bool]] = {
    "state_dict": is_weights,
    "config": _is_config,
    "classes": is_classes,
    "preprocessing": is_preprocessing,
    "splits": _is_splits,
}
_PROGRESS: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_count,
    "global_step": _is_count,
    "loops": _are_loops,
    "optimizer_states": _are_states,
    "lr_schedulers": lambda value: isinstance(value, list),  # empty with a constant rate
    "callbacks": lambda value: isinstance(value, dict),
    "reported": _are_metrics,
    "validated": lambda value: isinstance(value, bool),
    "train_sums": _are_sums,
    "pytorch-lightning_version": _is_version,
}
