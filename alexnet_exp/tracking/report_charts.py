"""Draw the curves of a run as inline SVG that reads without a script and tells values under the pointer.

The drawing is stretched to the page's width, so all text around it is HTML: it keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from alexnet_exp.tracking.markup import Html, join, number, percent, tag
from alexnet_exp.tracking.records import Point, Row, finite, series

WIDTH, HEIGHT = 1000, 400  # of the SVG's own coordinates
MAX_POINTS = 400
Formatter: TypeAlias = Callable[[float], str]


@dataclass
class Line:
    """Hold one curve: legend label, CSS class, points in order of steps."""

    label: str
    style: str
    points: list[Point]

    @property
    def per_step(self) -> bool:
        """Return whether the values were logged within epochs."""
        return self.style.startswith("step")


@dataclass
class Axis:
    """Map values from `low`..`high` to 0..`length` and name the ticks."""

    low: float
    high: float
    length: int
    ticks: list[tuple[float, str]]
    unit: str = ""
    upwards: bool = False

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.length * (1 - share if self.upwards else share), 2)

    def place(self, value: float) -> str:
        """Return the position as a CSS percentage."""
        return f"{100 * self(value) / self.length:.2f}%"


LOSS = [
    ("train/loss_step", "train, by step", "step behind"),
    ("train/loss", "train", "train"),
    ("val/loss", "validation", "val"),
]
ACCURACY = [
    ("train/top5", "train top-5", "train faint"),
    ("val/top5", "validation top-5", "val faint"),
    ("train/top1", "train top-1", "train"),
    ("val/top1", "validation top-1", "val"),
]
CHARTS: list[tuple[str, list[tuple[str, str, str]], Formatter, bool]] = [
    ("Loss", LOSS, number, False),
    ("Accuracy", ACCURACY, percent, False),
    ("Learning rate", [("lr", "lr", "step")], number, True),
    ("Images per second", [("images_per_second", "training", "step")], number, True),
]


def curves(rows: list[Row], best_step: float | None = None) -> Html:
    """Return the charts of all metrics that have at least one finite value; empty markup without any."""
    ends = epoch_ends(rows)
    found = [(title, _lines(rows, wanted), text, small) for title, wanted, text, small in CHARTS]
    steps = [point.step for _, lines, _, _ in found for line in lines for point in line.points]
    if not steps:
        return Html()
    x = x_axis(min(steps), max(steps), ends)
    large = [
        chart(title, lines, text, x, best_step) for title, lines, text, small in found if lines and not small
    ]
    below = [chart(title, lines, text, x, None) for title, lines, text, small in found if lines and small]
    grids = [(large, "charts"), (below, "charts small")]
    return join(tag("div", *charts, class_=name) for charts, name in grids if charts)


def _lines(rows: list[Row], wanted: list[tuple[str, str, str]]) -> list[Line]:
    lines = [Line(label, style, thin(series(rows, metric))) for metric, label, style in wanted]
    return [line for line in lines if finite(line.points)]


def epoch_ends(rows: list[Row]) -> dict[float, float]:
    """Return the step at which each epoch ended, as far as an epoch's metrics were logged."""
    ends: dict[float, float] = {}
    for metric, _, style in (*LOSS, *ACCURACY):
        if not style.startswith("step"):
            for point in series(rows, metric):
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
            rest = f"{len(bad)} of {len(points)} values are not finite, the first at step {bad[0].step:,.0f}."
            sentences.append(f"{metric}: {rest}")
    return sentences


def chart(title: str, lines: list[Line], text: Formatter, x: Axis, best_step: float | None) -> Html:
    """Return one figure: legend with the last values, plot with labelled axes, places to hover."""
    y = y_axis([point.value for line in lines for point in finite(line.points)], text)
    drawing = [
        _grid(y),
        _best(best_step, x),
        *[_path(line, x, y) for line in lines],
        *_stops(lines, x, y, text),
    ]
    summary = "; ".join(f"{line.label}: last value {text(finite(line.points)[-1].value)}" for line in lines)
    svg = tag(
        "svg",
        *drawing,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}. {summary}",
        tabindex="0",
    )
    plot = tag("div", _labels(y, "y", "top"), svg, _labels(x, "x", "left"), class_="plot")
    heading = tag("h3", title, " ", tag("small", f"by {x.unit}"))
    caption = tag("figcaption", heading, _legend(lines, text, best_step is not None))
    return tag("figure", caption, plot, tag("div", class_="tip", hidden=True), class_="chart")


def thin(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return every n-th point and always the last, at most `most`: what the page tells was logged as told."""
    every = math.ceil(len(points) / most) or 1
    return points[::-every][::-1]


def y_axis(values: list[float], text: Formatter) -> Axis:
    """Return an axis from one round number to another that holds all values."""
    low, high = min(values), max(values)
    step = round_step((high - low) or abs(high) or 1.0, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    short = (lambda value: f"{100 * value:g} %") if text is percent else text
    values = [i * step for i in range(first, last + 1)]
    names = [short(value) for value in values]
    if len(set(names)) < len(names):  # a loss that hardly moves: 2.303 five times
        names = [f"{value:.{max(0, -math.floor(math.log10(step)))}f}" for value in values]
    ticks = list(zip(values, names, strict=True))
    return Axis(ticks[0][0], ticks[-1][0], HEIGHT, ticks, upwards=True)


def x_axis(low: float, high: float, ends: dict[float, float]) -> Axis:
    """Return an axis of steps, labelled with epochs where they end if there are several."""
    epochs = sorted(ends)
    if len(epochs) >= 2:
        every = max(1, round(round_step(epochs[-1] - epochs[0], 6)))
        ticks = [(ends[epoch], number(epoch)) for epoch in epochs if epoch % every == 0]
        return Axis(low, high, WIDTH, ticks, "epoch")
    every = max(1, round(round_step((high - low) or 1.0, 5)))
    marks = range(math.ceil(low / every) * every, math.floor(high) + 1, every)
    return Axis(low, high, WIDTH, [(mark, number(mark)) for mark in marks], "step")


def round_step(span: float, count: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that cuts the span into at most `count` parts."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor * count >= span * (1 - 1e-9))


def _labels(axis: Axis, name: str, side: str) -> Html:
    spans = [tag("span", text, style=f"{side}:{axis.place(value)}") for value, text in axis.ticks]
    return tag("div", *spans, class_=f"{name}-labels", aria_hidden="true")


def _grid(y: Axis) -> Html:
    return tag("path", d="".join(f"M0 {y(value)}H{WIDTH}" for value, _ in y.ticks), class_="grid")


def _best(step: float | None, x: Axis) -> Html | None:
    if step is None or not x.low <= step <= x.high:
        return None
    return tag("path", d=f"M{x(step)} 0V{HEIGHT}", class_="best")


def _path(line: Line, x: Axis, y: Axis) -> Html:
    commands, pen_down = [], False
    for point in line.points:
        if math.isfinite(point.value):
            commands.append(f"{'L' if pen_down else 'M'}{x(point.step)} {y(point.value)}")
        pen_down = math.isfinite(point.value)
    parts = [tag("path", d="".join(commands), class_=f"line {line.style}")]
    if len(line.points) <= 40 and (not line.per_step or len(line.points) == 1):
        parts.append(_dots(line, finite(line.points), x, y))
    return join(parts)


def _dots(line: Line, points: list[Point], x: Axis, y: Axis) -> Html:
    # Circles would be stretched into ellipses; a line of no length with round caps is not.
    marks = "".join(f"M{x(point.step)} {y(point.value)}h.01" for point in points)
    return tag("path", d=marks, class_=f"dot {line.style}")


def _stops(lines: list[Line], x: Axis, y: Axis, text: Formatter) -> list[Html]:
    """Return one invisible bar for each epoch (or step, without epochs) that shows its values on hover."""
    told = [line for line in lines if not line.per_step] or lines
    by_place: dict[float, list[tuple[Line, Point]]] = {}
    for line in told:
        for point in finite(line.points):
            key = point.step if line.per_step or point.epoch is None else point.epoch
            by_place.setdefault(key, []).append((line, point))
    entries = sorted(by_place.values(), key=lambda entry: entry[-1][1].step)
    centres = [x(entry[-1][1].step) for entry in entries]
    borders = [0.0, *[(a + b) / 2 for a, b in pairwise(centres)], float(WIDTH)]
    return [
        _stop(entry, centre, left, right, x, y, text)
        for entry, centre, (left, right) in zip(entries, centres, pairwise(borders), strict=True)
    ]


def _stop(
    entry: list[tuple[Line, Point]],
    centre: float,
    left: float,
    right: float,
    x: Axis,
    y: Axis,
    text: Formatter,
) -> Html:
    point = entry[-1][1]
    where = [] if point.epoch is None else [f"epoch {number(point.epoch)}"]
    if point.step != point.epoch:  # a chart of several runs counts epochs alone
        where.append(f"step {point.step:,.0f}")
    head = " · ".join(where)
    values = [f"{line.label}: {text(point.value)}" for line, point in entry]
    return tag(
        "g",
        tag("rect", x=round(left, 2), y=0, width=round(right - left, 2), height=HEIGHT),
        tag("path", d=f"M{centre} 0V{HEIGHT}", class_="hair"),
        *[_dots(line, [point], x, y) for line, point in entry],
        tag("title", "\n".join([head, *values])),
        class_="stop",
        data_x=f"{centre / WIDTH:.4f}",
    )


def _legend(lines: list[Line], text: Formatter, with_best: bool) -> Html:
    items = [
        tag(
            "li",
            tag("i", class_=f"key {line.style}"),
            line.label,
            " ",
            None if line.per_step and len(lines) > 1 else tag("b", text(finite(line.points)[-1].value)),
        )
        for line in reversed(lines)  # the last drawn lies on top and is the one looked for
    ]
    if with_best:
        items.append(tag("li", tag("i", class_="key best"), "best"))
    return tag("ul", *items, class_="legend")
