"""The loggers of a run, from conf/logger."""

from __future__ import annotations

from typing import Any

from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.tracking.run_directory import RunDirectory


def make_loggers(config: dict[str, Any], run: RunDirectory) -> list[Any]:
    """Make metrics.csv, and each tracker that the settings name.

    Raises:
        UserError: If a tracker's package is missing.
    """
    if config["trainer"]["fast_dev_run"]:
        return []
    loggers: list[Any] = [MetricsCSV(run.path)]
    chosen = config["logger"] or {}
    if chosen.get("tensorboard", {}).get("enabled"):
        loggers.append(_tensorboard(run))
    if "wandb" in chosen:
        loggers.append(_wandb(dict(chosen["wandb"]), config, run))
    return loggers


def _tensorboard(run: RunDirectory) -> Any:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(f"logger=tensorboard needs {missing_extra('tensorboard', 'tensorboard')}") from None
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run.path), name="tensorboard", version="")


def _wandb(options: dict[str, Any], config: dict[str, Any], run: RunDirectory) -> Any:
    from alexnet_exp.runs.compare_settings import choices
    from alexnet_exp.tracking.compare_runs import Run, leaves
    from alexnet_exp.tracking.wandb_logger import WandbTracker, find_run_id

    for key in (
        "project",
        "entity",
        "group",
        "notes",
        "name",
    ):  # `name=2026` is a number to YAML, and W&B takes text
        options[key] = None if options[key] is None else str(options[key])
    options["tags"] = [str(tag) for tag in options["tags"]]
    options["name"] = options["name"] or run.path.name
    run_id = find_run_id(run.path) if config["resume"] else None
    # The files of conf/ that were chosen: `names.model` is what dashboards group by.
    own = Run(run.path, run.path.name, dict(leaves({"choices": config.get("choices", {})})))
    named = {**{k: v for k, v in config.items() if k != "choices"}, "names": choices(own)}
    return WandbTracker(run.path, named, run_id=run_id, **options)
