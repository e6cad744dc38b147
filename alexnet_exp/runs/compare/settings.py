"""Which settings differ between runs, as typed on the command line: model=alexnet_lrn, not its forty values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from alexnet_exp.config.overrides import all_choices
from alexnet_exp.runs.compare.groups import REPEATS, SINCE, is_ignored
from alexnet_exp.settings import key_of
from alexnet_exp.tracking.run_reader import Run

# Config groups shown by file name in a table, in column order.
NAMED_GROUPS = ("experiment", "model", "data", "augment", "optimizer", "scheduler", "trainer")
# `auto` until a run starts; a run that failed earlier still has `auto`, which does not count as different.
_RESOLVED_AT_START = (
    "compile",
    "channels_last",
    "trainer.precision",
    "init",
    "data.val_fraction",
    "optimizer.lr",
    "scheduler.warmup_epochs",
)


def choices(run: Run) -> dict[str, str]:
    """Return the config file of each group in NAMED_GROUPS."""
    return named(all_choices(run.settings, run.overrides))


def named(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of the groups in NAMED_GROUPS."""
    return {group: chosen[group] for group in NAMED_GROUPS if group in chosen}


def lookup(run: Run, key: str) -> Any:
    """Return a setting or the file of a group; None if the run has neither."""
    return run.config[key] if key in run.config else choices(run).get(key)


def has(run: Run, key: str) -> bool:
    """Return whether a run has a setting or group of this name; versions differ in their settings."""
    return key in run.config or key in choices(run)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys that differ between runs, groups first, the seed last.

    A key that nobody typed is left out if its differences follow from the chosen config files.
    """
    files = [choices(run) for run in runs]
    typed = {key_of(override) for run in runs for override in run.overrides}
    found = [group for group in NAMED_GROUPS if group in typed and len({n.get(group) for n in files}) > 1]
    chosen = [tuple(names.items()) for names in files]
    for key in dict.fromkeys(key for run in runs for key in run.config):
        if is_ignored(key) and key not in REPEATS:
            continue
        # repr: 1 batch is not 1.0, which means all batches
        values = [repr(run.config.get(key, SINCE.get(key))) for run in runs]
        distinct = set(values) - ({"'auto'"} if key in _RESOLVED_AT_START else set())
        if len(distinct) > 1 and (_is_typed(key, typed) or not _follows(values, chosen)):
            found.append(key)
    return sorted(found, key=lambda key: key in REPEATS)


def _is_typed(key: str, typed: set[str]) -> bool:
    return key in typed or any(key.startswith(f"{name}.") for name in typed if name not in NAMED_GROUPS)


def _follows(values: Sequence[Hashable], chosen: Sequence[Hashable]) -> bool:
    """Return whether the chosen files determine the value."""
    return len(set(zip(chosen, values, strict=True))) == len(set(chosen))
