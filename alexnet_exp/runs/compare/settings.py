"""Which settings tell runs apart, in the words of the command line: model=alexnet_lrn, not its forty values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from alexnet_exp.config.compose import chosen_files, compose
from alexnet_exp.runs.compare.groups import REPEATS, SINCE, is_apart
from alexnet_exp.settings import GROUPS, key_of, parse
from alexnet_exp.tracking.run_reader import Run

# Groups whose file is named in a table, in the order of its columns.
NAMED_GROUPS = ("experiment", "model", "data", "augment", "optimizer", "scheduler", "trainer")


# `auto` until a run has begun; one that ended before that differs in none of them.
_SETTLED = ("compile", "channels_last", "trainer.precision")


def choices(run: Run) -> dict[str, str]:
    """Return the file of each group that tells runs apart."""
    return named(all_choices(run.settings, run.overrides))


def named(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return of the chosen files those that a table names."""
    return {group: chosen[group] for group in NAMED_GROUPS if group in chosen}


def all_choices(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, str]:
    """Return the file of each group that a run was composed from.

    A run of an older version has not recorded them: its overrides are composed again, and count by themselves where a
    file is not in conf/.

    Args:
        settings: Those of config.yaml.
        overrides: As typed.
    """
    if recorded := settings.get("choices"):
        return {group: str(name) for group, name in recorded.items()}
    return dict(_composed(tuple((o.key, o.text) for o in map(parse, overrides) if o.key in GROUPS)))


@lru_cache(maxsize=1024)
def _composed(typed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(
            chosen_files(compose("train", [f"{k}={v}" for k, v in typed], with_hydra=True).hydra).items()
        )
    except Exception:  # a file of the user's own, or a name of another version
        return typed


def lookup(run: Run, key: str) -> Any:
    """Return a setting or the file of a group; None if the run has no such setting."""
    return run.config[key] if key in run.config else choices(run).get(key)


def has(run: Run, key: str) -> bool:
    """Return whether a run has a setting or a group of this name: settings come and go with versions."""
    return key in run.config or key in choices(run)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys that tell runs apart, groups first, the seed last.

    A key counts if its values differ, unless it was never typed and follows from the files that were chosen.
    """
    files = [choices(run) for run in runs]
    typed = {key_of(override) for run in runs for override in run.overrides}
    found = [group for group in NAMED_GROUPS if group in typed and len({n.get(group) for n in files}) > 1]
    chosen = [tuple(names.items()) for names in files]
    for key in dict.fromkeys(key for run in runs for key in run.config):
        if is_apart(key) and key not in REPEATS:
            continue
        values = [repr(run.config.get(key, SINCE.get(key))) for run in runs]  # 1 batch is not 1.0 of all
        unlike = set(values) - {"'auto'"} if key in _SETTLED else set(values)
        if len(unlike) > 1 and (_is_typed(key, typed) or not _follows(values, chosen)):
            found.append(key)
    return sorted(found, key=lambda key: key in REPEATS)


def _is_typed(key: str, typed: set[str]) -> bool:
    return key in typed or any(key.startswith(f"{name}.") for name in typed if name not in NAMED_GROUPS)


def _follows(values: Sequence[Hashable], chosen: Sequence[Hashable]) -> bool:
    """Return whether runs of the same files have the same value."""
    return len(set(zip(chosen, values, strict=True))) == len(set(chosen))
