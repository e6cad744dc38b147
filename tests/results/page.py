"""docs/results.md and the 'Measured:' lines of conf/experiment, made from the records in results/."""

from __future__ import annotations

import functools
import re
import textwrap
from pathlib import Path

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.report.html import duration, quantity
from alexnet_exp.runs.reproduce.evidence import Evidence, Figure, figures, of_records
from alexnet_exp.runs.reproduce.rows import Row, names, row
from alexnet_exp.runs.reproduce.show import cells

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
gives the cost of one seed: images seen in training, and FLOP (two per multiply-add, three passes).

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


def page() -> str:
    """Return the text of docs/results.md."""
    head = [
        "result",
        "metric",
        "published",
        "here",
        "sd",
        "95 % interval",
        "n",
        "difference",
        "verdict",
        "cost",
    ]
    table = [_cells(each, figure) for each in rows() for figure in of_row(each)]
    runs = [_run(each.name, run) for each in rows() for run in of_row(each)[0].runs]
    run_head = ["result", "seed", "epochs", "time", "commit", "hardware", "software", "command"]
    notes = [f"- {each.name}: {note}\n" for each in rows() for note in of_row(each)[0].notes]
    return (
        HEAD
        + _markdown(head, table)
        + "".join(["\n" if notes else "", *notes])
        + (_RUNS + _markdown(run_head, runs) if runs else "")
    )


def _cells(each: Row, figure: Figure) -> list[str]:
    line = cells(figure, _cost(each))
    if each.name in WITHOUT_RECORD and not figure.runs:
        line[8] = f"no record yet; measured once, see conf/experiment/{each.name}.yaml"
    return line


def _cost(each: Row) -> str:
    return f"{quantity(each.images or 0)} images, {each.flop:.1e} FLOP"


def _run(name: str, run: Evidence) -> list[str]:
    facts = [name, str(run.seed), str(run.result["epochs"]), duration(run.seconds), run.commit, run.machine]
    return [*facts, run.software, f"`{run.result['command']}`"]


def _markdown(head: list[str], table: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *table]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def headers() -> dict[Path, str]:
    """Return the text of every experiment with the 'Measured:' line that its records give."""
    found = {}
    for each in rows():
        if each.name not in WITHOUT_RECORD:
            file = conf_dir() / "experiment" / f"{each.name}.yaml"
            found[file] = _with_measured(file.read_text(encoding="utf-8"), measured(each))
    return found


def measured(each: Row) -> str:
    """Return what a header says of the records: figures, n and seeds, hardware, versions, commit."""
    found = of_row(each)
    if not found[0].runs:
        return "not yet measured"
    parts = []
    for figure in found:
        ours, split = figure.ours, figure.entry["metric"].partition("/")[0]
        assert ours.mean is not None
        spread = (
            "" if ours.interval is None else f", sd {ours.sd:.4f}, 95 % interval {_interval(ours.interval)}"
        )
        parts.append(f"{split} {figure.entry['metric'].partition('/')[2]} {ours.mean:.4f}{spread}")
    runs = found[0].runs
    seeds = ", ".join(str(run.seed) for run in runs)
    machines, software, commits = (
        ", ".join(dict.fromkeys(getattr(run, key) for run in runs))
        for key in ("machine", "software", "commit")
    )
    seconds = duration(round(sum(run.seconds for run in runs) / len(runs)))
    plural = "s" if len(runs) > 1 else ""
    return (
        f"{'; '.join(parts)} (n = {len(runs)}, seed{plural} {seeds}); {seconds} on {machines}, {software}, "
        f"commit {commits}"
    ).replace("\N{NO-BREAK SPACE}", " ")


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _with_measured(text: str, measured: str) -> str:
    lines = textwrap.wrap(measured, 110)
    comment = "\n".join([f"# Measured:  {lines[0]}", *(f"#            {line}" for line in lines[1:])])
    return re.sub(
        r"^# Measured: .*\n(?:#   .*\n)*", lambda _: f"{comment}\n", text, count=1, flags=re.MULTILINE
    )
