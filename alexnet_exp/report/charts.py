"""The table of curves that are drawn together, and the geometry of their charts on HTML pages.

Pages contain hand-written SVG (templates/charts.html): about 100 KB with hover values and a dark theme, where a
plotting library would add megabytes to every page. figures.py draws the same table with matplotlib for figures/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from alexnet_exp.report.html import metric_text, number
from alexnet_exp.tracking.metrics import is_share
from alexnet_exp.tracking.run_reader import Point, Row, finite, series

WIDTH, HEIGHT = 1000, 400  # in SVG units
MAX_POINTS = 400


class Curve(NamedTuple):
    """One metric of a run.

    Args:
        metric: Column of metrics.csv.
        label: Legend text.
        style: CSS classes: `train` and `val` for values per epoch, `step` for values within epochs; `faint` is dashed,
            `behind` pale.
        alone: Title of a chart that compares this metric between runs.
    """

    metric: str
    label: str
    style: str
    alone: str = ""


class Panel(NamedTuple):
    """The curves of one chart, the last on top; a small chart has no PNG and does not mark the best epoch."""

    title: str
    curves: tuple[Curve, ...]
    small: bool = False


PANELS = (
    Panel("Loss", (
        Curve("train/loss_step", "train, by step", "step behind", "Training loss by step"),
        Curve("train/loss", "train", "train", "Training loss"),
        Curve("val/loss", "validation", "val", "Validation loss"),
    )),
    Panel("Accuracy", (
        Curve("train/top5", "train top-5", "train faint", "Training top-5 accuracy"),
        Curve("val/top5", "validation top-5", "val faint", "Validation top-5 accuracy"),
        Curve("train/top1", "train top-1", "train", "Training accuracy"),
        Curve("val/top1", "validation top-1", "val", "Validation accuracy"),
    )),
    Panel("Balanced accuracy and macro F1", (
        Curve("val/macro_f1", "validation macro F1", "val faint", "Validation macro F1"),
        Curve("val/balanced_accuracy", "validation balanced accuracy", "val", "Validation balanced accuracy"),
    ), small=True),
    Panel("Learning rate", (Curve("lr", "lr", "step"),), small=True),
    Panel("Images per second", (Curve("images_per_second", "training", "step"),), small=True),
)  # fmt: skip
CURVES = {curve.metric: curve for panel in PANELS for curve in panel.curves}


@dataclass
class Axis:
    """Map values from `low`..`high` to 0..`length`, with labelled ticks."""

    low: float
    high: float
    length: int
    ticks: list[tuple[float, str]]
    unit: str = ""
    upwards: bool = False

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5  # a single value: in the middle
        return round(self.length * (1 - share if self.upwards else share), 2)

    def percentage(self, value: float) -> str:
        """Return the position as a CSS percentage."""
        return f"{100 * self(value) / self.length:.2f}%"


@dataclass
class Line:
    """A curve on a chart: legend label, CSS classes, points in order of step."""

    label: str
    style: str
    points: list[Point]

    @property
    def per_step(self) -> bool:
        """Whether the values were logged within epochs."""
        return self.style.startswith("step")

    @cached_property
    def finite(self) -> list[Point]:
        return finite(self.points)

    @property
    def dotted(self) -> bool:
        """Whether to mark the values with dots: a few values per epoch, or a single one, which makes no line."""
        return (len(self.points) <= 40 and not self.per_step) or len(self.finite) == 1


class Stop(NamedTuple):
    """A vertical strip of the plot that on hover shows a hairline, a dot on each line, and the values."""

    left: float
    width: float
    centre: float
    dots: list[tuple[str, str]]
    text: str


@dataclass
class Chart:
    """A chart as templates/charts.html draws it.

    Args:
        title: Heading.
        metric: Metric of its curves, or one of them; decides whether values are percentages.
        lines: Each with at least one finite value.
        x: Axis of steps or epochs.
        best_step: Step at which the best epoch ended.
        small: Draw it at less height.
    """

    title: str
    metric: str
    lines: list[Line]
    x: Axis
    best_step: float | None = None
    small: bool = False

    def text(self, value: float) -> str:
        return metric_text(self.metric, value)

    @cached_property
    def y(self) -> Axis:
        values = [point.value for line in self.lines for point in line.finite]
        return y_axis(values, is_share(self.metric))

    @property
    def best(self) -> float | None:
        """Position of the best epoch in SVG units, if it lies on the chart."""
        step = self.best_step
        return self.x(step) if step is not None and self.x.low <= step <= self.x.high else None

    def path(self, line: Line) -> str:
        """Return the curve as an SVG path, interrupted where a value is not finite."""
        commands, pen_down = [], False
        for point in line.points:
            if math.isfinite(point.value):
                commands.append(f"{'L' if pen_down else 'M'}{self.x(point.step)} {self.y(point.value)}")
            pen_down = math.isfinite(point.value)
        return "".join(commands)

    def dots(self, points: list[Point]) -> str:
        # The SVG is stretched, which turns circles into ellipses, but not the round caps of zero-length lines.
        return "".join(f"M{self.x(point.step)} {self.y(point.value)}h.01" for point in points)

    def _hover(self, entry: list[tuple[Line, Point]]) -> str:
        """Return epoch and step, then the value of each line."""
        point = entry[-1][1]
        where = [] if point.epoch is None else [f"epoch {number(point.epoch)}"]
        if point.step != point.epoch:  # charts that compare runs have epochs on the x axis
            where.append(f"step {point.step:,.0f}")
        values = [f"{line.label}: {self.text(point.value)}" for line, point in entry]
        return "\n".join([" · ".join(where), *values])

    def stops(self) -> list[Stop]:
        """Return a hover target per epoch, or per step if no line has values per epoch."""
        lines = [line for line in self.lines if not line.per_step] or self.lines
        by_place: dict[float, list[tuple[Line, Point]]] = {}
        for line in lines:
            for point in line.finite:
                place = point.step if line.per_step or point.epoch is None else point.epoch
                by_place.setdefault(place, []).append((line, point))
        entries = sorted(by_place.values(), key=lambda entry: entry[-1][1].step)
        centres = [self.x(entry[-1][1].step) for entry in entries]
        # Each target reaches halfway to its neighbours.
        borders = [0.0, *[(a + b) / 2 for a, b in pairwise(centres)], float(WIDTH)]
        return [
            Stop(
                round(left, 2),
                round(right - left, 2),
                centre,
                [(line.style, self.dots([point])) for line, point in entry],
                self._hover(entry),
            )
            for entry, centre, (left, right) in zip(entries, centres, pairwise(borders), strict=True)
        ]


def run_charts(rows: list[Row], best_step: float | None = None) -> list[Chart]:
    """Return the charts of all metrics with at least one finite value."""
    found = [(panel, lines) for panel in PANELS if (lines := _lines(rows, panel))]
    steps = [point.step for _, lines in found for line in lines for point in line.points]
    if not steps:
        return []
    ends = epoch_ends(rows)
    x = x_axis(min(steps), max(steps), ends)  # shared, so that the charts line up
    return [
        Chart(panel.title, panel.curves[0].metric, lines, x, None if panel.small else best_step, panel.small)
        for panel, lines in found
    ]


def _lines(rows: list[Row], panel: Panel) -> list[Line]:
    lines = [Line(curve.label, curve.style, thin(series(rows, curve.metric))) for curve in panel.curves]
    return [line for line in lines if line.finite]


def epoch_ends(rows: list[Row]) -> dict[float, float]:
    """Return the step at which each epoch ended, for epochs with logged metrics."""
    ends: dict[float, float] = {}
    for metric, curve in CURVES.items():
        for point in [] if curve.style.startswith("step") else series(rows, metric):
            if point.epoch is not None:
                ends[point.epoch] = max(point.step, ends.get(point.epoch, point.step))
    return ends


def not_finite(rows: list[Row]) -> list[str]:
    """Return a sentence for each metric that was NaN or infinite at some step."""
    sentences = []
    for metric in sorted({name for row in rows for name in row} - {"epoch", "step"}):
        points = series(rows, metric)
        bad = [point for point in points if not math.isfinite(point.value)]
        if bad:
            first = f"the first at step {bad[0].step:,.0f}"
            sentences.append(f"{metric}: {len(bad)} of {len(points)} values are not finite, {first}.")
    return sentences


def thin(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return every n-th point up to `most`, always with the last; points are dropped, never averaged."""
    every = math.ceil(len(points) / most) or 1
    return points[::-every][::-1]  # counted from the end, so that the last point is kept


def y_axis(values: list[float], shares: bool = False) -> Axis:
    """Return an axis with round limits that covers all values.

    Args:
        values: One or more, finite.
        shares: Label the ticks as percentages.
    """
    low, high = min(values), max(values)
    step = round_step((high - low) or abs(high) or 1.0, 4)  # values may all be equal, or 0
    # 1e-9: a limit that is a multiple of the step, but for rounding, needs no tick beyond it.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    marks = [i * step for i in range(first, last + 1)]
    names = [f"{100 * mark:g} %" if shares else number(mark) for mark in marks]
    if len(set(names)) < len(names):  # a loss that hardly changes: 2.303 five times
        names = [f"{mark:.{max(0, -math.floor(math.log10(step)))}f}" for mark in marks]
    return Axis(marks[0], marks[-1], HEIGHT, list(zip(marks, names, strict=True)), upwards=True)


def x_axis(low: float, high: float, ends: dict[float, float]) -> Axis:
    """Return an axis of steps, with ticks at the ends of epochs if there are several."""
    epochs = sorted(ends)
    if len(epochs) >= 2:
        every = max(1, round(round_step(epochs[-1] - epochs[0], 6)))
        ticks = [(ends[epoch], number(epoch)) for epoch in epochs if epoch % every == 0]
        return Axis(low, high, WIDTH, ticks, "epoch")
    every = max(1, round(round_step((high - low) or 1.0, 5)))
    marks = range(math.ceil(low / every) * every, math.floor(high) + 1, every)
    return Axis(low, high, WIDTH, [(mark, number(mark)) for mark in marks], "step")


def epoch_axis(lines: Sequence[Line]) -> Axis:
    """Return the axis of lines whose points are epochs; with a single epoch, `x_axis` would count steps."""
    epochs = {point.step: point.step for line in lines for point in line.points}
    low, high = min(epochs), max(epochs)
    if len(epochs) == 1:
        return Axis(low, high, WIDTH, [(low, number(low))], "epoch")
    return x_axis(low, high, epochs)


def round_step(span: float, count: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that divides the span into at most `count` parts."""
    # The ideal step span / count lies between power and 10 * power, so that one of the candidates fits.
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor * count >= span * (1 - 1e-9))
