"""Output of `alexnet-exp reproduce`: the table on the terminal and reproduce.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from alexnet_exp.errors import printable, shell_command
from alexnet_exp.report.details import published_text
from alexnet_exp.report.html import quantity, write_html
from alexnet_exp.runs.compare.table import interval_text, spread_text, value_text
from alexnet_exp.runs.reproduce.effects import Effect
from alexnet_exp.runs.reproduce.evidence import Figure
from alexnet_exp.runs.reproduce.rows import Row
from alexnet_exp.tracking.terminal import print_fitted

HEAD = ["result", "metric", "published", "here", "sd", "95 % interval", "n", "difference", "verdict", "cost"]


def cells(figure: Figure, estimate: str = "") -> list[str]:
    """Return the table cells of a figure, in the order of HEAD.

    Args:
        figure: Published and measured figure.
        estimate: Estimated cost, shown if nothing has been measured.
    """
    verdict = figure.difference_text, figure.verdict, figure.cost or estimate
    return [figure.name, figure.entry["metric"], *_values(figure), str(figure.ours.n), *verdict]


def _values(figure: Figure) -> tuple[str, str, str, str]:
    """Return the published value, the mean of ours, its sd and its interval."""
    ours, metric = figure.ours, figure.entry["metric"]
    if not isinstance(figure, Effect):
        here = "–" if ours.mean is None else value_text(ours.mean, metric)
        return (
            published_text(figure.entry),
            here,
            spread_text(ours.sd, metric),
            interval_text(ours.interval, metric),
        )
    # A factor, or a difference of accuracies, which as a percentage would look like an accuracy.
    scale, unit = (100, "points") if figure.is_share else (1, "times")

    def shown(*values: float | None) -> str:
        return " to ".join("–" if value is None else f"{scale * value:.2f}" for value in values)

    published = f"{scale * figure.entry['value']:g} {unit}"
    if ours.mean is None:
        return published, "–", "–", "–"
    return published, f"{shown(ours.mean)} {unit}", shown(ours.sd), shown(*ours.interval or (None,))


def command_of(row: Row, seeds: int) -> str:
    return shell_command(["alexnet-exp", "reproduce", row.name, f"seeds={seeds}", *row.settings])


def print_figures(figures: Sequence[tuple[Figure, str]]) -> None:
    """Print the table, followed by caveats."""
    console = Console()
    rows = [cells(figure, estimate) for figure, estimate in figures]
    print_fitted(
        HEAD, rows, console, numbers=range(2, 8), spare=(9, 4, 5, 1), prose=8, elsewhere=" (see the page)"
    )
    for figure, _ in figures:
        for note in figure.notes:
            console.print(Text(printable(f"{figure.name}: {note}"), style="dim"))


def print_list(
    rows: Sequence[Row], rates: Mapping[str, float], seeds: int, finished: Mapping[str, int]
) -> None:
    """Print all results with the estimated time of a run on this machine.

    Args:
        rows: In this order.
        rates: Images per second, by name.
        seeds: Number of seeds.
        finished: Finished runs, by name.
    """
    head = ["result", "data", "published", "metric", "images", "FLOP", "one run here", "runs", "finished"]
    table = []
    for row in rows:
        entry = row.published[0]
        flop = "–" if row.flop is None else f"{row.flop:.1e}"
        images = "–" if row.images is None else quantity(row.images)
        cost = images, flop, estimate(row, rates)
        figure = published_text(entry), entry["metric"]
        counts = str(row.runs(seeds)), str(finished.get(row.name, 0))
        table.append([row.name, row.data, *figure, *cost, *counts])
    print_fitted(head, table, Console(), numbers=range(2, 9), spare=(3, 4, 1, 5))


def estimate(row: Row, rates: Mapping[str, float]) -> str:
    """Return the estimated time of a run on this machine, from the measured rate."""
    if row.images is None or row.name not in rates:
        return "–"
    return about(row.images / rates[row.name])


def about(seconds: float) -> str:
    """Format an estimated time with two digits: 'about 3.9 h'."""
    for unit, most, length in (("s", 90, 1), ("min", 5400, 60), ("h", 172_800, 3600)):
        if seconds < most:
            return f"about {seconds / length:.2g} {unit}"
    return (
        f"about {seconds / 86_400:.2g} days" if seconds < 8_640_000 else f"about {seconds / 86_400:,.0f} days"
    )


def write_page(path: Path, figures: Sequence[tuple[Figure, str]], rows: Sequence[Row], seeds: int) -> None:
    """Write reproduce.html."""
    commands = {row.name: command_of(row, seeds) for row in rows}
    shown = [(figure, cells(figure, text), commands[figure.name]) for figure, text in figures]
    write_html(
        path,
        "reproduce.html",
        title="Published results, reproduced",
        chips=[f"seeds={seeds}"],
        shown=shown,
        figures=[each for each in shown if not isinstance(each[0], Effect)],
        effects=[each for each in shown if isinstance(each[0], Effect)],
    )
