"""The comparison as a terminal's table, csv, markdown or json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet_exp.errors import printable
from alexnet_exp.report.html import is_share, number
from alexnet_exp.runs.compare.groups import Comparison, Group
from alexnet_exp.tracking.run_reader import Run, Score
from alexnet_exp.tracking.terminal import wide_enough

_FIXED = 4  # columns that keep their width
_LEAST = 28  # characters for names and settings
_STYLES = {"failed": "red", "interrupted": "yellow", "unfinished": "yellow", "running": "cyan"}


def records(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain values, for json."""
    numbers = {run.path: i for i, group in enumerate(comparison.groups, 1) for run in group.runs}
    runs = [_run_record(comparison, run, numbers[run.path]) for run in comparison.runs]
    groups = [_group_record(comparison, group, i) for i, group in enumerate(comparison.groups, 1)]
    where = {"where": comparison.where} if comparison.where else {}
    return {"metric": comparison.metric, **where, "runs": runs, "groups": groups}


def _run_record(comparison: Comparison, run: Run, group: int) -> dict[str, Any]:
    score = comparison.scores[run.path]
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "metric": score.metric if score else None,
        "value": score.value if score else None,
        "best": score is not None and score == comparison.best,
        "epochs": run.epochs,
        "images_per_second": run.images_per_second,
        "group": group,
        "settings": run.differs,
    }


def _group_record(comparison: Comparison, group: Group, number: int) -> dict[str, Any]:
    return {
        "group": number,
        "runs": [run.name for run in group.runs],
        "metric": group.metric,
        "n": group.n,
        "mean": group.mean,
        "sd": group.sd,
        "interval": list(group.interval) if group.interval else None,
        "best": comparison.is_best(group),
        "settings": comparison.group_settings(group),
        **({"out_of_fold": [found.record() for found in group.out_of_fold]} if group.out_of_fold else {}),
    }


def to_json(comparison: Comparison) -> str:
    return json.dumps(records(comparison), indent=2, ensure_ascii=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return one line for each run; those of its group (n, mean, sd, interval) stand at its end."""
    table = records(comparison)
    groups = {group["group"]: group for group in table["groups"]}
    lines = []
    for run in table["runs"]:
        group = groups[run["group"]]
        low, high = group["interval"] or (None, None)
        of_group = {f"group_{key}": group[key] for key in ("n", "mean", "sd")}
        own = run.pop("settings")  # of another data set, say, it has other keys than the best run
        settings = {key: plain(own[key]) if key in own else "" for key in comparison.keys}
        lines.append({**run, **settings, **of_group, "group_low": low, "group_high": high})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]) if lines else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def to_markdown(comparison: Comparison) -> str:
    parts = []
    if comparison.with_seeds:
        parts.append(
            _markdown(_group_head(comparison), [_group_cells(comparison, g) for g in comparison.groups])
        )
    rows = [[*_run_cells(comparison, run), settings_text(comparison.told(run))] for run in comparison.runs]
    parts.append(_markdown([*_run_head(comparison), "differs in"], rows))
    return "\n".join([*parts, *[f"{printable(note)}\n" for note in notes(comparison)]])


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader of the table must know."""
    found = ["* best"] if comparison.best else []
    if comparison.with_seeds:
        found.append(
            f"95 % interval of the mean over {comparison.repeats} (t distribution), of finished runs."
        )
    several = len(comparison.groups) > 1
    for group in comparison.groups:
        name = f"{configuration_text(comparison, group)}: " if several else ""
        found += [f"{name}{each.text}" for each in group.out_of_fold]
    if comparison.usual:
        found.append(f"Unless a row says otherwise: {settings_text(comparison.usual)}")
    if comparison.stand_ins:
        found.append(f"Values with a name beside them are not {comparison.metric}: their runs have none.")
    return found


def print_table(comparison: Comparison) -> None:
    """Print groups and runs to the terminal, as wide as it is."""
    console = wide_enough(Console())
    if comparison.with_seeds:
        head, rows = _group_head(comparison), [_group_cells(comparison, g) for g in comparison.groups]
        console.print(_fit(head, rows, console.width, right=4))
        console.print()
    head = [*_run_head(comparison), "differs in"]
    rows = [[*_run_cells(comparison, run), settings_text(comparison.told(run))] for run in comparison.runs]
    console.print(
        _fit([*head[1:5], head[0], head[5]], [[*r[1:5], r[0], r[5]] for r in rows], console.width, 3)
    )
    for note in notes(comparison):
        console.print(Text(printable(note), style="dim"))


def _run_head(comparison: Comparison) -> list[str]:
    return ["run", comparison.metric, "epochs", "images/s", "status"]


def _run_cells(comparison: Comparison, run: Run) -> list[str]:
    score, speed = comparison.scores[run.path], run.images_per_second
    mark = " *" if score is not None and score == comparison.best else ""
    epochs = "" if run.epochs is None else str(run.epochs)
    value = score_text(score, comparison.metric) + mark
    return [run.name, value, epochs, "" if speed is None else f"{speed:,.0f}", run.status]


def _group_head(comparison: Comparison) -> list[str]:
    return [f"mean {comparison.metric}", "sd", "95 % interval", "n", "configuration"]


def _group_cells(comparison: Comparison, group: Group) -> list[str]:
    mark = " *" if comparison.is_best(group) else ""
    settings = configuration_text(comparison, group)
    spread = spread_text(group.sd, group.metric), interval_text(group.interval, group.metric)
    return [mean_text(group, comparison.metric) + mark, *spread, seeds_text(group), settings]


def _fit(head: list[str], rows: list[list[str]], width: int, right: int) -> Table:
    """Lay a table out: the first four columns keep their width, those after them give way.

    Where little is left, the last column stands below the one before it, and columns that matter less go.

    Args:
        head: Names of the columns.
        rows: Cells.
        width: Of the terminal.
        right: How many columns are flush right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    wide = [max(map(cell_len, column)) + 2 for column in zip(head, *rows, strict=True)]
    left = width - sum(wide[:_FIXED])
    if len(head) > _FIXED + 1 and left < wide[_FIXED] + _LEAST:
        head = [*head[:_FIXED], ", ".join(head[_FIXED:])]
        rows = [[*row[:_FIXED], "\n".join(row[_FIXED:]).rstrip()] for row in rows]
    shown = list(range(len(head)))
    for column in (2, 1):  # images per second, then epochs; the interval, then sd
        if left < _LEAST:
            shown.remove(column)
            left += wide[column]
    table = Table(box=None, pad_edge=False)
    for i in shown:
        fixed = i < _FIXED
        table.add_column(
            Text(head[i]), justify="right" if i < right else "left", no_wrap=fixed, overflow="fold"
        )
        table.columns[-1].min_width = wide[i] - 2 if fixed else None
    for row in rows:
        table.add_row(*[Text(row[i], style=_STYLES.get(row[i], "")) for i in shown])
    return table


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
