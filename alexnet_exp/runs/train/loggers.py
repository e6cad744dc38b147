"""The loggers of a run: metrics.csv, and the trackers of conf/logger."""

from __future__ import annotations

from typing import Any

from alexnet_exp.config.groups import Settings, Wandb
from alexnet_exp.config.schema import read
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
    settings, chosen = read(Settings, config), config["logger"] or {}
    if settings.trainer.fast_dev_run:
        return []
    loggers: list[Any] = [MetricsCSV(run.path)]
    recorded = _recorded(config, run) if set(chosen) - {"tensorboard"} else {}
    if settings.logger.tensorboard and settings.logger.tensorboard.enabled:
        loggers.append(_tensorboard(run))
    try:
        for name, own in chosen.items():
            if "_target_" in own:
                hyperparams = redact(recorded)
                loggers.append(open_tracker(name, own, hyperparams, run.path, bool(settings.resume)))
        if settings.logger.wandb is not None:
            loggers.append(_wandb(settings.logger.wandb, bool(settings.resume), recorded, run))
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


def _wandb(settings: Wandb, resumes: bool, recorded: dict[str, Any], run: RunDirectory) -> Any:
    from alexnet_exp.tracking.wandb.logger import WandbTracker, find_run_id

    def text(value: str | float | None) -> str | None:
        return (
            None if value is None else str(value)
        )  # YAML reads name=2026 as a number, but W&B wants strings

    return WandbTracker(
        run.path,
        recorded,
        mode=settings.mode,
        project=str(settings.project),
        entity=text(settings.entity),
        group=text(settings.group),
        tags=[str(tag) for tag in settings.tags],
        notes=text(settings.notes),
        name=text(settings.name) or run.path.name,
        run_id=find_run_id(run.path) if resumes else None,
        log_model=settings.log_model,
    )
