"""`where=`: a filter of comparisons joined by and, or; read by a grammar of its own, never evaluated as code."""

from __future__ import annotations

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
_COMPARISON = re.compile(r"\s*([\w./-]+?)\s*(<=|>=|!=|==|<|>|=)\s*(.*?)\s*", re.DOTALL)
_QUOTED = r"'[^']*'|\"[^\"]*\""


class Comparison(NamedTuple):
    """One `key op value`."""

    key: str
    op: str
    value: Any

    def holds(self, found: Any) -> bool:
        """Return whether a run's value passes; what has no order is neither above nor below anything."""
        if self.op in ("=", "==", "!="):
            return _OPERATORS[self.op](_comparable(found), _comparable(self.value))
        return _is_number(found) and _OPERATORS[self.op](found, self.value)


class Where:
    """A filter such as `optimizer.lr>0.01 and model=alexnet_lrn or status=failed`; `and` binds closer.

    Args:
        text: What the user typed.

    Raises:
        UserError: If it cannot be read.
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
        """Refuse a key that no run has.

        Raises:
            UserError: With the nearest keys that there are.
        """
        for key in self.keys:
            if key not in known:
                raise UserError(f"where: no run has a setting or metric {key}.{nearest(key, known)}")

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Return whether a run passes, given what returns its values by key."""
        return any(all(c.holds(value_of(c.key)) for c in all_of) for all_of in self.alternatives)


def _split(text: str, word: str) -> list[str]:
    """Cut at a word that stands by itself, outside of quotation marks."""
    parts = [""]
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
            '< <= > >= = !=, joined by and, or: where="optimizer.lr>0.01 and seed=1".'
        )
    key, op, value = found[1], found[2], _value(found[3])
    if op[0] in "<>" and not _is_number(value):
        raise UserError(f"where: {key}{op}{found[3]} is not possible: {found[3]} is no number.")
    return Comparison(key, op, value)


def _value(text: str) -> Any:
    """Read a value as a settings file would: a number, true, null, a list, or text."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a date that is none
        return text


def _comparable(value: Any) -> Any:
    """Let 1 equal 1.0, but not true; and null equal null."""
    return float(value) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
