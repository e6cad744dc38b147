"""`resume=DIR`: the settings of a run that goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alexnet_exp.config.command_line import resumed_directory
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory

# A resumed run is the same experiment: these decide what is trained, and stay as they were.
_FIXED = ("model", "data", "augment", "optimizer", "scheduler", "seed", "label_smoothing", "weights", "ckpt")
_MAY_CHANGE = ("data.data_dir", "data.root", "data.download", "data.num_workers")


def resumed_arguments(arguments: list[str]) -> list[str]:
    """Put the settings that a resumed run was started with ahead of those typed now.

    So that what its groups have can be set, and shown: `resume=DIR data.root=...` of a run on data=folder.

    Args:
        arguments: As typed now.

    Returns:
        Arguments in which the run's own come first; as typed, if nothing is resumed.
    """
    directory = resumed_directory(arguments)
    if directory is None or not (Path(directory) / "overrides.yaml").exists():
        return arguments
    again = {_key(argument) for argument in arguments}
    first = [o for o in RunDirectory(directory).overrides() if _key(o) not in again]
    return [*first, *arguments]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def resumed_settings(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the settings to run with.

    Args:
        config: As composed from what the user typed now.
        overrides: What the user typed now.

    Returns:
        Settings and overrides: as given without `resume=`, or for a directory that does not hold a run yet; else
        the run's own with the typed changes on top. None if the run has already finished.

    Raises:
        UserError: If a typed override changes what is being trained.
    """
    if not config["resume"]:
        return config, overrides
    run = RunDirectory(config["resume"])
    if not (run.path / "config.yaml").exists():
        return config, overrides
    saved, first = run.config(), run.overrides()
    changes = _changes(first, overrides, config)
    for key in changes:
        if key.split(".")[0] in _FIXED and key not in _MAY_CHANGE:
            raise UserError(f"resume= continues the same experiment, and {key} would change it; use ckpt={run.path}.")
    for key, value in changes.items():
        _set(saved, key, value)
    result = run.result()
    if result and result["status"] == "finished" and not _goes_on(saved, result):
        print(f"{run.path} has already finished; nothing to do.")
        return None
    saved["resume"] = str(run.path)
    return saved, [*first, *(o for o in overrides if o not in first and not o.startswith("resume="))]


def _changes(first: list[str], now: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted key, that the overrides typed now change."""
    kept = [o for o in first if not o.startswith("resume=")]
    if all(o in kept or o.startswith("resume=") for o in now):
        return {}
    before, after = _flat(plain(compose("train", kept))), _flat(config)
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return {key: value for key, value in changed.items() if key != "resume"}


def _goes_on(config: dict[str, Any], result: dict[str, Any]) -> bool:
    wanted = config["trainer"]["max_epochs"]
    return wanted is not None and wanted > result.get("epochs", wanted)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value
