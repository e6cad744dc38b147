"""Small records of runs for a repository: result.json and metrics.csv without anything that identifies a machine."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

from alexnet_exp.config.overrides import all_choices
from alexnet_exp.errors import UserError, shell_command
from alexnet_exp.runs.reproduce import effects
from alexnet_exp.runs.reproduce.evidence import differing
from alexnet_exp.runs.reproduce.rows import CLAIMS, claim
from alexnet_exp.tracking.run_directory import write_atomically
from alexnet_exp.tracking.run_reader import Run, find_runs

_LEFT_OUT = ("wandb", "error", "bad_images", "published", "splits")
_OF_THE_MACHINE = re.compile(
    r"(resume|hydra\.run\.dir|paths\.\w+|data\.data_dir|data\.root|logger\.wandb\.\w+)="
)
_PATH = re.compile(r"(?<![\w.:/])~?/[\w.+@-]+(?:/[\w.+@-]*)*")
_METRICS = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "top1", "top5")]


def record(directories: list[str], out: Path) -> list[Path]:
    """Write OUT/EXPERIMENT/seed-N/ for each run; OUT/CLAIM/FORM-RATE-seed-N/ for a run of a claim.

    Args:
        directories: Finished runs of experiments or claims, or folders of them.
        out: The folder of all records.

    Returns:
        The folders written.

    Raises:
        UserError: For a run that has not finished, or that is not an unmodified experiment.
    """
    written = []
    for run in find_runs(directories):
        if run.status != "finished":
            raise UserError(f"{run.path} is {run.status}: only finished runs can be recorded.")
        place, published, about = _published(run)
        if differs := differing(run, published):
            raise UserError(
                f"{run.path} differs from {published[0]} ({' '.join(differs[:3])}): record unmodified runs only."
            )
        folder = out / place
        folder.mkdir(parents=True, exist_ok=True)
        content = small_result(run, place.partition("/")[0]) | about
        write_atomically(folder / "result.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_atomically(folder / "metrics.csv", small_metrics(run))
        written.append(folder)
    return written


def _published(run: Run) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Return the folder of a run's record, the overrides of the published settings, and what else identifies it."""
    chosen = all_choices(run.settings, run.overrides)
    name, sweep = chosen.get("experiment", "none"), chosen.get("sweep", "none")
    if name != "none":
        return f"{name}/seed-{run.seed}", (f"experiment={name}",), {}
    known = claim(sweep) if sweep in CLAIMS else None
    if known is not None and (trial := effects.of_run(run, known)):
        words = [*trial.form.lower().split(), *([trial.rate] if trial.rate else []), f"seed-{run.seed}"]
        about = {"form": trial.form, "rate": trial.rate}
        return f"{sweep}/{'-'.join(words)}", (*known.selection, *known.of(trial.form, trial.rate)), about
    raise UserError(
        f"{run.path} was trained without experiment=NAME: only runs of an experiment or a claim can be recorded."
    )


def small_result(run: Run, name: str) -> dict[str, Any]:
    """Return result.json of a run, with its experiment, without paths, host names and tracker links."""
    result = {key: value for key, value in run.result.items() if key not in _LEFT_OUT}
    hardware = dict(result.get("hardware") or {})
    # "Linux-6.8.0-x86_64-...": the rest identifies a kernel build.
    hardware["platform"] = str(hardware.get("platform", "")).partition("-")[0]
    words = shlex.split(result.get("command") or "")
    command = shell_command(word for word in words if not _OF_THE_MACHINE.match(word.lstrip("+")))
    result |= {"hardware": hardware, "command": command, "experiment": name}
    return _without_places(result)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return _PATH.sub("PATH", value).replace(socket.gethostname(), "HOST") if isinstance(value, str) else value


def small_metrics(run: Run) -> str:
    """Return the epoch and test rows of metrics.csv, without per-step rows."""
    names = [name for name in _METRICS if any(name in row for row in run.rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["epoch", "step", *names])
    for row in run.rows:
        if any(name in row for name in names):
            place = [int(row[key]) if key in row else "" for key in ("epoch", "step")]
            writer.writerow([*place, *(row.get(name, "") for name in names)])
    return buffer.getvalue()
