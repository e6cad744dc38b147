"""`alexnet-exp benchmark`: how fast this machine runs what this package does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alexnet_exp.config.checks import shown
from alexnet_exp.config.rules import at_least, choice, flag, null
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.environment import git_state, hardware, versions
from alexnet_exp.tracking.run_directory import RunDirectory

RULES = {
    "what": choice("lrn"),
    "repeats": at_least(1),
    "threads": at_least(1) | null,
    "device": choice("auto", "cpu", "cuda"),
    "batch_size": at_least(1),
    "compile": flag,
}


def benchmark(config: dict[str, Any], run_dir: Path, command: str) -> dict[str, Any]:
    """Measure, print a table, and write result.json.

    Args:
        config: Keys of conf/benchmark.yaml.
        run_dir: Where result.json goes.
        command: The command line, for the record.

    Returns:
        What result.json holds.

    Raises:
        UserError: For an illegal setting, or a device that is not there.
    """
    for key, rule in RULES.items():
        if not rule.legal(config[key]):
            raise UserError(f"{key}={shown(config[key])} is not possible: it must be {rule.text}.")
    import torch

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    device = _device(config["device"])
    from alexnet_exp.runs.benchmark_lrn import measure_lrn

    rows = measure_lrn(device, config["batch_size"], config["repeats"], config["compile"])
    result = {
        "status": "finished",
        "command": command,
        "settings": {k: v for k, v in config.items() if k not in ("paths",)},
        "rows": rows,
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
    }
    _print(rows)
    run = RunDirectory(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_result(result)
    Console().print(f"result: {run_dir / 'result.json'}", highlight=False, soft_wrap=True)
    return result


def _device(wanted: str) -> str:
    import torch

    here = torch.cuda.is_available()
    if wanted == "cuda" and not here:
        raise UserError("device=cuda is not here: say device=cpu.")
    return ("cuda" if here else "cpu") if wanted == "auto" else wanted


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("what", "case", "median ms", "sd ms", "n", "ratio", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        milliseconds = (f"{1e3 * row[k]:.1f}" for k in ("median_seconds", "sd_seconds"))
        table.add_row(row["what"], row["case"], *milliseconds, str(row["n"]), f"{row['ratio']:.2f}")
    Console().print(table, highlight=False)
