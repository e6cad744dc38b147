"""The facts on a report page: headline numbers, configuration, environment, command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from alexnet_exp.report.html import duration, metric_text, number, points, quantity
from alexnet_exp.settings import flat, key_of
from alexnet_exp.tracking.metrics import METRICS
from alexnet_exp.tracking.run_reader import numeric

FACTS = ("seed", "deterministic", "precision", "devices", "epochs", "steps")


def headline(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, value) of the results that stand beside the accuracy."""
    metrics = result.get("metrics") or {}
    split = str(result.get("split") or "test")  # only an evaluation records its split
    for known in METRICS:
        value = numeric(metrics.get(f"{split}/{known.name}"))
        if value is not None and known.name != "top1":
            yield f"{split} {known.label}", metric_text(known.name, value)
    for key, label, text in (("parameters", "parameters", quantity), ("seconds", "time", duration)):
        if (value := numeric(result.get(key))) is not None:
            yield label, text(value)


def published(
    result: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (metric, published value, value of this run, difference in points, source) per published figure."""
    entries = result.get("published") or settings.get("published")
    metrics = result.get("metrics") or {}
    for entry in entries if isinstance(entries, list) else []:
        metric, value = str(entry["metric"]), float(entry["value"])
        own = numeric(metrics.get(metric))
        shown = ("–", "–") if own is None else (metric_text(metric, own), points(own - value))
        yield metric, published_text(entry), *shown, str(entry["source"])


def published_text(entry: Mapping[str, Any]) -> str:
    """Format a published figure with its conditions: '77.22 % (best epoch)'."""
    views = str(entry.get("views", "")).replace("_", "-")
    epoch = {"best": "best epoch"}.get(entry["epoch"], "")
    about = ", ".join(filter(None, [epoch, views]))
    return metric_text(entry["metric"], entry["value"]) + (f" ({about})" if about else "")


@dataclass(frozen=True)
class Group:
    """A group of settings: rows of (key, value as YAML, set on the command line), and how many were set."""

    name: str
    rows: list[tuple[str, str, bool]]
    typed: int


def configuration(settings: dict[str, Any], overrides: list[str]) -> list[Group]:
    """Return the configuration by group, top-level settings first."""
    # A choice of a group (model=alexnet) is an override too, and is counted for its group below.
    typed = {key_of(override).replace("/", ".") for override in overrides}
    scalars = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    groups = {"": scalars} if scalars else {}
    groups |= {key: value for key, value in settings.items() if isinstance(value, dict)}
    found = []
    for name, values in groups.items():
        leaves = flat(values, f"{name}." if name else "")
        rows = [(path, _yaml(value), path in typed) for path, value in leaves.items()]
        found.append(Group(name or "general", rows, sum(mark for *_, mark in rows) + (name in typed)))
    return found


def _yaml(value: Any) -> str:
    # safe_dump ends a bare scalar with a document marker, "...".
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def origin(result: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of `origin` in parts.html: the commands that reproduce a run, and its environment."""
    command, git = result.get("command"), result.get("git") or {}
    checkout = f"git checkout {git['commit']}\n" if git.get("commit") else ""
    return {
        "command": f"{checkout}{command}" if command else None,
        "dirty": bool(git.get("dirty")),
        "environment": list(_environment(result, git)),
    }


def _environment(result: dict[str, Any], git: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of hardware, versions and everything else that affects a run's numbers."""
    for key in FACTS:
        if result.get(key) is not None:
            yield key, _plain(result[key])
    if git.get("commit"):
        yield (
            "git commit",
            f"{str(git['commit'])[:12]}{' with uncommitted changes' if git.get('dirty') else ''}",
        )
    for key, label in (
        ("multiply_adds", "multiply-adds per image"),
        ("images_per_second", "images per second"),
    ):
        if (value := numeric(result.get(key))) is not None:
            yield label, quantity(value)
    for group, title in (("images", "images: "), ("hardware", ""), ("versions", ""), ("wandb", "W&B ")):
        content = result.get(group)
        for key, value in flat(content).items() if isinstance(content, dict) else ():
            if value is not None:
                yield f"{title}{key.replace('_', ' ')}", _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool | list | dict):
        return _yaml(value)
    return number(value) if isinstance(value, float) else str(value)
