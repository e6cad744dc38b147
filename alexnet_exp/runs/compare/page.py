"""Write compare.html: runs side by side on one self-contained page, with overlaid curves."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from alexnet_exp.report.charts import CURVES, Chart, Line, epoch_axis, thin
from alexnet_exp.report.html import write_html
from alexnet_exp.runs.compare import table as compare_text
from alexnet_exp.runs.compare.groups import Comparison
from alexnet_exp.runs.compare.table import configuration_text, plain, settings_text
from alexnet_exp.tracking.run_reader import Point, Run, series


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page.

    Args:
        comparison: What to show.
        path: The file; links to the runs' own reports are relative to it.
    """
    count = len(comparison.runs)
    ended = [run.status for run in comparison.runs]
    others = [f"{ended.count(s)} {s}" for s in dict.fromkeys(ended) if s != "finished"]
    write_html(
        path,
        "compare.html",
        title=f"{count} run{'s' if count > 1 else ''}",
        chips=[
            f"metric={comparison.shown}",
            *([f"where={comparison.where}"] if comparison.where else []),
        ],
        not_finished=", ".join(others),
        comparison=comparison,
        curves=overlaid(comparison),
        settings=["differs in"] if comparison.usual else comparison.keys,
        runs=[
            (run, _link(run, path.parent), comparison.scores[run.path], _settings(comparison, run))
            for run in comparison.runs
        ],
        text=compare_text,
    )


def _link(run: Run, folder: Path) -> str | None:
    """Return the address of a run's own report, if it has one."""
    report = run.path / "report.html"
    # Bytes, because a name that is not valid UTF-8 cannot be quoted as text.
    return quote(os.fsencode(Path(os.path.relpath(report, folder)).as_posix())) if report.exists() else None


def _settings(comparison: Comparison, run: Run) -> list[str]:
    """Return a cell per setting that differs, or a single cell if there are too many."""
    if comparison.usual:
        return [settings_text(comparison.row_settings(run))]
    return [plain(run.differs.get(key, "")) for key in comparison.keys]


MAX_DRAWN = 12  # more curves on one chart are indistinguishable
COLOURS = 8  # see compare.css
COMPARED = ("val/top1", "val/loss", "train/top1", "train/loss")


class Curve(NamedTuple):
    """One line of every chart: a run, or the mean of several."""

    label: str
    style: str
    runs: Sequence[Run]


class Overlay(NamedTuple):
    """Charts with a shared legend, whose entries are a CSS class and a configuration."""

    notes: list[str]
    legend: list[tuple[str, str]]
    charts: list[Chart]


def overlaid(comparison: Comparison) -> Overlay:
    """Return a chart for every compared metric that some run logged.

    Only the metrics of drawn runs are read: reading those of hundreds of runs would dominate the run time.
    """
    few = len(comparison.runs) <= MAX_DRAWN or not comparison.with_seeds
    # A mean is over the finished runs of a configuration; over all if none has finished.
    means = [group.counted or group.runs for group in comparison.groups]
    candidates = iter([[run] for run in comparison.runs] if few else means)
    chosen = list(islice(filter(_has_epochs, candidates), MAX_DRAWN))
    # The rest is only counted: looking for epochs would read its metrics.csv.
    count = len(chosen) + len(list(candidates))
    curves, legend = _curves(comparison, chosen)
    requested = [comparison.metric] if comparison.metric.startswith(("val/", "train/")) else []
    charts = [_chart(metric, curves) for metric in dict.fromkeys([*COMPARED, *requested])]
    return Overlay(_notes(comparison, few, count), legend, [chart for chart in charts if chart])


def _has_epochs(runs: list[Run]) -> bool:
    return any("epoch" in row for run in runs for row in run.rows)


def _notes(comparison: Comparison, few: bool, count: int) -> list[str]:
    notes = []
    if comparison.with_seeds:
        same = "Runs of one configuration share a colour."
        mean = "Each curve is the mean over the finished seeds of a configuration; over all if none has finished."
        notes.append(same if few else mean)
    if count > MAX_DRAWN:
        notes.append(f"The first {MAX_DRAWN} of {count} are drawn.")
    return notes


def _curves(comparison: Comparison, chosen: list[list[Run]]) -> tuple[list[Curve], list[tuple[str, str]]]:
    """Assign a colour to each configuration; with more than COLOURS, the rest are dashed."""
    group_of = {run.path: group for group in comparison.groups for run in group.runs}
    curves: list[Curve] = []
    styles: dict[int, str] = {}  # by id, since a Group has no hash
    legend = []
    for runs in chosen:
        group = group_of[runs[0].path]
        if id(group) not in styles:
            place = len(styles)
            styles[id(group)] = f"c{place % COLOURS}" + (" faint" if place >= COLOURS else "")
            legend.append((styles[id(group)], configuration_text(comparison, group)))
        settings = comparison.row_settings(runs[0]) if len(runs) == 1 else comparison.group_settings(group)
        label = settings_text(_shorten_keys(settings, comparison.keys)) or runs[0].name
        curves.append(Curve(label, styles[id(group)], runs))
    return curves, legend


def _shorten_keys(settings: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Shorten keys to their last part where that is unique: lr for optimizer.lr."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        short if last.count(short := key.rpartition(".")[2]) == 1 else key: value
        for key, value in settings.items()
    }


def _chart(metric: str, curves: list[Curve]) -> Chart | None:
    lines = [Line(curve.label, curve.style, thin(_by_epoch(curve.runs, metric))) for curve in curves]
    lines = [line for line in lines if line.finite][::-1]  # draw the best last, on top
    if not lines:
        return None
    title = CURVES[metric].alone if metric in CURVES else metric
    return Chart(title, metric, lines, epoch_axis(lines))


def _by_epoch(runs: Sequence[Run], metric: str) -> list[Point]:
    """Return the mean of a metric's finite values by epoch; steps are not comparable across batch sizes."""
    values: dict[float, list[float]] = {}
    for run in runs:
        # The last value of an epoch, which may have several validations.
        last = {p.epoch: p.value for p in series(run.rows, metric) if p.epoch is not None}
        for epoch, value in last.items():
            values.setdefault(epoch, []).append(value)
    return [Point(epoch, epoch, _mean(found)) for epoch, found in sorted(values.items())]


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else math.nan
