"""The part of the report page about the run itself: headline, configuration, environment, command."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from alexnet_exp.tracking.markup import Html, duration, join, number, percent, quantity, tag
from alexnet_exp.tracking.records import Records

STATUSES = ("finished", "failed", "interrupted")
FACTS = ("seed", "deterministic", "precision", "devices", "epochs", "steps")


def header(records: Records) -> Html:
    """Return the run's name, how it ended, what the user typed, and the error if there was one."""
    status = str(records.result.get("status") or "unfinished")
    pill = tag("span", status, class_=f"pill {status}" if status in STATUSES else "pill")
    chips = [tag("code", override) for override in records.overrides]
    error = records.result.get("error")
    return tag(
        "header",
        tag("p", "alexnet_exp · run report", class_="kicker"),
        tag("h1", records.name, " ", pill),
        tag("p", *chips, class_="chips") if chips else None,
        tag("pre", str(error), class_="error") if error else None,
        *[tag("p", problem, class_="problem") for problem in records.problems],
    )


def numeric(value: Any) -> float | None:
    """Return the value as float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def headline(result: dict[str, Any]) -> Html | None:
    """Return the numbers one looks for first; None when there is not one."""
    cards = [tag("div", tag("dt", label), tag("dd", value)) for label, value in _headline_numbers(result)]
    return tag("dl", *cards, class_="headline") if cards else None


def _headline_numbers(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    metrics = result.get("metrics") or {}
    split = str(result.get("split") or "test")  # an evaluation says which it looked at
    for name, label in (("top1", "top-1"), ("top5", "top-5"), ("loss", "loss"), ("ece", "calibration error")):
        if (value := numeric(metrics.get(f"{split}/{name}"))) is not None:
            yield f"{split} {label}", percent(value) if name.startswith("top") else number(value)
    yield from _best(result.get("best") or {})
    for key, label, text in (
        ("parameters", "parameters", quantity),
        ("multiply_adds", "multiply-adds per image", quantity),
        ("images_per_second", "images per second", quantity),
        ("seconds", "time", duration),
    ):
        if (value := numeric(result.get(key))) is not None:
            yield label, text(value)


def _best(best: dict[str, Any]) -> Iterator[tuple[str, str]]:
    value, epoch, metric = (
        numeric(best.get("value")),
        numeric(best.get("epoch")),
        str(best.get("metric") or ""),
    )
    if value is not None:
        is_share = metric.rpartition("/")[2].startswith("top")
        where = "" if epoch is None else f", epoch {number(epoch)}"
        yield f"best {metric}{where}", percent(value) if is_share else number(value)


def configuration(records: Records) -> Html | None:
    """Return the configuration, one folding table for each group, with what the user typed marked."""
    if not records.config:
        return None
    typed = {
        override.lstrip("+~").partition("=")[0].strip().replace("/", ".") for override in records.overrides
    }
    scalars = {key: value for key, value in records.config.items() if not isinstance(value, dict)}
    groups = {"": scalars} if scalars else {}
    groups |= {key: value for key, value in records.config.items() if isinstance(value, dict)}
    return join(_group(name, values, typed) for name, values in groups.items())


def _group(name: str, values: dict[Any, Any], typed: set[str]) -> Html:
    rows = list(_leaves(values, f"{name}." if name else ""))
    marks = sum(path in typed for path, _ in rows) + (name in typed)
    summary = tag(
        "summary",
        name or "general",
        " ",
        tag("small", f"{len(rows)} {'key' if len(rows) == 1 else 'keys'}"),
        " ",
        tag("mark", f"{marks} typed") if marks else None,
    )
    table = [
        tag(
            "tr",
            tag("th", path, scope="row"),
            tag("td", tag("code", _yaml(value)), " ", tag("mark", "typed") if path in typed else None),
            class_="typed" if path in typed else None,
        )
        for path, value in rows
    ]
    return tag("details", summary, tag("table", tag("tbody", *table), class_="config"), class_="group")


def _leaves(values: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def reproduce(result: dict[str, Any]) -> Html | None:
    """Return the commands that repeat the run."""
    command, git = result.get("command"), result.get("git") or {}
    if not command:
        return None
    checkout = f"git checkout {git['commit']}\n" if git.get("commit") else ""
    warning = tag("p", "The working tree held changes that are not in that commit.", class_="problem")
    return join(
        [
            tag("pre", tag("code", f"{checkout}{command}"), class_="command"),
            warning if git.get("dirty") else None,
        ]
    )


def environment(result: dict[str, Any]) -> Html | None:
    """Return a table of hardware, versions and what else decides a run's numbers."""
    rows = [(key, result[key]) for key in FACTS if result.get(key) is not None]
    git = result.get("git") or {}
    if git.get("commit"):
        rows.append(("git commit", f"{str(git['commit'])[:12]}{' with changes' if git.get('dirty') else ''}"))
    for group, title in (("images", "images: "), ("hardware", ""), ("versions", ""), ("wandb", "W&B ")):
        content = result.get(group)
        if isinstance(content, dict):
            found = [(key, value) for key, value in _leaves(content, "") if value is not None]
            rows += [(f"{title}{key.replace('_', ' ')}", value) for key, value in found]
    if not rows:
        return None
    cells = [tag("div", tag("dt", key), tag("dd", _plain(value))) for key, value in rows]
    return tag("dl", *cells, class_="facts")


def _plain(value: Any) -> str:
    if isinstance(value, bool | list | dict):
        return _yaml(value)
    return number(value) if isinstance(value, float) else str(value)
