"""Which layers a setting names: `optimizer.layers` and `freeze` share one grammar."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from alexnet_exp.errors import UserError, nearest


def match_layers(keys: Iterable[str], layers: Collection[str], setting: str) -> dict[str, str]:
    """Map layers to the names and patterns that select them.

    A name is a layer's dotted name, or any suffix of it that no other layer has. With `*`, `?` or `[...]` it is a
    pattern, which selects every layer whose dotted name or suffix matches: `features.*`, `conv*`. A name takes
    precedence over patterns, and a pattern over those before it.

    Args:
        keys: Names and patterns.
        layers: Dotted names of the network's layers.
        setting: What precedes a key in error messages: 'optimizer.layers.'.

    Returns:
        Layer -> key, for every layer that is selected.

    Raises:
        UserError: For a key that selects nothing, a suffix of several layers, or a layer that is named twice.
    """
    keys = list(keys)
    by_pattern: dict[str, str] = {}
    for pattern in filter(_is_pattern, keys):
        found = [name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not found:
            raise UserError(f"{setting}{pattern}: the network has no such layers.{_nearest(pattern, layers)}")
        by_pattern |= dict.fromkeys(found, pattern)
    by_name: dict[str, str] = {}
    for key in keys:
        if _is_pattern(key):
            continue
        name = _named(key, layers, setting)
        if name in by_name:
            raise UserError(
                f"{setting.rstrip('.=')}: {by_name[name]} and {key} are the same layer; leave one out."
            )
        by_name[name] = key
    return by_pattern | by_name


def _is_pattern(key: str) -> bool:
    return not set("*?[").isdisjoint(key)


def _named(key: str, layers: Collection[str], setting: str) -> str:
    """Return the one layer of a name."""
    names = [key] if key in layers else sorted(name for name in layers if name.endswith(f".{key}"))
    if any(name.startswith(f"{key}.") for name in layers) and not names:
        raise UserError(f"{setting}{key} is not a layer but a block of layers: use '{key}.*'.")
    if not names:
        raise UserError(f"{setting}{key}: the network has no such layer.{_nearest(key, layers)}")
    if len(names) > 1:
        raise UserError(f"{setting}{key} is ambiguous ({', '.join(names)}): use the full name.")
    return names[0]


def _nearest(key: str, layers: Iterable[str]) -> str:
    known = {part for name in layers for part in (name, name.rpartition(".")[2], name.partition(".")[0])}
    return nearest(key.strip("*?."), known)
