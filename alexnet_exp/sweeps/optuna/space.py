"""The search space of an Optuna sweep: overrides in Hydra's grammar as Optuna's distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from alexnet_exp.config.compose import plain
from alexnet_exp.config.groups import RULES
from alexnet_exp.config.messages import explain
from alexnet_exp.errors import UserError
from alexnet_exp.models.spec import parse_network
from alexnet_exp.settings import key_of, parse
from alexnet_exp.tracking.redact import without_passwords


@dataclass
class Space:
    """The overrides that all trials share, and the distributions that they sample from.

    Args:
        fixed: Overrides as typed.
        distributions: By override key.
    """

    fixed: list[str]
    distributions: dict[str, BaseDistribution]

    def overrides(self, drawn: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *as_overrides(drawn)]

    def examples(self) -> list[list[str]]:
        """Return overrides that cover every choice and both ends of every interval."""
        some = {key: _extremes(distribution) for key, distribution in self.distributions.items()}
        rows = max(map(len, some.values()))
        # The longest list decides how many there are; a shorter one repeats its last value.
        return [self.overrides({key: v[min(i, len(v) - 1)] for key, v in some.items()}) for i in range(rows)]

    def points(self) -> float:
        """Count the points of the space; infinite with a continuous interval."""
        product = 1.0
        for distribution in self.distributions.values():
            values = enumerated(distribution)
            product *= float("inf") if values is None else len(values)
        return product


def as_overrides(drawn: Mapping[str, Any]) -> list[str]:
    """Format sampled values as overrides; choices are already in Hydra's grammar."""
    return [f"{key}={value}" for key, value in drawn.items()]


def read_space(overrides: Sequence[Override]) -> Space:
    """Split overrides into the search space and fixed ones.

    Args:
        overrides: Parsed; the last one of a key wins.

    Raises:
        UserError: If there is nothing to search, a range is invalid, or a URL password would be sampled.
    """
    # As Hydra does for a single run.
    last = {override.get_key_element(): override for override in overrides}
    searched = {key: override for key, override in last.items() if override.is_sweep_override()}
    if not searched:
        raise UserError(
            "hydra/sweeper=optuna has nothing to search: give a setting several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )
    fixed = [str(override.input_line) for key, override in last.items() if key not in searched]
    space = Space(fixed, {key: _distribution(override) for key, override in searched.items()})
    for key, distribution in space.distributions.items():
        sampled = [f"{key}={value}" for value in _extremes(distribution)]
        if without_passwords(sampled) != sampled:
            raise UserError(
                f"{key} contains a password, which the study would record if it were sampled: give it one value."
            )
    return space


def enumerated(distribution: BaseDistribution) -> list[Any] | None:
    """Return all values of a distribution, or None if it is continuous."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return None
    steps = round((distribution.high - distribution.low) / distribution.step)  # 0.3 / 0.1 is just below 3
    return [distribution.low + i * distribution.step for i in range(steps + 1)]


def suggest(trial: Trial, key: str, distribution: BaseDistribution) -> None:
    """Sample a value for a trial."""
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
    """Reject a search space with invalid values: those trials would all fail.

    Args:
        space: The search space.
        overrides: The overrides it was read from.
        compose: Composes a trial's configuration.

    Raises:
        UserError: Names the value, and suggests int(...) where an integer is needed.
    """
    typed = {override.get_key_element(): str(override.input_line) for override in overrides}
    # All other settings keep their first value, so that a problem is that of the value probed.
    first = {key: _extremes(distribution)[0] for key, distribution in space.distributions.items()}
    for key, distribution in space.distributions.items():
        for value in _probes(distribution):
            problem = _problem(key, value, lambda drawn: compose(space.overrides({**first, **drawn})))
            if problem is None:
                continue
            step = getattr(distribution, "step", None) or 1
            whole = (
                isinstance(value, float)
                and step == int(step)
                and all(
                    _problem(key, int(v), lambda drawn: compose(space.overrides({**first, **drawn}))) is None
                    for v in _extremes(distribution)
                )
            )
            source = parse(typed[key]).value
            hint = f": write '{key}=int({source})'" if whole else ""
            raise UserError(f"{key}={source} would try {value}: {problem}{hint}.")


def _problem(key: str, value: Any, compose: Callable[[dict[str, Any]], DictConfig]) -> str | None:
    """Return why a value is invalid, as far as that does not depend on other settings."""
    name = key_of(key)
    if name in RULES:
        # Parsed as Hydra will parse it in the trial: choices are text in its grammar.
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
        found = parsed.value()
        # An interpolation has no value until the trial is composed.
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


def _probes(distribution: BaseDistribution) -> list[Any]:
    """Return values to check: all choices, or for an interval its ends and some points in between."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        some = [low, low + distribution.step, (low + high) // 2, high]
    else:
        # The last inner point is irrational, so that a rule for whole numbers or multiples cannot hold by accident.
        some = [low, (low + high) / 2, low + (high - low) / math.pi, high]
    return sorted({value for value in some if low <= value <= high})


def _extremes(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def _distribution(override: Override) -> BaseDistribution:
    key, value = override.get_key_element(), override.value()
    tags: set[str] = getattr(value, "tags", set())
    if unknown := tags - {"log"}:
        raise UserError(f"{key}: unknown tag {min(unknown)}; the only one is log.")
    if override.is_choice_sweep():
        if tags:
            raise UserError(f"{key}: the tag log does not apply to choices, only to interval() and range().")
        choices = list(dict.fromkeys(override.sweep_string_iterator()))
        if not choices:
            raise UserError(f"{override.input_line} matches nothing.")
        return CategoricalDistribution(choices)
    try:
        return _interval(value, bool(tags)) if override.is_interval_sweep() else _range(value, bool(tags))
    except ValueError as error:
        raise UserError(f"invalid search space {override.input_line}: {error}") from error


def _interval(value: Any, log: bool) -> BaseDistribution:
    """Return a distribution that includes both ends. Hydra turns the ends into floats unless it is int(interval())."""
    if isinstance(value.start, int) and isinstance(value.end, int):
        return IntDistribution(value.start, value.end, log=log)
    return FloatDistribution(value.start, value.end, log=log)


def _range(value: Any, log: bool) -> BaseDistribution:
    """Return a distribution over the values of a grid: range(1,4) is 1, 2, 3."""
    values = sorted(value.range())  # range(3,0,-1) counts down
    if not values:
        raise ValueError("the range is empty.")
    if all(isinstance(v, int) for v in values):
        return IntDistribution(values[0], values[-1], log=log, step=abs(int(value.step)))
    return FloatDistribution(values[0], values[-1], log=log, step=abs(float(value.step)))
