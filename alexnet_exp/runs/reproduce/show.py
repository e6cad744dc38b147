"""Output of `alexnet-exp reproduce`: the table on the terminal and reproduce.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from alexnet_exp.errors import printable, shell_command
from alexnet_exp.report.details import published_text
from alexnet_exp.report.html import duration, points, quantity, write_html
from alexnet_exp.runs.compare.table import interval_text, spread_text, value_text
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
    ours, metric = figure.ours, figure.entry["metric"]
    here = "–" if ours.mean is None else value_text(ours.mean, metric)
    difference = "–" if figure.difference is None else points(figure.difference)
    spread = spread_text(ours.sd, metric), interval_text(ours.interval, metric)
    cost = cost_text(figure) or estimate
    about = figure.name, metric, published_text(figure.entry)
    return [*about, here, *spread, str(ours.n), difference, figure.verdict, cost]


def cost_text(figure: Figure) -> str:
    """Return the mean cost of a run: images, time, hardware."""
    if not figure.runs:
        return ""
    seconds = sum(run.seconds for run in figure.runs) / len(figure.runs)
    machines = ", ".join(dict.fromkeys(run.machine for run in figure.runs))
    return f"{quantity(figure.runs[0].images)} images, {duration(seconds)} on {machines}"


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


def print_list(rows: Sequence[Row], rates: Mapping[str, float], seeds: Mapping[str, int]) -> None:
    """Print all results with the estimated time of a run on this machine."""
    head = ["result", "data", "published", "metric", "images", "FLOP", "one run here", "seeds here"]
    table = []
    for row in rows:
        entry = row.published[0]
        flop = "–" if row.flop is None else f"{row.flop:.1e}"
        images = "–" if row.images is None else quantity(row.images)
        cost = images, flop, estimate(row, rates)
        figure = published_text(entry), entry["metric"]
        table.append([row.name, row.data, *figure, *cost, str(seeds.get(row.name, 0))])
    print_fitted(head, table, Console(), numbers=range(2, 8), spare=(3, 4, 1, 5))


def estimate(row: Row, rates: Mapping[str, float]) -> str:
    """Return the estimated time of a run on this machine, from the measured rate."""
    if row.images is None or row.name not in rates:
        return "–"
    seconds = row.images / rates[row.name]
    for unit, most, length in (("s", 90, 1), ("min", 5400, 60), ("h", 172_800, 3600)):
        if seconds < most:
            return f"about {seconds / length:.2g} {unit}"
    return (
        f"about {seconds / 86_400:.2g} days" if seconds < 8_640_000 else f"about {seconds / 86_400:,.0f} days"
    )


def write_page(path: Path, figures: Sequence[tuple[Figure, str]], rows: Sequence[Row], seeds: int) -> None:
    """Write reproduce.html."""
    commands = {row.name: command_of(row, seeds) for row in rows}
    write_html(
        path,
        "reproduce.html",
        title="Published results, reproduced",
        chips=[f"seeds={seeds}"],
        head=HEAD[:8],
        figures=[(figure, cells(figure, text), commands[figure.name]) for figure, text in figures],
    )
