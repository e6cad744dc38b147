"""`resume=DIR`: compose and check the settings of a resumed run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.groups import ADDED, RETIRED, RULES
from alexnet_exp.config.hydra_internals import store
from alexnet_exp.config.overrides import all_choices, quoted, renamed, resumed_directory
from alexnet_exp.config.paths import expand_home
from alexnet_exp.errors import UserError
from alexnet_exp.settings import assigned, flat, key_of, parse, put
from alexnet_exp.targets import check_trust
from alexnet_exp.tracking.redact import PASSWORD, REDACTED, hidden_keys, with_passwords, without_passwords
from alexnet_exp.tracking.run_directory import RunDirectory

# A resumed run is the same experiment, so settings that decide what is trained cannot change.
_FIXED = (
    "model", "data", "augment", "optimizer", "scheduler", "seed", "label_smoothing", "class_weights", "freeze",
    "freeze_epochs", "init", "weights", "ckpt",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "callbacks.ema",
)  # fmt: skip
_MAY_CHANGE = (
    "data.data_dir", "data.root", "data.url", "data.download", "data.num_workers", "data.cache", "data.cache_dir",
    "data.verify", "data.follow_links",
)  # fmt: skip
_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "paths", "logger")
_NEEDED = _GROUPS[:-1]
_FREE = ("trainer", "callbacks", "paths", "logger")  # groups whose file may change
_WHOLE = ("experiment", "sweep")  # groups whose files set values in all other groups
_RECORDED = "__recorded__"  # name of the config that holds the run's recorded settings, in every group
# Overrides that a run records: settings, never flags or hydra.* keys, which Hydra would act upon.
_SETTING = re.compile(r"(?!hydra\b)[+~]{0,2}(?!hydra\b)[A-Za-z_][\w./@-]*(=.*)?", re.DOTALL)
_LIGHTNINGS_LOGGER = re.compile(r"lightning\.pytorch\.loggers\.\w+Logger")
_MISSING = object()  # differs from every value, None included


def resumed_arguments(arguments: list[str]) -> list[str]:
    """Make Hydra compose the recorded settings of a resumed run, with the arguments typed now on top.

    The files that the run was composed from are not read again: they may have changed, or lie in a --config-dir that
    is not given this time.

    Args:
        arguments: As typed now.

    Returns:
        The arguments that are new since the run was started, with its recorded settings chosen in every other group;
        unchanged if nothing is resumed.

    Raises:
        UserError: If `ckpt=` is also given, `resume=` is a file or a sweep, the directory does not hold a run's
            settings, or another experiment is chosen.
    """
    directory = resumed_directory(arguments)
    typed = assigned(arguments)
    if directory is None:
        return arguments
    if typed.get("ckpt", "null") != "null":
        raise UserError(
            "resume= continues a run in place, ckpt= starts a new one from a checkpoint: use only one of them."
        )
    if Path(directory).is_file():
        raise UserError(
            f"resume= takes a run directory, and {directory} is a file: ckpt={directory} starts from it."
        )
    if (Path(directory) / "sweep.json").exists():
        raise UserError(
            f"{directory} is a sweep, not a run: use the sweep's command with sweep.resume={directory}, or resume one "
            f"of its jobs with resume={Path(directory) / '0'}."
        )
    run = RunDirectory(directory)
    if not (run.path / "config.yaml").exists():
        return arguments
    saved, first = _recorded(run)
    # A run started with resume= has recorded it; the resume= typed now must not be dropped as known.
    known = set(without_passwords([o for o in first if key_of(o) not in ("resume", "trust")]))
    if any(key in (*_GROUPS, *_WHOLE, "debug") for key in typed):
        chosen = all_choices(saved, first)
        known |= {f"{group}={name}" for group, name in chosen.items()}
    # `known` has no passwords in URLs, so an argument that supplies one again is kept.
    kept = [a for a in arguments if quoted(a) not in known or "=" not in a]
    again = {key_of(a) for a in kept}
    for whole in _WHOLE:
        if whole in again and typed.get(whole, "none") != "none":
            _refuse([f"{whole}={typed[whole]}"], f"what {whole}= chooses", run.path)
    _store(saved, first, kept)
    return [*(f"{group}={_RECORDED}" for group in (*_GROUPS, "experiment") if group not in again), *kept]


def resumed_settings(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the settings to run with.

    Args:
        config: As composed from the arguments that `resumed_arguments` returns.
        overrides: The settings among those arguments.

    Returns:
        Settings and overrides: unchanged without `resume=`, or if the directory does not hold a run yet; else the
        run's own with the typed changes on top. None if the run has already finished.

    Raises:
        UserError: If a typed override changes what is being trained, or the recorded settings name a class outside
            this package that is not trusted.
    """
    if not config["resume"]:
        return config, overrides
    run = RunDirectory(config["resume"])
    if not (run.path / "config.yaml").exists():
        return config, overrides
    saved, first = _recorded(run)
    check_trust(_to_be_trusted(saved), config["trust"], f"{run.path}: config")
    ours = {f"{group}={_RECORDED}" for group in (*_GROUPS, "experiment")}
    first = [o for o in first if key_of(o) not in ("resume", "trust")]
    new = [o for o in _last_of_each(overrides) if o not in {*first, *ours} and key_of(o) != "resume"]
    settings, changed = _with_passwords(saved, config), set[str]()
    if new:
        settings = {
            **config,
            **{g: _merged(g, saved, config, new, run) for g in _FREE if g in map(key_of, new)},
        }
        changed = _changes(saved, without_passwords(settings), new)
        _check_same_experiment(changed - set(hidden_keys(saved)), new, run.path)
    if hidden := hidden_keys(settings):
        raise UserError(
            f"{run.path}: an older version recorded {hidden[0]} as {REDACTED}; set {hidden[0]}=VALUE."
        )
    result = run.result()
    if result and result["status"] == "finished" and not _extends(settings, result, changed):
        print(f"{run.path} has already finished; nothing to do.")
        return None
    settings["resume"] = str(run.path)
    choices = {
        g: name
        for g, name in config.get("choices", {}).items()
        if name != _RECORDED and g in map(key_of, new)
    }
    if "choices" in saved:
        settings["choices"] = saved["choices"] | choices
    else:
        settings.pop("choices", None)
    again = {key_of(o) for o in new}
    return settings, [*(o for o in first if key_of(o) not in again), *new]


def _to_be_trusted(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without Lightning's own loggers, which only record a run."""
    loggers = {
        name: each
        for name, each in (saved.get("logger") or {}).items()
        if not (isinstance(each, dict) and _LIGHTNINGS_LOGGER.fullmatch(str(each.get("_target_"))))
    }
    return {**saved, "logger": loggers}


def _recorded(run: RunDirectory) -> tuple[dict[str, Any], list[str]]:
    """Read settings and overrides of a run, dropping retired ones and adding new ones at their old behaviour.

    Raises:
        UserError: If they are not what a run records.
    """
    saved = expand_home(run.config())
    if not all(isinstance(saved.get(group), dict) for group in _NEEDED) or any(
        "defaults" in (saved.get(group) or {}) for group in _GROUPS
    ):
        raise UserError(f"{run.path / 'config.yaml'} does not hold the settings of a run.")
    for key in RETIRED:
        group, _, last = key.rpartition(".")
        saved.get(group, {}).pop(last, None)
    known = flat(saved)
    for key, value in ADDED.items():
        if not any(f"{name}.".startswith(f"{key}.") for name in known):
            put(saved, key, value)
    return saved, _last_of_each(o for o in map(renamed, _overrides(run)) if key_of(o) not in RETIRED)


def _store(saved: dict[str, Any], first: list[str], typed: list[str]) -> None:
    """Register the recorded settings with Hydra: a config for every group, and one for settings outside of groups.

    Args:
        saved: The run's settings.
        first: Its overrides; a URL given as ${oc.env:NAME} is read from the environment again.
        typed: Overrides typed now, which may name settings that the run's version did not have.
    """
    nodes = _escaped(saved)
    for override in map(parse, first):
        if "${" in override.text and PASSWORD in str(flat(saved).get(override.key)):
            put(nodes, override.key, override.text)
    for key in map(key_of, typed):
        if key in RULES and key.partition(".")[0] in _GROUPS and key not in flat(saved):
            put(nodes, key, None)
    for group in _GROUPS:
        store(group=group, name=_RECORDED, node=nodes.get(group) or {}, provider="resume")
    own = {key.partition(".")[0] for key in RULES} - {*_GROUPS, "resume", "trust"}
    rest = {key: value for key, value in nodes.items() if key in own}
    store(group="experiment", name=_RECORDED, node=rest, package="_global_", provider="resume")


def _escaped(value: Any) -> Any:
    """Escape ${...} in all strings: recorded values are resolved already."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _with_passwords(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded settings with the passwords that were removed from URLs, taken from the composed ones."""
    composed = flat(config)
    for key, value in flat(saved).items():
        if isinstance(value, str) and without_passwords(composed.get(key)) == value:
            put(saved, key, composed[key])
    return with_passwords(saved)


def _merged(
    group: str, saved: dict[str, Any], config: dict[str, Any], new: list[str], run: RunDirectory
) -> dict[str, Any]:
    """Return a group whose file was changed: apply the differences between the two files, keep everything else."""
    before = all_choices(saved, run.overrides()).get(group)
    try:
        old = flat(plain(compose("train", [f"{group}={before}"]))[group])
    except Exception:  # a custom file that is not available now
        old = flat(saved[group])
    typed = {key_of(o).removeprefix(f"{group}.") for o in new}
    merged = flat(saved[group])
    now = flat(config[group])
    for key in old | now:
        if key in typed or old.get(key, _MISSING) != now.get(key, _MISSING):
            merged.pop(key, None)
            merged |= {key: now[key]} if key in now else {}
    nested: dict[str, Any] = {}
    for key, value in merged.items():
        put(nested, key, value)
    return nested


def _last_of_each(overrides: Iterable[str]) -> list[str]:
    """Keep only the last override of each key."""
    return list({key_of(override): override for override in overrides}.values())


def _overrides(run: RunDirectory) -> list[str]:
    """Read the overrides of a run, which are passed to Hydra: a hydra.* key could make it run arbitrary code.

    Raises:
        UserError: If the file holds anything but settings.
    """
    overrides = run.overrides()
    for override in overrides:
        if not isinstance(override, str) or not _SETTING.fullmatch(override):
            raise UserError(f"{run.path / 'overrides.yaml'} holds {override!r}, which no run writes there.")
    return overrides


def _check_same_experiment(changed: set[str], new: list[str], run: Path) -> None:
    for key in sorted(changed):
        if f"{key}.".startswith(tuple(f"{fixed}." for fixed in _FIXED)) and key not in _MAY_CHANGE:
            _refuse(new, key, run)


def _refuse(new: list[str], what: str, run: Path) -> NoReturn:
    raise UserError(
        f"resume= continues the same experiment, and {' '.join(new)} would change {what}: "
        f"leave it out, or start a new run with ckpt={run}."
    )


def _changes(saved: dict[str, Any], config: dict[str, Any], new: list[str]) -> set[str]:
    """Return the dotted keys that differ; settings that a run of an older version lacks do not count."""
    before, after = flat(saved), flat(config)
    typed = {key_of(o) for o in new}
    groups = {key.partition(".")[0] for key in typed}
    return {
        key
        for key in before | after
        if before.get(key, _MISSING) != after.get(key, _MISSING)
        and (key in before or key in typed or key.partition(".")[0] in groups)
        and key.partition(".")[0] not in ("resume", "trust", "choices")
    }


def _extends(config: dict[str, Any], result: dict[str, Any], changed: set[str]) -> bool:
    """Return whether the changes make a finished run longer: a later max_*, or other early stopping."""
    length = {key for key in changed if key.startswith(("trainer.max_", "callbacks.early_stopping."))}
    if length != {"trainer.max_epochs"}:
        return bool(length)
    wanted = config["trainer"]["max_epochs"]
    if not isinstance(wanted, int | None):
        return True  # an illegal value: the check of the settings reports it
    return wanted is not None and wanted > result.get("epochs", wanted)
