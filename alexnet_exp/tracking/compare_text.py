"""Figures and settings of a comparison as text, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alexnet_exp.report.html import is_share, number
from alexnet_exp.tracking.compare_groups import Comparison, Group
from alexnet_exp.tracking.compare_runs import Score


def value_text(value: float, metric: str | None) -> str:
    return f"{100 * value:.2f} %" if is_share(metric) else number(value)


def score_text(score: Score | None, asked: str) -> str:
    """Return a value; with the metric's name if it is not the one asked for."""
    if score is None:
        return "–"
    return value_text(score.value, score.metric) + ("" if score.metric == asked else f" {score.metric}")


def mean_text(group: Group, asked: str) -> str:
    """Return a group's mean; with the metric's name if it is not the one asked for."""
    return score_text(None if group.mean is None else Score(group.mean, str(group.metric)), asked)


def seeds_text(group: Group) -> str:
    """Return of how many seeds the mean is; of how many there are if some are missing."""
    return f"{group.n}" if group.n == group.seeds else f"{group.n} of {group.seeds}"


def spread_text(sd: float | None, metric: str | None) -> str:
    return "–" if sd is None else f"{100 * sd:.2f}" if is_share(metric) else number(sd)


def interval_text(interval: tuple[float, float] | None, metric: str | None) -> str:
    if interval is None:
        return "–"
    low, high = interval
    return (
        f"{100 * low:.2f} to {100 * high:.2f} %" if is_share(metric) else f"{number(low)} to {number(high)}"
    )


def plain(value: Any) -> str:
    """Return a setting as it is typed: 1.0 and 1 are not the same to all of them."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return str(value)


def settings_text(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={plain(value)}" for key, value in settings.items())


def configuration_text(comparison: Comparison, group: Group) -> str:
    """Return what tells a configuration from the others; in words where no setting does."""
    if settings := comparison.group_settings(group):
        return settings_text(settings)
    if len(comparison.groups) == 1 < len(group.runs):
        return "the same for all runs"
    if comparison.usual and comparison.usual.keys() <= group.runs[0].differs.keys():
        return "as most runs"
    first, more = group.runs[0].name, len(group.runs) - 1
    return f"{first} and {more} more" if more else first
