"""`alexnet-exp benchmark`: how fast this machine runs what this package does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.checks import check_config, shown
from alexnet_exp.config.rules import Rule, at_least, choice, flag, list_of, name, null
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.environment import git_state, hardware, versions
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from alexnet_exp.runs.benchmark_subject import Subject
    from alexnet_exp.runs.timing import Row

KINDS = ("data", "lrn", "step", "overhead", "startup")


def _several(rule: Rule) -> Rule:
    return rule | Rule("a list of them", lambda v: v != [] and list_of(rule).legal(v))


RULES = {
    "what": choice("all", *KINDS)
    | Rule("a list of them", lambda v: v != [] and list_of(choice(*KINDS)).legal(v)),
    "baseline": choice("none", "readme"),
    "repeats": at_least(1),
    "steps": at_least(1),
    "workers": at_least(1),
    "threads": at_least(1) | null,
    "device": choice("auto", "cpu", "cuda"),
    "lrn.batch_size": at_least(1),
    "lrn.compile": flag,
    "step.model": _several(name) | null,
    "step.precision": _several(choice("32-true", "bf16-mixed", "bf16-true", "16-mixed")),
    "step.layout": _several(choice("contiguous", "channels_last")),
    "step.compile": _several(flag),
    "step.batch_size": _several(at_least(1) | choice("auto")) | null,
}
OPTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in RULES))


def benchmark(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> dict[str, Any]:
    """Measure, print a table, draw a chart, and write result.json.

    Args:
        config: Keys of conf/benchmark.yaml, those of a run among them.
        overrides: What the user typed.
        run_dir: Where result.json and figures/benchmark.png go.
        command: The command line, for the record.

    Returns:
        What result.json holds.

    Raises:
        UserError: For an illegal setting, or a device that is not there.
    """
    options = {key: config[key] for key in OPTIONS}
    _check(options)
    check_config({k: v for k, v in config.items() if k not in OPTIONS})
    if config["resume"] or config["ckpt"]:
        raise UserError("A benchmark starts afresh: leave resume= and ckpt= out.")
    import torch

    device = _device(options["device"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    from alexnet_exp.runs.benchmark_report import draw_rows
    from alexnet_exp.runs.benchmark_subject import Subject

    own = [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in OPTIONS]
    console = Console()
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_benchmark_") as scratch, logging_to(None):
        subject = Subject(options, own, device, Path(scratch))
        rows = _measure_all(_chosen(options, overrides), subject, console)
    if subject.repeats < 5:
        subject.notes.append(f"repeats={subject.repeats}: medians of fewer than five runs say little.")
    for note in subject.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    result = _result(command, config, rows, subject.notes)
    run = RunDirectory(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    draw_rows(rows, run.path / "figures" / "benchmark.png")
    run.write_result(result)
    console.print(f"\nresult: {run_dir / 'result.json'}", highlight=False, soft_wrap=True)
    return result


def _check(options: dict[str, Any]) -> None:
    for key, rule in RULES.items():
        group, _, inner = key.partition(".")
        value = options[group][inner] if inner else options[group]
        if not rule.legal(value):
            raise UserError(f"{key}={shown(value)} is not possible: it must be {rule.text}.")


def _chosen(options: dict[str, Any], overrides: list[str]) -> list[str]:
    """Return what to measure, in the order of KINDS; the baseline alone unless `what` was typed beside it."""
    wanted = options["what"] if isinstance(options["what"], list) else [options["what"]]
    kinds = [kind for kind in KINDS if kind in wanted or "all" in wanted]
    if options["baseline"] == "none":
        return kinds
    return [*(kinds if any(o.startswith("what=") for o in overrides) else []), "baseline"]


def _measure_all(kinds: list[str], subject: Subject, console: Console) -> list[Row]:
    """Measure and print one kind after another; one that cannot be measured is noted, and the others stand.

    Raises:
        UserError: Of the first kind, if nothing can be measured.
    """
    from alexnet_exp.runs.benchmark_report import print_rows

    rows: list[Row] = []
    refusals: list[UserError] = []
    for kind in kinds:
        try:
            measured = _measure(kind, subject)
        except UserError as error:
            refusals.append(error)
            subject.notes.append(f"{kind} is not measured: {error}")
            continue
        print_rows(measured, console)
        rows += measured
    if not rows:
        raise refusals[0]
    return rows


def _measure(kind: str, subject: Subject) -> list[Row]:
    """Import and run one kind of measurement."""
    from importlib import import_module

    functions = {"step": "measure_steps"}
    module = import_module(f"alexnet_exp.runs.benchmark_{kind}")
    return getattr(module, functions.get(kind, f"measure_{kind}"))(subject)


def _result(command: str, config: dict[str, Any], rows: list[Row], notes: list[str]) -> dict[str, Any]:
    return {
        "status": "finished",
        "command": command,
        "settings": {k: v for k, v in config.items() if k != "paths"},
        "rows": rows,
        "notes": notes,
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
    }


def _device(wanted: str) -> str:
    import torch

    here = torch.cuda.is_available()
    if wanted == "cuda" and not here:
        raise UserError("device=cuda is not here: say device=cpu.")
    return ("cuda" if here else "cpu") if wanted == "auto" else wanted
