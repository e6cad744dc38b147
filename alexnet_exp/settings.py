"""Settings in their two forms: words of a command line, `KEY=VALUE`, and nested groups, `{"model": {"lr": ...}}`.

Not Hydra's own parser: it refuses what is not quoted yet, and most readers only want to know which keys were typed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

# Those that every run has; of the others, several files add up or none is needed.
RUN_GROUPS = ("model", "data", "augment", "optimizer", "scheduler", "trainer", "callbacks", "logger", "paths")
GROUPS = (*RUN_GROUPS, "experiment", "sweep", "debug", "hydra")

_QUOTED = re.compile(r"""'(?:\\'|[^'])*'|"(?:\\"|[^"])*\"""")


class Override(NamedTuple):
    """One word of a command line: `lr=1`, `+lr=1` (adds), `++lr=1` (adds or changes), `~lr` (takes away).

    Args:
        mark: '', '+', '++' or '~'.
        key: Without the mark: 'optimizer.lr', a group's name, or 'data@val' with a package.
        value: As typed, with quotation marks; None without '='.
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
        """The value without quotation marks; empty without '='."""
        return unquoted(self.value or "")


def parse(word: str) -> Override:
    """Read one word."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+~")
    return Override(key[: len(key) - len(name)], name.strip(), value if equals else None)


def key_of(word: str) -> str:
    """Return the setting that a word changes, adds or takes away."""
    return parse(word).key


def assigned(words: Iterable[str]) -> dict[str, str]:
    """Return the settings to which words give a value, the last one of each, as typed."""
    return {o.key: o.value for o in map(parse, words) if o.value is not None and o.mark != "~"}


def is_quoted(value: str) -> bool:
    """Return whether a value has quotation marks around it, in Hydra's grammar."""
    return bool(_QUOTED.fullmatch(value))


def unquoted(value: str) -> str:
    """Return a value without its quotation marks."""
    return value[1:-1].replace("\\'", "'") if is_quoted(value) else value


def quote(value: str) -> str:
    """Quote a text for Hydra's grammar, where backslashes mean themselves, except before a quotation mark."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def flat(values: Mapping[Any, Any], prefix: str = "", whole: Container[str] = ()) -> dict[str, Any]:
    """Return every setting of nested groups by its dotted key; an empty group is a setting, too.

    Args:
        values: Nested.
        prefix: Goes before every key.
        whole: Keys whose values are mappings that are one setting.
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
    """Set a dotted key in nested settings; groups that are not there are made."""
    *path, last = key.split(".")
    for name in path:
        settings = settings.setdefault(name, {}) if isinstance(settings, dict) else {}
    settings[last] = value
