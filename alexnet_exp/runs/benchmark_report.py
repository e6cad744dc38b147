"""The table on the terminal, 80 columns wide, and the bar chart of a benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from alexnet_exp.runs.timing import Row
from alexnet_exp.tracking.figures import INK, MUTED, STYLE, TRAIN

# Columns beside the case, shown where a comparison has them: key of the row, heading, how it is written.
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("median_seconds", "ms", lambda v: _milliseconds(v)),
    ("images_per_second", "images/s", lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}"),
    ("flops_per_second", "GFLOP/s", lambda v: f"{v / 1e9:,.0f}"),
    ("peak_share", "peak", lambda v: f"{v:.0%}"),
    ("peak_memory", "MiB", lambda v: f"{v / 2**20:,.0f}"),
    ("kept", "kept", lambda v: f"{v:.1f}"),
    ("input_share", "waits", lambda v: f"{v:.1%}"),
    ("overhead_microseconds", "us a step", lambda v: f"{v:+,.0f}"),
    ("overhead", "overhead", lambda v: f"{v:+.1%}"),
    ("ratio", "ratio", lambda v: f"{v:.2f}"),
)


def print_rows(rows: list[Row], console: Console) -> None:
    """Print a table for every comparison."""
    for what, group in _groups(rows):
        ratio = next((row["ratio_is"] for row in group if row.get("ratio_is")), None)
        console.print(f"\n[bold]{what}[/]", highlight=False)
        if ratio:
            console.print(f"ratio: {ratio}", highlight=False)
        console.print(_table(group), highlight=False)


def _table(group: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold", min_width=24)
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in group)]
    repeated = any(row.get("n", 1) > 1 for row in group)
    for i, (_, heading, _) in enumerate(shown):
        table.add_column(heading, justify="right", no_wrap=True)
        if i == 0 and repeated:
            table.add_column("+-", justify="right", no_wrap=True)
    for row in group:
        cells = [write(row[key]) if row.get(key) is not None else "" for key, _, write in shown]
        spread = f"{row['sd_seconds'] / row['median_seconds']:.0%}" if row.get("n", 1) > 1 else ""
        if "error" in row:
            cells[0] = row["error"]
        table.add_row(row["case"], cells[0], *([spread] if repeated else []), *cells[1:])
    return table


def draw_rows(rows: list[Row], path: Path) -> Path:
    """Draw a bar for every case, one panel for each comparison: images per second, or else milliseconds."""
    groups = [(what, group) for what, rows in _groups(rows) if (group := [r for r in rows if "n" in r])]
    heights = [0.9 + 0.3 * len(group) for _, group in groups]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, sum(heights)), dpi=120, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (what, group) in zip(axes, groups, strict=True):
            _panel(ax, what, group)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    return path


def _panel(ax: matplotlib.axes.Axes, what: str, group: list[Row]) -> None:
    speed = all("images_per_second" in row for row in group)
    values = [row["images_per_second"] if speed else 1e3 * row["median_seconds"] for row in group]
    names = [row["case"] for row in group]
    bars = ax.barh(range(len(group)), values, color=TRAIN, height=0.7)
    texts = [f"{v:,.0f}" if speed and v >= 100 else f"{v:,.1f}" for v in values]
    ax.bar_label(bars, texts, padding=3, color=INK, fontsize=9)
    ax.set_yticks(range(len(group)), names)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xticks([])
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    unit = "images/s, more is better" if speed else "ms, less is better"
    ax.set_title(what, loc="left", color=INK)
    ax.set_title(unit, loc="right", color=MUTED, fontsize=9)


def _groups(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    return [(what, list(group)) for what, group in itertools.groupby(rows, key=lambda row: row["what"])]


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
