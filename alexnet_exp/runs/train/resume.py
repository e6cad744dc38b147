"""`resume=DIR`: the settings of a run that goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.hydra_internals import store
from alexnet_exp.config.overrides import quoted, renamed, resumed_directory
from alexnet_exp.config.paths import expand_home
from alexnet_exp.config.schema import ADDED, RETIRED, RULES
from alexnet_exp.errors import UserError
from alexnet_exp.runs.compare.settings import all_choices
from alexnet_exp.settings import assigned, flat, key_of, parse, put
from alexnet_exp.targets import check_trust
from alexnet_exp.tracking.redact import PASSWORD, REDACTED, hidden_keys, with_passwords, without_passwords
from alexnet_exp.tracking.run_directory import RunDirectory

# A resumed run is the same experiment: these decide what is trained, and stay as they were.
_FIXED = (
    "model", "data", "augment", "optimizer", "scheduler", "seed", "label_smoothing", "class_weights", "weights", "ckpt",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "callbacks.ema",
)  # fmt: skip
_MAY_CHANGE = (
    "data.data_dir", "data.root", "data.url", "data.download", "data.num_workers", "data.cache", "data.cache_dir",
    "data.verify", "data.follow_links",
)  # fmt: skip
_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "paths", "logger")
_NEEDED = _GROUPS[:-1]
_FREE = ("trainer", "callbacks", "paths", "logger")  # groups of which another file may be chosen
_WHOLE = ("experiment", "sweep")  # files that say what is trained, in settings of all groups
# The file that stands for the run's own settings, in every group.
_RECORDED = "__recorded__"
# What a run writes down: settings, never a flag, nor what Hydra itself would act upon.
_SETTING = re.compile(r"(?!hydra\b)[+~]{0,2}(?!hydra\b)[A-Za-z_][\w./@-]*(=.*)?", re.DOTALL)
_GONE = object()  # the value of a setting that the changed settings no longer have


def resumed_arguments(arguments: list[str]) -> list[str]:
    """Let Hydra compose the settings that a resumed run has recorded, with what is typed now on top.

    The files that the run was composed from are not looked at again: they may have changed, or lie in a --config-dir
    that is not named this time.

    Args:
        arguments: As typed now.

    Returns:
        Arguments without what the run was started with, and with its recorded settings chosen in every group; as
        typed, if nothing is resumed.

    Raises:
        UserError: If `ckpt=` is typed beside `resume=`, `resume=` is a file or a sweep, the directory does not hold a
            run's settings, or another experiment is typed.
    """
    directory = resumed_directory(arguments)
    typed = assigned(arguments)
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
    run = RunDirectory(directory)
    if not (run.path / "config.yaml").exists():
        return arguments
    saved, first = _recorded(run)
    # A run that was started with resume= has recorded it: it still says what is to be resumed.
    known = set(without_passwords([o for o in first if key_of(o) not in ("resume", "trust")]))
    if any(key in (*_GROUPS, *_WHOLE, "debug") for key in typed):
        chosen = all_choices(saved, first)
        known |= {f"{group}={name}" for group, name in chosen.items()}
    # A password that is typed again is wanted, though the setting is the same without it.
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
    saved, first = _recorded(run)
    check_trust(saved, config["trust"], f"{run.path}: config")
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
            f"{run.path}: an older version has kept {hidden[0]} as {REDACTED}; set it: {hidden[0]}=VALUE."
        )
    result = run.result()
    if result and result["status"] == "finished" and not _goes_on(settings, result, changed):
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


def _recorded(run: RunDirectory) -> tuple[dict[str, Any], list[str]]:
    """Read settings and overrides of a run, without those that have been retired since.

    Raises:
        UserError: If they are not what a run writes down.
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
    """Give Hydra a file for every group, and one for the settings outside of groups.

    Args:
        saved: The run's settings.
        first: Its overrides: a URL typed as ${oc.env:NAME} is read from the environment again.
        typed: Those of today: a setting that the run's version did not have may be among them.
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
    """Return plain values in which nothing is a reference to OmegaConf."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _with_passwords(saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return recorded settings with the passwords of URLs, as the composed ones have them."""
    composed = flat(config)
    for key, value in flat(saved).items():
        if isinstance(value, str) and without_passwords(composed.get(key)) == value:
            put(saved, key, composed[key])
    return with_passwords(saved)


def _merged(
    group: str, saved: dict[str, Any], config: dict[str, Any], new: list[str], run: RunDirectory
) -> dict[str, Any]:
    """Return a group of which another file is typed now: what the two files differ in changes, the rest stays."""
    before = all_choices(saved, run.overrides()).get(group)
    try:
        old = flat(plain(compose("train", [f"{group}={before}"]))[group])
    except Exception:  # a file of the user's that is not here
        old = flat(saved[group])
    typed = {key_of(o).removeprefix(f"{group}.") for o in new}
    merged = flat(saved[group])
    now = flat(config[group])
    for key in old | now:
        if key in typed or old.get(key, _GONE) != now.get(key, _GONE):
            merged.pop(key, None)
            merged |= {key: now[key]} if key in now else {}
    nested: dict[str, Any] = {}
    for key, value in merged.items():
        put(nested, key, value)
    return nested


def _last_of_each(overrides: Iterable[str]) -> list[str]:
    """Leave out what a later override of the same key replaces."""
    return list({key_of(override): override for override in overrides}.values())


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
    """Return the dotted keys in which settings differ; what a run of an older version lacks is no change of it."""
    before, after = flat(saved), flat(config)
    typed = {key_of(o) for o in new}
    groups = {key.partition(".")[0] for key in typed}
    return {
        key
        for key in before | after
        if before.get(key, _GONE) != after.get(key, _GONE)
        and (key in before or key in typed or key.partition(".")[0] in groups)
        and key.partition(".")[0] not in ("resume", "trust", "choices")
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
