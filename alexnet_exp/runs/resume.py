"""`resume=DIR`: the settings of a run that goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet_exp.config.command_line import resumed_directory
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.targets import check_trust
from alexnet_exp.tracking.redact import REDACTED
from alexnet_exp.tracking.run_directory import RunDirectory

# A resumed run is the same experiment: these decide what is trained, and stay as they were.
_FIXED = (
    "model", "data", "augment", "optimizer", "scheduler", "seed", "label_smoothing", "weights", "ckpt",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "callbacks.ema",
)  # fmt: skip
_MAY_CHANGE = (
    "data.data_dir", "data.root", "data.url", "data.download", "data.num_workers", "data.cache", "data.cache_dir",
    "data.verify", "data.follow_links",
)  # fmt: skip
_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "paths")
# What a run writes down: settings, never a flag, nor what Hydra itself would act upon.
_SETTING = re.compile(r"(?!hydra\b)[+~]{0,2}(?!hydra\b)[A-Za-z_][\w./@-]*(=.*)?", re.DOTALL)
_GONE = object()  # the value of a setting that the changed settings no longer have


def resumed_arguments(arguments: list[str]) -> list[str]:
    """Put the settings that a resumed run was started with ahead of changes typed now.

    What the run's own groups have can then be changed: `resume=DIR data.root=...` of a run on data=folder.

    Args:
        arguments: As typed now.

    Returns:
        Arguments in which the run's own come first; as typed, if nothing is resumed or changed.

    Raises:
        UserError: If `ckpt=` is typed beside `resume=`, or `resume=` is a file or a sweep.
    """
    directory = resumed_directory(arguments)
    typed = {_key(argument): argument.partition("=")[2] for argument in arguments if "=" in argument}
    if directory is None:
        return arguments
    if typed.get("ckpt", "null") != "null":
        raise UserError(
            "resume= continues a run in place and ckpt= starts a new one from it: give one of them."
        )
    if Path(directory).is_file():
        raise UserError(
            f"resume= takes a run directory, and {directory} is a file: ckpt={directory} starts from it."
        )
    if (Path(directory) / "sweep.json").exists():
        raise UserError(
            f"{directory} is a sweep, not a run: the sweep's command with sweep.resume={directory} goes on with it, "
            f"resume={Path(directory) / '0'} with one of its jobs."
        )
    if not (Path(directory) / "overrides.yaml").exists() or set(typed) <= {"resume", "hydra.run.dir"}:
        return arguments
    # What to trust is for the user to say now, never for the directory.
    again = {_key(key) for key in typed}
    kept = [o for o in _overrides(RunDirectory(directory)) if _key(o) not in {*again, "trust"}]
    if hidden := [_key(o) for o in kept if REDACTED in o]:
        raise UserError(
            f"{', '.join(hidden)} of {directory} held a secret, which is not written down: type "
            f"{hidden[0]}=VALUE again."
        )
    return [*kept, *arguments]


def resumed_settings(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the settings to run with.

    Args:
        config: As composed from the arguments, completed by `resumed_arguments`.
        overrides: The settings among those arguments.

    Returns:
        Settings and overrides: as given without `resume=`, or for a directory that does not hold a run yet;
        else the run's own with the typed changes on top. None if the run has already finished.

    Raises:
        UserError: If a typed override changes what is being trained, or the directory names a class that is neither
            of this package nor trusted.
    """
    if not config["resume"]:
        return config, overrides
    run = RunDirectory(config["resume"])
    if not (run.path / "config.yaml").exists():
        return config, overrides
    saved = run.config()
    if not all(isinstance(saved.get(group), dict) for group in _GROUPS):
        raise UserError(f"{run.path / 'config.yaml'} does not hold the settings of a run.")
    check_trust(saved, config["trust"], f"{run.path}: config")
    first = _last_of_each(o for o in _overrides(run) if _key(o) not in ("resume", "trust"))
    new = [o for o in _last_of_each(overrides) if o not in first and _key(o) != "resume"]
    changed = _changes(first, config, f"{run.path}: overrides") if new else set()
    hidden = {key for key, value in _flat(saved).items() if REDACTED in str(value)}
    _check_same_experiment(changed - hidden, new, run.path)
    for key in changed:
        group = key.partition(".")[0]
        if group in _FIXED:
            _copy(key, config, saved)
        else:  # as a whole: a logger may have gone
            saved[group] = config[group]
    _check_nothing_hidden(saved, run.path)
    result = run.result()
    if result and result["status"] == "finished" and not _goes_on(saved, result, changed):
        print(f"{run.path} has already finished; nothing to do.")
        return None
    saved["resume"] = str(run.path)
    again = {_key(o) for o in new}
    return saved, [*(o for o in first if _key(o) not in again), *new]


def _last_of_each(overrides: Iterable[str]) -> list[str]:
    """Leave out what a later override of the same key replaces."""
    return list({_key(override): override for override in overrides}.values())


def _copy(key: str, source: dict[str, Any], target: dict[str, Any]) -> None:
    *path, last = key.split(".")
    for name in path:
        source, target = source[name], target[name]
    target[last] = source[last]


def _overrides(run: RunDirectory) -> list[str]:
    """Read what a run was started with; it goes to Hydra, and Hydra would start what some settings name.

    Raises:
        UserError: If the file holds something else than settings of a run.
    """
    overrides = run.overrides()
    for override in overrides:
        if not isinstance(override, str) or not _SETTING.fullmatch(override):
            raise UserError(f"{run.path / 'overrides.yaml'} holds {override!r}, which no run writes there.")
    return overrides


def _check_nothing_hidden(config: dict[str, Any], run: Path) -> None:
    """Refuse a run whose own class would be given the mark of a secret that was not written down."""
    for key, value in _flat({group: config[group] for group in _GROUPS}).items():
        if REDACTED in str(value):
            raise UserError(
                f"{key} of {run} was a secret, which is not written down: type {key}=VALUE again."
            )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _check_same_experiment(changed: set[str], new: list[str], run: Path) -> None:
    for key in sorted(changed):
        if f"{key}.".startswith(tuple(f"{fixed}." for fixed in _FIXED)) and key not in _MAY_CHANGE:
            raise UserError(
                f"resume= continues the same experiment, and {' '.join(new)} would change {key}: "
                f"leave it out, or start a new run with ckpt={run}."
            )


def _changes(first: list[str], config: dict[str, Any], where: str) -> set[str]:
    """Return the dotted keys in which settings differ from those of the run's own overrides.

    Raises:
        UserError: If these name a class that is neither of this package nor trusted.
    """
    own = plain(compose("train", first))
    check_trust(own, config["trust"], where)
    before, after = _flat(own), _flat(config)
    return {key for key in before | after if before.get(key, _GONE) != after.get(key, _GONE)} - {
        "resume",
        "trust",
    }


def _goes_on(config: dict[str, Any], result: dict[str, Any], changed: set[str]) -> bool:
    """Return whether a finished run has more to do; whatever ended it, as early stopping, is to be changed first."""
    length = {key for key in changed if key.startswith(("trainer.max_", "callbacks.early_stopping."))}
    if length != {"trainer.max_epochs"}:
        return bool(length)
    wanted = config["trainer"]["max_epochs"]
    if not isinstance(wanted, int | None):
        return True  # whatever it is, the check of the settings refuses it
    return wanted is not None and wanted > result.get("epochs", wanted)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat
