"""What an Optuna sweep searches: Hydra's override grammar as Optuna's distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from alexnet_exp.config.compose import plain
from alexnet_exp.config.messages import explain
from alexnet_exp.config.schema import RULES
from alexnet_exp.errors import UserError
from alexnet_exp.models.spec import parse_network
from alexnet_exp.settings import key_of, parse
from alexnet_exp.tracking.redact import without_passwords


@dataclass
class Space:
    """Settings that every trial shares, and those that it draws.

    Args:
        fixed: Overrides as typed.
        distributions: By the key of the override.
    """

    fixed: list[str]
    distributions: dict[str, BaseDistribution]

    def overrides(self, drawn: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *as_overrides(drawn)]

    def examples(self) -> list[list[str]]:
        """Return overrides in which every choice and every end of an interval occurs."""
        some = {key: _some(distribution) for key, distribution in self.distributions.items()}
        rows = max(map(len, some.values()))
        return [self.overrides({key: v[min(i, len(v) - 1)] for key, v in some.items()}) for i in range(rows)]

    def points(self) -> float:
        """Count the different trials there are; infinite with an interval of numbers."""
        product = 1.0
        for distribution in self.distributions.values():
            values = enumerated(distribution)
            product *= float("inf") if values is None else len(values)
        return product


def as_overrides(drawn: Mapping[str, Any]) -> list[str]:
    """Write drawn values as overrides; choices are in Hydra's grammar already."""
    return [f"{key}={value}" for key, value in drawn.items()]


def read_space(overrides: Sequence[Override]) -> Space:
    """Sort overrides into those that are searched and those that are fixed.

    Args:
        overrides: Parsed; of several with one key the last holds.

    Raises:
        UserError: If nothing is searched, a range makes no sense, or the password of a URL would be drawn.
    """
    last = {override.get_key_element(): override for override in overrides}
    searched = {key: override for key, override in last.items() if override.is_sweep_override()}
    if not searched:
        raise UserError(
            "hydra/sweeper=optuna has nothing to search: give some setting several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )
    fixed = [str(override.input_line) for key, override in last.items() if key not in searched]
    space = Space(fixed, {key: _distribution(override) for key, override in searched.items()})
    for key, distribution in space.distributions.items():
        _check_no_password(key, distribution)
    return space


def enumerated(distribution: BaseDistribution) -> list[Any] | None:
    """Return all values of a distribution, or None if they are too many to count."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return None
    steps = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + i * distribution.step for i in range(steps + 1)]


def suggest(trial: Trial, key: str, distribution: BaseDistribution) -> None:
    """Let a trial draw a value."""
    d = distribution
    if isinstance(d, CategoricalDistribution):
        trial.suggest_categorical(key, d.choices)
    elif isinstance(d, IntDistribution):
        trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    else:
        assert isinstance(d, FloatDistribution)
        trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)


def check_values(
    space: Space, overrides: Sequence[Override], compose: Callable[[list[str]], DictConfig]
) -> None:
    """Refuse a search that would draw values which the setting does not take: each of those trials would fail.

    Args:
        space: What is searched.
        overrides: That it was read from.
        compose: Makes a trial's configuration.

    Raises:
        UserError: Names the value, and int(...) where it is a fraction of what has to be a whole number.
    """
    typed = {override.get_key_element(): str(override.input_line) for override in overrides}
    first = {key: _some(distribution)[0] for key, distribution in space.distributions.items()}
    for key, distribution in space.distributions.items():
        for value in _tried(distribution):
            problem = _problem(key, value, lambda drawn: compose(space.overrides({**first, **drawn})))
            if problem is None:
                continue
            step = getattr(distribution, "step", None) or 1
            whole = (
                isinstance(value, float)
                and step == int(step)
                and all(
                    _problem(key, int(v), lambda drawn: compose(space.overrides({**first, **drawn}))) is None
                    for v in _some(distribution)
                )
            )
            source = parse(typed[key]).value
            hint = f": write '{key}=int({source})'" if whole else ""
            raise UserError(f"{key}={source} would try {value}, and {problem}{hint}.")


def _problem(key: str, value: Any, compose: Callable[[dict[str, Any]], DictConfig]) -> str | None:
    """Return why a setting cannot have a value, as far as that does not depend on other settings."""
    name = key_of(key)
    if name in RULES:
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
        found = parsed.value()
        legal = RULES[name].legal(found) or "${" in str(found)
        return None if legal else f"{name} must be {RULES[name].text}"
    if not name.startswith("model."):
        return None
    try:
        model = plain(compose({key: value}).model)
        if model.get("_target_") == "alexnet_exp.models.AlexNet":
            parse_network({k: v for k, v in model.items() if k != "_target_"})
    except (UserError, HydraException) as error:
        return (explain(error) or str(error)).rstrip(".")
    return None


def _tried(distribution: BaseDistribution) -> list[Any]:
    """Return every value of a short list, else the ends of a long one and what lies beside and between them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        some = [low, low + distribution.step, (low + high) // 2, high]
    else:
        some = [low, (low + high) / 2, low + (high - low) / math.pi, high]
    return sorted({value for value in some if low <= value <= high})


def _check_no_password(key: str, distribution: BaseDistribution) -> None:
    drawn = [f"{key}={value}" for value in _some(distribution)]
    if without_passwords(drawn) != drawn:
        raise UserError(
            f"{key} holds a password, and a study writes down all that it draws: give it one value."
        )


def _some(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def _distribution(override: Override) -> BaseDistribution:
    key, value = override.get_key_element(), override.value()
    tags: set[str] = getattr(value, "tags", set())
    if unknown := tags - {"log"}:
        raise UserError(f"{key}: the tag {min(unknown)} means nothing here; log is the only one.")
    if override.is_choice_sweep():
        if tags:
            raise UserError(f"{key}: choices have no logarithm; the tag log is for interval() and range().")
        choices = list(dict.fromkeys(override.sweep_string_iterator()))
        if not choices:
            raise UserError(f"{override.input_line} matches nothing.")
        return CategoricalDistribution(choices)
    try:
        return _interval(value, bool(tags)) if override.is_interval_sweep() else _range(value, bool(tags))
    except ValueError as error:
        raise UserError(f"{override.input_line} cannot be searched: {error}") from error


def _interval(value: Any, log: bool) -> BaseDistribution:
    """Return a distribution with both ends; interval() makes floats of whole numbers, int(interval()) does not."""
    if isinstance(value.start, int) and isinstance(value.end, int):
        return IntDistribution(value.start, value.end, log=log)
    return FloatDistribution(value.start, value.end, log=log)


def _range(value: Any, log: bool) -> BaseDistribution:
    """Return a distribution over the values that a grid would have: range(1,4) is 1, 2, 3."""
    values = sorted(value.range())
    if not values:
        raise ValueError("the range is empty.")
    if all(isinstance(v, int) for v in values):
        return IntDistribution(values[0], values[-1], log=log, step=abs(int(value.step)))
    return FloatDistribution(values[0], values[-1], log=log, step=abs(float(value.step)))
