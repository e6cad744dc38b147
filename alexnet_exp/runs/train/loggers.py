"""The loggers of a run: metrics.csv, and the trackers of conf/logger."""

from __future__ import annotations

from typing import Any

from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.tracking.loggers import Tracker, open_tracker
from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_directory import RunDirectory


def make_loggers(config: dict[str, Any], run: RunDirectory) -> list[Any]:
    """Make the metrics.csv logger and each configured tracker.

    Raises:
        UserError: If a tracker's package is missing, or it cannot begin.
    """
    if config["trainer"]["fast_dev_run"]:
        return []
    loggers: list[Any] = [MetricsCSV(run.path)]
    chosen = config["logger"] or {}
    recorded = _recorded(config, run) if set(chosen) - {"tensorboard"} else {}
    if chosen.get("tensorboard", {}).get("enabled"):
        loggers.append(_tensorboard(run))
    try:
        for name, settings in chosen.items():
            if "_target_" in settings:
                hyperparams = redact(recorded)
                loggers.append(open_tracker(name, settings, hyperparams, run.path, bool(config["resume"])))
        if "wandb" in chosen:
            loggers.append(_wandb(dict(chosen["wandb"]), config, recorded, run))
    except BaseException:
        for logger in loggers:
            if isinstance(logger, Tracker):  # another one failed, and this run does not begin
                logger.finish(1)
        raise
    return loggers


def _recorded(config: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    """Return the settings for trackers; `names` are the chosen conf/ files, by which dashboards group."""
    from alexnet_exp.config.overrides import all_choices
    from alexnet_exp.runs.compare.settings import named
    from alexnet_exp.tracking.run_reader import Run

    names = named(all_choices(config, Run(run.path).overrides))
    return {**{k: v for k, v in config.items() if k != "choices"}, "names": names}


def _tensorboard(run: RunDirectory) -> Any:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(f"logger=tensorboard needs {missing_extra('tensorboard', 'tensorboard')}") from None
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(str(run.path), name="tensorboard", version="")


def _wandb(
    options: dict[str, Any], config: dict[str, Any], recorded: dict[str, Any], run: RunDirectory
) -> Any:
    from alexnet_exp.tracking.wandb.logger import WandbTracker, find_run_id

    for key in ("project", "entity", "group", "notes", "name"):
        # YAML reads name=2026 as a number, but W&B wants strings.
        options[key] = None if options[key] is None else str(options[key])
    options["tags"] = [str(tag) for tag in options["tags"]]
    options["name"] = options["name"] or run.path.name
    run_id = find_run_id(run.path) if config["resume"] else None
    return WandbTracker(run.path, recorded, run_id=run_id, **options)
