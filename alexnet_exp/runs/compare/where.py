"""`where=`: a filter of comparisons joined by and/or, with its own small parser: never evaluated as code."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import yaml

from alexnet_exp.errors import UserError, nearest

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq,
    "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
# Two-character operators first: `<` alone would leave the `=` of `<=` to the value.
_COMPARISON = re.compile(r"\s*([\w./-]+?)\s*(<=|>=|!=|==|<|>|=)\s*(.*?)\s*", re.DOTALL)
_QUOTED = r"'[^']*'|\"[^\"]*\""


class Comparison(NamedTuple):
    """One `key op value`; `text` is the value as typed."""

    key: str
    op: str
    value: Any
    text: str

    def holds(self, found: Any) -> bool:
        """Return whether a run's value passes; non-numbers never satisfy < <= > >=."""
        if self.op in ("=", "==", "!="):
            # A name such as 007 looks like a number.
            same = _comparable(found) == _comparable(self.value) or found == self.text
            return same != (self.op == "!=")
        return _is_number(found) and _OPERATORS[self.op](found, self.value)


class Where:
    """A filter such as `optimizer.lr>0.01 and model=alexnet_lrn or status=failed`; `and` binds closer.

    Args:
        text: As typed.

    Raises:
        UserError: If it cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        self.alternatives = [
            [_comparison(part, text) for part in _split(alternative, "and")]
            for alternative in _split(text, "or")
        ]

    @property
    def keys(self) -> list[str]:
        return [comparison.key for all_of in self.alternatives for comparison in all_of]

    def check(self, known: Collection[str]) -> None:
        """Check that some run has each key.

        Raises:
            UserError: Names the nearest existing keys.
        """
        for key in self.keys:
            if key not in known:
                raise UserError(f"where: no run has a setting or metric {key}.{nearest(key, known)}")

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Return whether a run passes, given a function from key to its value."""
        return any(all(c.holds(value_of(c.key)) for c in all_of) for all_of in self.alternatives)


def _split(text: str, word: str) -> list[str]:
    """Split at a separate word, outside of quotation marks."""
    parts = [""]
    # Quoted text is a piece of its own, since re.split keeps what the group matches; `and` inside it stays.
    for piece in re.split(rf"({_QUOTED}|\s+{word}(?=\s|$))", text):
        if piece.strip() == word:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _comparison(part: str, text: str) -> Comparison:
    found = _COMPARISON.fullmatch(part)
    if not found or not found[3]:
        raise UserError(
            f"where={text!r} cannot be read at {part.strip()!r}: write KEY OP VALUE with one of "
            '< <= > >= = !=, joined by and/or: where="optimizer.lr>0.01 and seed=1".'
        )
    key, op, value = found[1], found[2], _value(found[3])
    if op[0] in "<>" and not _is_number(value):
        raise UserError(f"invalid where={key}{op}{found[3]}: expected a number after {op}.")
    return Comparison(key, op, value, found[3])


def _value(text: str) -> Any:
    """Parse a value as in a settings file: a number, true, null, a list, or a string."""
    with contextlib.suppress(ValueError):
        return float(text)  # YAML reads 1e-4 as a string
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: an impossible date such as 2026-13-01
        return text


def _comparable(value: Any) -> Any:
    """Make 1 equal 1.0 but not true, and null equal null."""
    return float(value) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
