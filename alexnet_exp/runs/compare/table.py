"""The comparison as a terminal's table, csv, markdown or json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from alexnet_exp.errors import printable
from alexnet_exp.report.details import published_text
from alexnet_exp.report.html import number, points
from alexnet_exp.report.summary import SPLITS
from alexnet_exp.runs.compare.groups import Comparison, Group
from alexnet_exp.tracking.metrics import is_share
from alexnet_exp.tracking.run_reader import Run, Score
from alexnet_exp.tracking.terminal import print_fitted

_STYLES = {"failed": "red", "interrupted": "yellow", "unfinished": "yellow", "running": "cyan"}


def records(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain values, for JSON."""
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
        "images": comparison.images[run.path],
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
        **({"published": group.published} if group.published else {}),
        "best": comparison.is_best(group),
        "settings": comparison.group_settings(group),
        **({"out_of_fold": [found.record() for found in group.out_of_fold]} if group.out_of_fold else {}),
    }


def to_json(comparison: Comparison) -> str:
    return json.dumps(records(comparison), indent=2, ensure_ascii=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Return one line per run, ending with the statistics of its group (n, mean, sd, interval)."""
    table = records(comparison)
    groups = {group["group"]: group for group in table["groups"]}
    lines = []
    for run in table["runs"]:
        group = groups[run["group"]]
        low, high = group["interval"] or (None, None)
        of_group = {f"group_{key}": group[key] for key in ("n", "mean", "sd")}
        own = run.pop("settings")  # runs on different data sets, say, have different keys
        settings = {key: plain(own[key]) if key in own else "" for key in comparison.keys}
        lines.append({**run, **settings, **of_group, "group_low": low, "group_high": high})
    buffer = io.StringIO()
    # csv's default line ending is \r\n.
    writer = csv.DictWriter(buffer, list(lines[0]) if lines else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def to_markdown(comparison: Comparison) -> str:
    parts = []
    if comparison.with_seeds:
        groups = [_group_cells(comparison, group) for group in comparison.groups]
        parts.append(_markdown(_group_head(comparison), groups))
    if published := published_rows(comparison):
        parts.append(_markdown(PUBLISHED_HEAD, published))
    parts.append(_markdown(_run_head(comparison), [_run_cells(comparison, run) for run in comparison.runs]))
    return "\n".join([*parts, *[f"{printable(note)}\n" for note in notes(comparison)]])


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def notes(comparison: Comparison) -> list[str]:
    """Return footnotes of the table."""
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
    return [*found, *what_values_are(comparison)]


def what_values_are(comparison: Comparison) -> list[str]:
    """Return sentences on the metric of the values, and on the number of images behind them."""
    found = []
    if comparison.stand_ins:
        found.append(f"Values followed by a metric's name are not {comparison.shown}, which their runs lack.")
    elif comparison.shown != comparison.metric:
        found.append(
            f"No run has {comparison.metric}: the values are the best {comparison.shown} of each run."
        )
    if (count := comparison.images_of_all) is not None:
        split = SPLITS.get(comparison.shown.partition("/")[0], "")
        found.append(f"Each value is measured on {count:,} {split} images.")
    return found


def print_table(comparison: Comparison) -> None:
    """Print groups and runs to the terminal, fitted to its width."""
    console = Console()
    if comparison.with_seeds:
        rows = [_group_cells(comparison, group) for group in comparison.groups]
        # On a narrow terminal the interval is left out first, then the sd.
        print_fitted(_group_head(comparison), rows, console, numbers=range(4), spare=(2, 1), prose=4)
        console.print()
    if published := published_rows(comparison):
        print_fitted(PUBLISHED_HEAD, published, console, numbers=range(4), spare=(), prose=4)
        console.print()
    cells = [_run_head(comparison), *(_run_cells(comparison, run) for run in comparison.runs)]
    head, *rows = [[*c[1:-1], c[0], c[-1]] for c in cells]  # long names go behind the numbers
    last = len(head) - 1
    speed, status = last - 3, last - 2
    print_fitted(
        head, rows, console, numbers=range(status), whole=(status,), spare=(speed, speed - 1), prose=last,
        stacked=True, styles=_STYLES,
    )  # fmt: skip
    for note in notes(comparison):
        console.print(Text(printable(note), style="dim"))


def _run_head(comparison: Comparison) -> list[str]:
    images = ["images"] if comparison.with_images else []
    return ["run", comparison.shown, *images, "epochs", "images/s", "status", "differs in"]


def _run_cells(comparison: Comparison, run: Run) -> list[str]:
    score, speed = comparison.scores[run.path], run.images_per_second
    mark = " *" if score is not None and score == comparison.best else ""
    epochs = "" if run.epochs is None else str(run.epochs)
    value = score_text(score, comparison.shown) + mark
    count = comparison.images[run.path]
    images = [f"{count:,}" if count is not None else "–"] if comparison.with_images else []
    settings = settings_text(comparison.row_settings(run))
    return [run.name, value, *images, epochs, "" if speed is None else f"{speed:,.0f}", run.status, settings]


def _group_head(comparison: Comparison) -> list[str]:
    return [f"mean {comparison.shown}", "sd", "95 % interval", "n", "configuration"]


def _group_cells(comparison: Comparison, group: Group) -> list[str]:
    mark = " *" if comparison.is_best(group) else ""
    settings = configuration_text(comparison, group)
    spread = spread_text(group.sd, group.metric), interval_text(group.interval, group.metric)
    return [mean_text(group, comparison.shown) + mark, *spread, seeds_text(group), settings]


PUBLISHED_HEAD = ["published", "here", "difference", "n", "configuration", "source"]


def published_rows(comparison: Comparison) -> list[list[str]]:
    """Return a row per published value of a configuration with a mean; differences are in percentage points."""
    return [
        [
            published_text(entry),
            value_text(group.mean, group.metric),
            points(group.mean - entry["value"]),
            str(group.n),
            configuration_text(comparison, group),
            str(entry["source"]),
        ]
        for group in comparison.groups
        for entry in group.published
        if group.mean is not None
    ]


def value_text(value: float, metric: str | None) -> str:
    return f"{100 * value:.2f} %" if is_share(metric) else number(value)


def score_text(score: Score | None, asked: str) -> str:
    """Format a score; with the metric's name if it is not the requested one."""
    if score is None:
        return "–"
    return value_text(score.value, score.metric) + ("" if score.metric == asked else f" {score.metric}")


def mean_text(group: Group, asked: str) -> str:
    """Format a group's mean; with the metric's name if it is not the requested one."""
    return score_text(None if group.mean is None else Score(group.mean, str(group.metric)), asked)


def seeds_text(group: Group) -> str:
    """Return the number of seeds in the mean, and of all seeds if some are missing."""
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
    """Format a setting as typed; 1.0 and 1 stay distinct, since some settings tell them apart."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(plain, value))}]"
    return str(value)


def settings_text(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={plain(value)}" for key, value in settings.items())


def configuration_text(comparison: Comparison, group: Group) -> str:
    """Describe a configuration by the settings that distinguish it; in words if none does."""
    if settings := comparison.group_settings(group):
        return settings_text(settings)
    if len(comparison.groups) == 1 < len(group.runs):
        return "the same for all runs"
    # Nothing sets it apart because it has the usual value of every setting that differs.
    if comparison.usual and comparison.usual.keys() <= group.runs[0].differs.keys():
        return "as most runs"
    first, more = group.runs[0].name, len(group.runs) - 1
    return f"{first} and {more} more" if more else first
