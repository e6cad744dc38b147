"""The language of settings: rules, the classes whose fields carry them, and objects of these classes.

    @group
    class Trainer:
        max_epochs: int | None = setting(at_least(1) | null)

    trainer = read(Trainer, {"max_epochs": 30})  # a misspelt trainer.max_epoch is an error

Composed settings stay plain dictionaries where they are recorded or passed to a class; code reads such objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from alexnet_exp.errors import UserError
from alexnet_exp.settings import flat
from alexnet_exp.tracking.metrics import monitored


@dataclass(frozen=True)
class Rule:
    """Which values are legal, and their description in error messages: "invalid KEY=VALUE: expected TEXT"."""

    text: str
    legal: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.text}, or {other.text}", lambda v: self.legal(v) or other.legal(v))


def _is_number(value: Any) -> bool:
    # bool is a subclass of int: without this check, data.batch_size=true would train with batches of 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63  # torch's counters are int64
    return isinstance(value, float) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def at_least(least: int) -> Rule:
    return Rule(f"an integer >= {least}", lambda v: is_integer(v) and v >= least)


def integer(low: int, high: int) -> Rule:
    return Rule(f"an integer in [{low}, {high}]", lambda v: is_integer(v) and low <= v <= high)


def number(low: float = 0.0, high: float = math.inf, ends: str = "[]") -> Rule:
    """Return the rule of a number in an interval whose `ends` are closed, "[]", or open: "(]", "[)", "()"."""

    def legal(v: Any) -> bool:
        if not _is_number(v):
            return False
        return (v > low if ends[0] == "(" else v >= low) and (v < high if ends[1] == ")" else v <= high)

    if high != math.inf:
        return Rule(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", legal)
    return Rule("a positive number" if ends[0] == "(" else f"a number >= {low:g}", legal)


def choice(*values: str) -> Rule:
    return Rule(("one of " if len(values) > 1 else "") + ", ".join(values), lambda v: v in values)


def list_of(rule: Rule, length: int | None = None) -> Rule:
    def legal(v: Any) -> bool:
        return isinstance(v, list) and length in (None, len(v)) and all(rule.legal(x) for x in v)

    return Rule(f"a list{f' of {length}' if length else ''}, each {rule.text}", legal)


def has_only(value: Any, rules: Mapping[str, Rule]) -> bool:
    """Return whether a value is a dict without other keys than these, each of them legal."""
    return isinstance(value, dict) and all(k in rules and rules[k].legal(v) for k, v in value.items())


null = Rule("null", lambda v: v is None)
flag = Rule("true or false", lambda v: isinstance(v, bool))
text = Rule("a non-empty string", lambda v: isinstance(v, str) and v != "")
path = Rule("a path", text.legal)
# YAML reads a name such as 007 as a number.
name = Rule(text.text, lambda v: text.legal(v) or (isinstance(v, int | float) and not isinstance(v, bool)))
positive = number(ends="(]")
fraction = number(0.0, 1.0)
metric = choice(*monitored())
VIEWS = ("centre", "flip", "flip_translate", "ten_crop")  # of a test image
trusted = list_of(text)  # packages whose classes a checkpoint may name


def setting(rule: Rule, absent: Any = ..., recorded: Any = ...) -> Any:
    """Declare a field of a group.

    Args:
        rule: Its legal values.
        absent: For a key that not every yaml of the group has: the field's value without it. All other keys are
            required.
        recorded: For a key newer than some recorded runs: what those runs did.
    """
    return field(metadata={"rule": rule, "absent": absent, "recorded": recorded})


def nested(kind: type, optional: bool = False) -> Any:
    """Declare a field of a group that is a group itself; an optional one is None where its key is missing or null."""
    return field(metadata={"group": kind, "optional": optional})


T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, nested))
def group(kind: type[T]) -> type[T]:
    """Make a class of settings: its objects are read-only, and names that it does not declare are errors."""
    kind.__doc__ = kind.__doc__ or kind.__name__  # else dataclass writes one
    # Methods written by dataclass for each of some twenty classes would cost every start 25 ms.
    made: Any = dataclass(init=False, repr=False, eq=False)(kind)
    made.__init__, made.__setattr__, made.__repr__ = _initialise, _refuse, _represent
    return made


def _initialise(self: Any, /, **values: Any) -> None:
    if wrong := values.keys() ^ self.__dataclass_fields__.keys():
        raise TypeError(f"{type(self).__name__}: missing or unknown {', '.join(sorted(wrong))}")
    self.__dict__.update(values)


def _refuse(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _represent(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"


def declared(kind: type, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each setting of a class and of its groups: dotted key, and `rule`, `absent` and `recorded`."""
    for each in fields(kind):
        if "group" in each.metadata:
            yield from declared(each.metadata["group"], f"{prefix}{each.name}.")
        elif "rule" in each.metadata:  # a field without one holds plain values, checked elsewhere
            yield f"{prefix}{each.name}", each.metadata


def rules_of(kind: type) -> dict[str, Rule]:
    """Return the rules of a class by dotted key."""
    return {key: about["rule"] for key, about in declared(kind)}


def read(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return plain settings as an object, without checking them; keys that the class does not declare are left out.

    Args:
        kind: A `group`.
        values: By key, groups nested.
        prefix: Of the keys in error messages.

    Raises:
        UserError: If a required key is missing. Beside a `_target_` it is None: that class may have a default.
    """
    found: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]  # `group` made a dataclass of it
        key, about = each.name, each.metadata
        if "group" in about:
            inner = values.get(key)
            missing = inner is None and about["optional"]
            found[key] = None if missing else read(about["group"], inner or {}, f"{prefix}{key}.")
        elif key in values:
            found[key] = values[key]
        else:
            defaults = [about[name] for name in ("absent", "recorded") if about.get(name, ...) is not ...]
            if not defaults and "_target_" not in values:
                raise UserError(missing_setting(f"{prefix}{key}"))
            found[key] = defaults[0] if defaults else None
    return kind(**found)


def checked(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return plain settings as an object, each checked against its rule; see `read`.

    Raises:
        UserError: If a key is missing, or for the first invalid value.
    """
    found = read(kind, values, prefix)
    check(kind, values, prefix)
    return found


def check(kind: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check the values of a class against its rules; see `read`.

    Raises:
        UserError: For the first invalid value.
    """
    rules = rules_of(kind)
    given = flat(values, whole=rules)
    check_rules(given, {key: rule for key, rule in rules.items() if key in given}, prefix)


def check_rules(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Check each value against its rule.

    Args:
        values: Has every key of `rules`.
        rules: By key.
        prefix: Prepended to the keys in error messages.

    Raises:
        UserError: For the first invalid value.
    """
    for key, rule in rules.items():
        if not rule.legal(values[key]):
            raise UserError(f"invalid {prefix}{key}={shown(values[key])}: expected {rule.text}.")


def missing_setting(key: str) -> str:
    """Return the error message for a setting that was deleted."""
    return f"The setting {key} is missing: set it, and do not delete it with ~."


def shown(value: Any) -> str:
    """Format a value for an error message: strings quoted, None as null."""
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)
