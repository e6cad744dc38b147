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

from alexnet_exp.report.charts import CURVES, WIDTH, Axis, Chart, Line, thin, x_axis
from alexnet_exp.report.html import number, write_html
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
            f"metric={comparison.metric}",
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
    return quote(os.fsencode(Path(os.path.relpath(report, folder)).as_posix())) if report.exists() else None


def _settings(comparison: Comparison, run: Run) -> list[str]:
    """Return a cell for each setting that differs; one for all where there are many."""
    if comparison.usual:
        return [settings_text(comparison.told(run))]
    return [plain(run.differs.get(key, "")) for key in comparison.keys]


MAX_DRAWN = 12  # more curves on one chart cannot be told apart
COLOURS = 8  # see compare.css
COMPARED = ("val/top1", "val/loss", "train/top1", "train/loss")


class Drawn(NamedTuple):
    """What one line stands for: a run, or several whose mean it is."""

    label: str
    style: str
    runs: Sequence[Run]


class Overlay(NamedTuple):
    """The charts below one legend, each entry a CSS class and a configuration."""

    notes: list[str]
    legend: list[tuple[str, str]]
    charts: list[Chart]


def overlaid(comparison: Comparison) -> Overlay:
    """Return the charts of all metrics that some run logged; none where there is no metric.

    Only the metrics of what is drawn are read: those of hundreds of runs would take longer than all the rest.
    """
    few = len(comparison.runs) <= MAX_DRAWN or not comparison.with_seeds
    left = iter([[run] for run in comparison.runs] if few else _by_group(comparison))
    shown = list(islice(filter(_has_epochs, left), MAX_DRAWN))
    count = len(shown) + len(list(left))
    drawn, legend = _drawn(comparison, shown)
    asked = [comparison.metric] if comparison.metric.startswith(("val/", "train/")) else []
    charts = [_chart(metric, drawn) for metric in dict.fromkeys([*COMPARED, *asked])]
    return Overlay(_notes(comparison, few, count), legend, [chart for chart in charts if chart])


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


def _drawn(comparison: Comparison, shown: list[list[Run]]) -> tuple[list[Drawn], list[tuple[str, str]]]:
    """Give each configuration a colour; those beyond the colours are dashed."""
    group_of = {run.path: group for group in comparison.groups for run in group.runs}
    drawn: list[Drawn] = []
    styles: dict[int, str] = {}
    legend = []
    for runs in shown:
        group = group_of[runs[0].path]
        if id(group) not in styles:
            place = len(styles)
            styles[id(group)] = f"c{place % COLOURS}" + (" faint" if place >= COLOURS else "")
            legend.append((styles[id(group)], configuration_text(comparison, group)))
        settings = comparison.told(runs[0]) if len(runs) == 1 else comparison.group_settings(group)
        label = settings_text(_shortened(settings, comparison.keys)) or runs[0].name
        drawn.append(Drawn(label, styles[id(group)], runs))
    return drawn, legend


def _shortened(settings: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return settings by the last part of their keys where that says enough: lr for optimizer.lr."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        short if last.count(short := key.rpartition(".")[2]) == 1 else key: value
        for key, value in settings.items()
    }


def _chart(metric: str, drawn: list[Drawn]) -> Chart | None:
    lines = [Line(each.label, each.style, thin(_by_epoch(each.runs, metric))) for each in drawn]
    lines = [line for line in lines if line.finite][::-1]  # the best is drawn last, on top
    if not lines:
        return None
    epochs = {point.step: point.step for line in lines for point in line.points}
    low, high = min(epochs), max(epochs)
    x = x_axis(low, high, epochs)
    if len(epochs) == 1:
        x = Axis(low, high, WIDTH, [(low, number(low))], "epoch")
    return Chart(CURVES[metric].alone if metric in CURVES else metric, metric, lines, x)


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
