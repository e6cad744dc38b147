"""Which settings tell runs apart, in the words of the command line: model=alexnet_lrn, not its forty values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import yaml

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.tracking.compare_groups import is_apart
from alexnet_exp.tracking.compare_runs import Run

# Groups whose file is named in a table, in the order of its columns.
NAMED_GROUPS = ("experiment", "model", "data", "augment", "optimizer", "scheduler", "trainer")


# `auto` until a run has begun; one that ended before that differs in none of them.
_SETTLED = ("compile", "channels_last", "trainer.precision")


def choices(run: Run) -> dict[str, str]:
    """Return the file of each group that a run was composed from, as far as its overrides and conf/ tell."""
    typed = {key: value for key, value in _typed(run) if key in (*NAMED_GROUPS, "sweep")}
    names = dict(_primary()) | dict(_chosen("sweep", typed.pop("sweep", "none")))
    names |= dict(_chosen("experiment", typed.get("experiment", "none"))) | typed
    if "augment" not in typed:
        names |= dict(_chosen("data", names.get("data", "none")))
    return {group: names[group] for group in NAMED_GROUPS if group in names}


def _typed(run: Run) -> Iterator[tuple[str, str]]:
    for override in run.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        yield key, value.strip("'\"")


@lru_cache
def _primary() -> tuple[tuple[str, str], ...]:
    return tuple(_defaults("train"))


@lru_cache
def _chosen(group: str, option: str) -> tuple[tuple[str, str], ...]:
    return tuple(_defaults(f"{group}/{option}"))


def _defaults(file: str) -> Iterator[tuple[str, str]]:
    """Yield (group, name) of a defaults list, those of the files it stands on first."""
    path = conf_dir() / f"{file}.yaml"
    if not path.is_file():  # a file of the user's own
        return
    for entry in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            yield from _defaults(f"{file.rpartition('/')[0]}/{entry}")
        elif isinstance(entry, dict):
            for key, name in entry.items():
                yield str(key).removeprefix("override ").lstrip("/").partition("@")[0], str(name)


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
        if is_apart(key) and key != "seed":
            continue
        values = [repr(run.config.get(key)) for run in runs]  # 1 batch is not 1.0 of all
        unlike = set(values) - {"'auto'"} if key in _SETTLED else set(values)
        if len(unlike) > 1 and (_is_typed(key, typed) or not _follows(values, chosen)):
            found.append(key)
    return sorted(found, key=lambda key: key == "seed")


def _is_typed(key: str, typed: set[str]) -> bool:
    return key in typed or any(key.startswith(f"{name}.") for name in typed if name not in NAMED_GROUPS)


def _follows(values: Sequence[Hashable], chosen: Sequence[Hashable]) -> bool:
    """Return whether runs of the same files have the same value."""
    return len(set(zip(chosen, values, strict=True))) == len(set(chosen))
