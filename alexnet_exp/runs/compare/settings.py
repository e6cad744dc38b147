"""Which settings tell runs apart, in the words of the command line: model=alexnet_lrn, not its forty values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from alexnet_exp.config.compose import chosen_files, compose
from alexnet_exp.config.overrides import GROUPS
from alexnet_exp.runs.compare.groups import REPEATS, SINCE, is_apart
from alexnet_exp.tracking.run_reader import Run

# Groups whose file is named in a table, in the order of its columns.
NAMED_GROUPS = ("experiment", "model", "data", "augment", "optimizer", "scheduler", "trainer")


# `auto` until a run has begun; one that ended before that differs in none of them.
_SETTLED = ("compile", "channels_last", "trainer.precision")


def choices(run: Run) -> dict[str, str]:
    """Return the file of each group that tells runs apart."""
    found = all_choices(run)
    return {group: found[group] for group in NAMED_GROUPS if group in found}


def all_choices(run: Run) -> dict[str, str]:
    """Return the file of each group that a run was composed from.

    A run of an older version has not recorded them: its overrides are composed again, and count by themselves where a
    file is not in conf/.
    """
    recorded = {
        key.removeprefix("choices."): str(name)
        for key, name in run.config.items()
        if key.startswith("choices.")
    }
    return recorded or dict(_composed(tuple((k, v) for k, v in _typed(run) if k in GROUPS)))


@lru_cache(maxsize=1024)
def _composed(typed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(
            chosen_files(compose("train", [f"{k}={v}" for k, v in typed], with_hydra=True).hydra).items()
        )
    except Exception:  # a file of the user's own, or a name of another version
        return typed


def _typed(run: Run) -> Iterator[tuple[str, str]]:
    for override in run.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        yield key, value.strip("'\"")


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
    named = [choices(run) for run in runs]
    typed = {key for run in runs for key, _ in _typed(run)}
    found = [group for group in NAMED_GROUPS if group in typed and len({n.get(group) for n in named}) > 1]
    chosen = [tuple(names.items()) for names in named]
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
