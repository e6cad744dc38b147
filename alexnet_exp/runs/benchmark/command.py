"""`alexnet-exp benchmark`: measure training steps and start-up on this machine.

Prints a table and writes a chart and result.json; the scripts of benchmarks/ call it with their own measurements.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.schema import Rule, check_rules, checked, choice
from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark.settings import Benchmark, as_list, several
from alexnet_exp.settings import flat, parse
from alexnet_exp.tracking.environment import provenance
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.terminal import print_fitted

if TYPE_CHECKING:
    from alexnet_exp.runs.benchmark.subject import Subject
    from alexnet_exp.runs.benchmark.timing import Row

    Measurement = Callable[[Subject], list[Row]]


def _measure_step(subject: Subject) -> list[Row]:
    from alexnet_exp.runs.benchmark.step import measure_step

    return measure_step(subject)


def _measure_startup(subject: Subject) -> list[Row]:
    from alexnet_exp.runs.benchmark.startup import measure_startup

    return measure_startup(subject)


# Values of `what`. They import torch when called, so that errors in settings are reported without waiting for it.
MEASUREMENTS: dict[str, Measurement] = {"step": _measure_step, "startup": _measure_startup}
_FORMER = ("baseline", "lrn", "workers")  # now settings of the scripts; recorded configs may contain them


def benchmark(
    config: dict[str, Any],
    overrides: list[str],
    run_dir: Path,
    command: str,
    measurements: Mapping[str, Measurement] = MEASUREMENTS,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, Any]:
    """Measure, print a table, draw a chart, and write result.json.

    Args:
        config: Keys of conf/benchmark.yaml, including those of a run.
        overrides: Overrides on the command line.
        run_dir: Directory of result.json and figures/benchmark.png.
        command: The command line, for the record.
        measurements: Choices of `what`.
        rules: Of further settings, by dotted key.

    Returns:
        The content of result.json.

    Raises:
        UserError: Illegal setting, or a device that is not available.
    """
    rules = {"what": several(choice("all", *measurements)), **(rules or {})}
    further = {key: config[key] for key in dict.fromkeys(key.partition(".")[0] for key in rules)}
    check_rules(flat(further, whole=rules), rules)
    options = checked(Benchmark, config)
    groups = {*further, *(each.name for each in fields(Benchmark))}
    run = check_config({k: v for k, v in config.items() if k not in (*groups, *_FORMER)})
    if run.resume or run.ckpt:
        raise UserError("A benchmark starts a new run: leave out resume= and ckpt=.")
    import torch

    device = _device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    from alexnet_exp.runs.benchmark.subject import Subject

    # What is left describes the run to measure.
    own = [override for override in overrides if parse(override).group not in groups]
    what = as_list(options.what)
    chosen = {kind: measure for kind, measure in measurements.items() if kind in what or "all" in what}
    console = Console()
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_benchmark_") as scratch, logging_to(None):
        subject = Subject(options, own, device, Path(scratch), further=further)
        rows = _measure(chosen, subject, console)
    if subject.repeats < 5:
        subject.notes.append(f"repeats={subject.repeats}: medians of fewer than five runs are unreliable.")
    subject.notes[:] = dict.fromkeys(subject.notes)  # a repeated measurement repeats its notes
    for note in subject.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    result = {
        "status": "finished",
        "command": command,
        "settings": {k: v for k, v in config.items() if k != "paths"},
        "rows": rows,
        "notes": subject.notes,
        **provenance(),
    }
    _record(result, run_dir, console)
    return result


def _record(result: dict[str, Any], run_dir: Path, console: Console) -> None:
    run = RunDirectory(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    draw_rows(result["rows"], run.path / "figures" / "benchmark.png")
    run.write_result(result)
    console.print(f"\nresult: {run_dir / 'result.json'}", highlight=False, soft_wrap=True)


def _device(wanted: str) -> str:
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise UserError("device=cuda: no GPU was found; set device=cpu.")
    return ("cuda" if has_gpu else "cpu") if wanted == "auto" else wanted


def _measure(measurements: Mapping[str, Measurement], subject: Subject, console: Console) -> list[Row]:
    """Run and print the measurements in turn; one that fails with a UserError becomes a note.

    Raises:
        UserError: The first one, if every measurement failed.
    """
    rows: list[Row] = []
    refusals: list[UserError] = []
    for kind, measure in measurements.items():
        try:
            measured = _undisturbed(kind, measure, subject)
        except UserError as error:
            refusals.append(error)
            subject.notes.append(f"{kind} is not measured: {error}")
            continue
        print_rows(measured, console)
        rows += measured
    if not rows:
        raise refusals[0]
    return rows


def _undisturbed(kind: str, measure: Measurement, subject: Subject) -> list[Row]:
    """Measure; if other processes competed for the cores, add a note, repeat, and keep the less disturbed rows."""
    import torch

    from alexnet_exp.runs.benchmark.timing import OtherWork

    tries: list[tuple[float, list[Row]]] = []
    while len(tries) < 2:
        with OtherWork() as other:
            measured = measure(subject)
        tries.append((other.cores, measured))
        if not other.disturbs(torch.get_num_threads()):
            break
    cores, measured = min(tries, key=lambda each: each[0])
    if len(tries) > 1:
        subject.notes.append(
            f"The machine was busy: other processes used {tries[0][0]:.1f} of {other.num_cores} cores while {kind} was "
            f"measured, and {tries[1][0]:.1f} in the repetition; the figures are from the quieter one ({cores:.1f})."
        )
    return measured


# ------------------------------------------------------------------------------------------------ table and chart

# Columns of the table as (key of a row, heading, format); only those that a comparison has are printed.
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("median_seconds", "ms", lambda v: _milliseconds(v)),  # defined below
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
    """Print a table per comparison."""
    for what, group in _groups(rows):
        ratio = next((row["ratio_is"] for row in group if row.get("ratio_is")), None)
        console.print(f"\n[bold]{what}[/]", highlight=False)
        if ratio:
            console.print(f"ratio: {ratio}", highlight=False)
        _print_group(group, console)


def _print_group(group: list[Row], console: Console) -> None:
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in group)]
    head = ["", *(heading for _, heading, _ in shown)]
    rows = []
    for row in group:
        cells = [write(row[key]) if row.get(key) is not None else "" for key, _, write in shown]
        rows.append([row["case"], row.get("error", cells[0]), *cells[1:]])
    if any(row.get("n", 1) > 1 for row in group):
        head.insert(2, "+-")
        for row, line in zip(group, rows, strict=True):
            line.insert(2, f"{row['sd_seconds'] / row['median_seconds']:.0%}" if row.get("n", 1) > 1 else "")
    print_fitted(head, rows, console, numbers=range(1, len(head)))


def draw_rows(rows: list[Row], path: Path) -> None:
    """Draw one bar per case and one panel per comparison, in images per second or else milliseconds."""
    from alexnet_exp.report.figures import INK, MUTED, TRAIN, page

    # Cases that ran out of memory have no n, and no bar.
    groups = [(what, group) for what, rows in _groups(rows) if (group := [r for r in rows if "n" in r])]
    heights = [0.9 + 0.3 * len(group) for _, group in groups]
    with page(path, 8.0, sum(heights)) as figure:
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (what, group) in zip(axes, groups, strict=True):
            speed = all("images_per_second" in row for row in group)
            values = [row["images_per_second"] if speed else 1e3 * row["median_seconds"] for row in group]
            bars = ax.barh(range(len(group)), values, color=TRAIN, height=0.7)
            texts = [f"{v:,.0f}" if speed and v >= 100 else f"{v:,.1f}" for v in values]
            ax.bar_label(bars, texts, padding=3, color=INK, fontsize=9)
            ax.set_yticks(range(len(group)), [row["case"] for row in group])
            ax.invert_yaxis()
            ax.margins(x=0.15)
            ax.set_xticks([])
            ax.spines[["top", "right", "bottom"]].set_visible(False)
            unit = "images/s, higher is better" if speed else "ms, lower is better"
            ax.set_title(what, loc="left", color=INK)
            ax.set_title(unit, loc="right", color=MUTED, fontsize=9)


def _groups(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    return [(what, list(group)) for what, group in itertools.groupby(rows, key=lambda row: row["what"])]


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
