"""The curves of several runs on one chart: each run by itself, or the mean over the seeds of a configuration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from alexnet_exp.tracking.compare_groups import Comparison
from alexnet_exp.tracking.compare_runs import Run
from alexnet_exp.tracking.compare_text import configuration_text, is_share, settings_text
from alexnet_exp.tracking.markup import Html, join, number, percent, tag
from alexnet_exp.tracking.records import Point, finite, series
from alexnet_exp.tracking.report_charts import WIDTH, Axis, Line, chart, thin, x_axis

MAX_DRAWN = 12  # more curves on one chart cannot be told apart
COLOURS = 8  # see compare.css
CHARTS = {
    "val/top1": "Validation accuracy",
    "val/loss": "Validation loss",
    "train/top1": "Training accuracy",
    "train/loss": "Training loss",
}


class Curve(NamedTuple):
    """What one line stands for: a run, or several whose mean it is."""

    label: str
    style: str
    runs: Sequence[Run]


def overlaid(comparison: Comparison) -> Html:
    """Return the charts of all metrics that some run logged, below one legend.

    Only the metrics of what is drawn are read: those of hundreds of runs would take longer than all the rest.
    """
    few = len(comparison.runs) <= MAX_DRAWN or not comparison.with_seeds
    left = iter([[run] for run in comparison.runs] if few else _by_group(comparison))
    drawn = list(islice(filter(_has_epochs, left), MAX_DRAWN))
    if not drawn:
        return tag("p", "No metric was logged.")
    count = len(drawn) + len(list(left))
    curves, legend = _curves(comparison, drawn)
    metrics = dict(CHARTS)
    if comparison.metric.startswith(("val/", "train/")):
        metrics.setdefault(comparison.metric, comparison.metric)
    charts = [_chart(title, metric, curves) for metric, title in metrics.items()]
    told = [tag("p", " ".join(_notes(comparison, few, count))), tag("ul", *legend, class_="legend")]
    return join([*told, tag("div", *charts, class_="charts shared")])


def _by_group(comparison: Comparison) -> list[list[Run]]:
    """Return the runs that each mean is of; all of a configuration's where none has finished yet."""
    return [group.counted or group.runs for group in comparison.groups]


def _has_epochs(runs: list[Run]) -> bool:
    return any("epoch" in row for run in runs for row in run.rows)


def _notes(comparison: Comparison, few: bool, count: int) -> list[str]:
    notes = []
    if comparison.with_seeds:
        same = "Runs of one configuration have one colour."
        mean = (
            "Each curve is the mean over the seeds of one configuration that finished; over all if none has."
        )
        notes.append(same if few else mean)
    if count > MAX_DRAWN:
        notes.append(f"The first {MAX_DRAWN} of {count} are drawn.")
    return notes


def _curves(comparison: Comparison, drawn: list[list[Run]]) -> tuple[list[Curve], list[Html]]:
    """Give each configuration a colour; those beyond the colours are dashed."""
    group_of = {run.path: group for group in comparison.groups for run in group.runs}
    curves: list[Curve] = []
    styles: dict[int, str] = {}
    legend = []
    for runs in drawn:
        group = group_of[runs[0].path]
        if id(group) not in styles:
            place = len(styles)
            styles[id(group)] = f"c{place % COLOURS}" + (" faint" if place >= COLOURS else "")
            key = tag("i", class_=f"key {styles[id(group)]}")
            legend.append(tag("li", key, configuration_text(comparison, group)))
        settings = comparison.told(runs[0]) if len(runs) == 1 else comparison.group_settings(group)
        label = settings_text(_shortened(settings, comparison.keys)) or runs[0].name
        curves.append(Curve(label, styles[id(group)], runs))
    return curves, legend


def _shortened(settings: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return settings by the last part of their keys where that says enough: lr for optimizer.lr."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        short if last.count(short := key.rpartition(".")[2]) == 1 else key: value
        for key, value in settings.items()
    }


def _chart(title: str, metric: str, curves: list[Curve]) -> Html | None:
    lines = [Line(curve.label, curve.style, thin(_by_epoch(curve.runs, metric))) for curve in curves]
    lines = [line for line in lines if finite(line.points)][::-1]  # the best is drawn last, on top
    if not lines:
        return None
    epochs = {point.step: point.step for line in lines for point in line.points}
    low, high = min(epochs), max(epochs)
    x = x_axis(low, high, epochs)
    if len(epochs) == 1:
        x = Axis(low, high, WIDTH, [(low, number(low))], "epoch")
    return chart(title, lines, percent if is_share(metric) else number, x, None)


def _by_epoch(runs: Sequence[Run], metric: str) -> list[Point]:
    """Return the mean of a metric by epoch, over what is finite; steps differ between runs with other batches."""
    values: dict[float, list[float]] = {}
    for run in runs:
        last = {p.epoch: p.value for p in series(run.rows, metric) if p.epoch is not None}
        for epoch, value in last.items():
            values.setdefault(epoch, []).append(value)
    return [Point(epoch, epoch, _mean(found)) for epoch, found in sorted(values.items())]


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else math.nan
