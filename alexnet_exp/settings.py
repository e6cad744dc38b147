"""Settings in their two forms: overrides on a command line, `KEY=VALUE`, and nested dicts, `{"model": {"lr": ...}}`.

Hydra's own parser does not fit: it rejects values that are not quoted yet, and most callers only need the keys.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

# Every run has these; the others are optional or lists.
RUN_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "logger", "paths")
GROUPS = (*RUN_GROUPS, "experiment", "sweep", "debug", "hydra")

# In Hydra's grammar a backslash escapes nothing but the quote.
_QUOTED = re.compile(r"""'(?:\\'|[^'])*'|"(?:\\"|[^"])*\"""")


class Override(NamedTuple):
    """One word of a command line: `lr=1`, `+lr=1` (add), `++lr=1` (add or set), `~lr` (delete).

    Args:
        mark: '', '+', '++' or '~'.
        key: Without the mark: 'optimizer.lr', a group's name, or 'data@val' with a package.
        value: As typed, with quotes; None without '='.
    """

    mark: str
    key: str
    value: str | None

    @property
    def group(self) -> str:
        """The first part of the key."""
        return self.key.partition(".")[0]

    @property
    def text(self) -> str:
        """The value without quotes; empty without '='."""
        return unquoted(self.value or "")


def parse(word: str) -> Override:
    """Parse one word."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+~")
    return Override(key[: len(key) - len(name)], name.strip(), value if equals else None)


def key_of(word: str) -> str:
    """Return the setting that a word sets, adds or deletes."""
    return parse(word).key


def unmarked(words: Iterable[str]) -> list[str]:
    """Return words without `+` and `++`, which say how a value is set, not what it is; `~` stays."""
    return [word.lstrip("+") for word in words]


def assigned(words: Iterable[str]) -> dict[str, str]:
    """Return the assigned values by key, as typed; the last assignment wins."""
    return {o.key: o.value for o in map(parse, words) if o.value is not None and o.mark != "~"}


def is_quoted(value: str) -> bool:
    """Return whether a value is quoted, in Hydra's grammar."""
    return bool(_QUOTED.fullmatch(value))


def unquoted(value: str) -> str:
    """Return a value without its quotes."""
    return value[1:-1].replace(f"\\{value[0]}", value[0]) if is_quoted(value) else value


def quote(value: str) -> str:
    """Quote a string for Hydra's grammar, where a backslash is literal unless it precedes a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def flat(values: Mapping[Any, Any], prefix: str = "", whole: Container[str] = ()) -> dict[str, Any]:
    """Flatten nested settings to dotted keys; an empty dict stays a value.

    Args:
        values: Nested.
        prefix: Prepended to every key.
        whole: Keys whose dicts are values, not groups.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in whole:
            found |= flat(value, f"{name}.", whole)
        else:
            found[name] = value
    return found


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested settings, creating groups as needed, also in the place of a plain value."""
    *path, last = key.split(".")
    for name in path:
        if not isinstance(settings.get(name), dict):
            settings[name] = {}
        settings = settings[name]
    settings[last] = value
