"""docs/results.md and the 'Measured:' lines of conf/experiment and conf/sweep, made from the records in results/."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.report.html import duration, is_share, quantity
from alexnet_exp.runs.reproduce import effects
from alexnet_exp.runs.reproduce.effects import Effect
from alexnet_exp.runs.reproduce.evidence import Evidence, Figure, figures, of_records
from alexnet_exp.runs.reproduce.rows import CLAIMS, Row, claim, names, row
from alexnet_exp.runs.reproduce.show import HEAD as COLUMNS
from alexnet_exp.runs.reproduce.show import about, cells

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results"
PAGE = ROOT / "docs" / "results.md"
# Measured before records were kept: what their headers say stays as it is.
WITHOUT_RECORD = ("cifar10_fast_cpu", "stride4_mnist")
HEAD = """\
# Results

Published figures beside ours. `alexnet-exp reproduce NAME` runs a row again ([how](reproduce.md)); the records behind
this page are in [results/](../results/), and `python -m tests.results` writes it from them.

The mean is over seeds; the 95 % interval is that of the mean (t distribution). Verdicts: `within 1 point` of the
published figure; `within interval` if farther away, but inside the interval; `missed: WHY`. A row that has not been run
gives the cost of one seed: images seen in training, FLOP (two per multiply-add, three passes), and a rough estimate of
the time on one CPU core, at the mean rate of the rows that were measured on one ({rate:.0f} GFLOP/s).

"""
_CLAIMS = """\

## Claims

Two forms of one network, compared seed by seed ([how](reproduce.md#claims)): a factor, or a difference in points. A
claim that has not been run gives the cost of all of its runs with three seeds, at most.

"""
_RUNS = """\

## Runs

A `+` after the commit: the checkout held changed or untracked files.

"""


@functools.cache
def rows() -> list[Row]:
    """Return all rows, those on ImageNet last."""
    return sorted(map(row, names()), key=lambda each: (each.data == "imagenet", each.flop))


def of_row(each: Row) -> list[Figure]:
    return figures(each.name, each.published, of_records(RECORDS / each.name))


@functools.cache
def claims() -> list[Effect]:
    """Return what the records of the claims give."""
    return [Effect(claim(name), effects.of_records(RECORDS / name)) for name in CLAIMS]


@functools.cache
def flop_per_second() -> float:
    """Return the mean rate of the rows that were measured on one thread of a CPU."""
    on_one = [(each, run) for each in rows() for run in of_row(each)[0].runs if "1 thread " in run.machine]
    assert on_one
    return sum(each.flop or 0.0 for each, _ in on_one) / sum(run.seconds for _, run in on_one)


def page() -> str:
    """Return the text of docs/results.md."""
    table = [_cells(each, figure) for each in rows() for figure in of_row(each)]
    compared = [cells(found, _cost(found.claim, found.claim.runs(3))) for found in claims()]
    runs = [_run(each.name, run) for each in rows() for run in of_row(each)[0].runs]
    run_head = ["result", "seed", "epochs", "time", "commit", "hardware", "software", "command"]
    runs += [_run(found.name, run) for found in claims() for run in found.runs]
    shown = [*(of_row(each)[0] for each in rows()), *claims()]
    notes = [f"- {figure.name}: {note}\n" for figure in shown for note in figure.notes]
    return (
        HEAD.format(rate=flop_per_second() / 1e9)
        + _markdown(COLUMNS, table)
        + _CLAIMS
        + _markdown(COLUMNS, compared)
        + "".join(["\n" if notes else "", *notes])
        + (_RUNS + _markdown(run_head, runs) if runs else "")
    )


def _cells(each: Row, figure: Figure) -> list[str]:
    line = cells(figure, _cost(each))
    if each.name in WITHOUT_RECORD and not figure.runs:
        line[8] = f"no record yet; measured once, see conf/experiment/{each.name}.yaml"
    return line


def _cost(each: Row, runs: int = 1) -> str:
    assert each.flop is not None and each.images is not None
    images, flop = runs * each.images, runs * each.flop
    return f"{quantity(images)} images, {flop:.1e} FLOP, {about(flop / flop_per_second())} on a core"


def _run(name: str, run: Evidence) -> list[str]:
    facts = [name, str(run.seed), str(run.result["epochs"]), duration(run.seconds), run.commit, run.machine]
    return [*facts, run.software, f"`{run.result['command']}`"]


def _markdown(head: list[str], table: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *table]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def headers() -> dict[Path, str]:
    """Return the text of every experiment and claim with the 'Measured:' line that its records give."""
    found = {}
    for each in rows():
        if each.name not in WITHOUT_RECORD:
            file = conf_dir() / "experiment" / f"{each.name}.yaml"
            found[file] = _with_measured(file.read_text(encoding="utf-8"), measured(of_row(each)))
    for effect in claims():
        file = conf_dir() / "sweep" / f"{effect.name}.yaml"
        found[file] = _with_measured(file.read_text(encoding="utf-8"), measured([effect]), indent=10)
    return found


def measured(found: Sequence[Figure]) -> str:
    """Return what a header says of the records: figures, n and seeds, hardware, versions, commit."""
    if found[0].ours.mean is None:
        return "not yet measured"
    parts = []
    for figure in found:
        ours, metric = figure.ours, figure.entry["metric"]
        assert ours.mean is not None
        digits = 4 if is_share(metric) else 2
        spread = ""
        if ours.interval is not None:
            low, high = ours.interval
            spread = f", sd {ours.sd:.{digits}f}, 95 % interval {low:.{digits}f} to {high:.{digits}f}"
        name = metric if isinstance(figure, Effect) else metric.replace("/", " ")
        parts.append(f"{name} {ours.mean:.{digits}f}{spread}")
    first = found[0]
    seeds = first.by_seed if isinstance(first, Effect) else [run.seed for run in first.runs]
    software, commits = (
        ", ".join(dict.fromkeys(getattr(run, key) for run in first.runs)) for key in ("software", "commit")
    )
    seconds = sum(run.seconds for run in first.runs)
    time = f"{len(first.runs)} runs, {duration(round(seconds))}"
    if not isinstance(first, Effect):
        time = duration(round(seconds / len(first.runs)))
    plural = "s" if len(seeds) > 1 else ""
    numbers = ", ".join(map(str, seeds))
    return (
        f"{'; '.join(parts)} (n = {len(seeds)}, seed{plural} {numbers}); {time} on {first.machines}, {software}, "
        f"commit {commits}"
    ).replace("\N{NO-BREAK SPACE}", " ")


def _with_measured(text: str, measured: str, indent: int = 11) -> str:
    """Replace the line 'Measured:' of a header, and those that continue it."""
    lines = textwrap.wrap(measured, 110)
    comment = "\n".join(
        [f"# {'Measured:':{indent}}{lines[0]}", *(f"# {'':{indent}}{line}" for line in lines[1:])]
    )
    return re.sub(
        r"^# Measured: .*\n(?:#   .*\n)*", lambda _: f"{comment}\n", text, count=1, flags=re.MULTILINE
    )
