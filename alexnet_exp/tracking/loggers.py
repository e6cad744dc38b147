"""Trackers named by `logger.NAME._target_`: any Lightning logger, continued by a resumed run."""

from __future__ import annotations

import inspect
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from alexnet_exp.errors import UserError, in_one_line
from alexnet_exp.files import write_atomically
from alexnet_exp.targets import build, locate
from alexnet_exp.tracking.log import log
from alexnet_exp.tracking.metrics_csv import metrics_row

FILE_NAME = "loggers.json"  # in the run directory: what each logger calls its run
# Arguments by which Lightning's loggers continue a run: MLflow's, Comet's, and those of loggers that write files.
_CONTINUED_BY = ("run_id", "experiment_key", "version")


class Tracker(Logger):
    """A logger that stops recording at its first error, with a warning, instead of ending the run.

    Args:
        key: Its setting: 'logger.mlflow'.
        logger: Any Lightning logger.
    """

    def __init__(self, key: str, logger: Logger) -> None:
        super().__init__()
        self.key, self.logger = key, logger
        self._failed = False

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def experiment(self) -> Any:
        return getattr(self.logger, "experiment", None)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call("log_metrics", metrics_row(metrics, None), step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._call("log_hyperparams", params, *args, **kwargs)

    def save(self) -> None:
        self._call("save")

    def finalize(self, status: str) -> None:
        self._call("finalize", status)

    def finish(self, exit_code: int) -> None:
        """End the run: training finalizes a logger, but fails before it begins, and tests after it."""
        self.finalize("failed" if exit_code else "success")

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self.logger, method)(*args, **kwargs)
        except Exception as error:
            self._failed = True
            reason = f"{type(error).__name__}: {in_one_line(error)}"
            log.warning("%s failed (%s) and records no more of this run; metrics.csv does.", self.key, reason)


def open_tracker(
    name: str, settings: Mapping[str, Any], hyperparams: dict[str, Any], run_dir: Path, resumes: bool
) -> Tracker:
    """Build a logger and begin its run, or continue the one that the run directory records.

    Args:
        name: Its key in conf/logger.
        settings: `_target_` and arguments. Defaults: a required `save_dir` is the run directory, `run_name` its name.
        hyperparams: Settings of the run, without secrets; logged unless the run continues.
        run_dir: The run directory.
        resumes: Whether a run is resumed in it.

    Raises:
        UserError: It is not a logger, a package is missing, or it cannot begin.
    """
    key, target = f"logger.{name}", str(settings["_target_"])
    try:
        kind = locate(target)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    if not (inspect.isclass(kind) and issubclass(kind, Logger)):
        raise UserError(
            f"{key}._target_={target} is not a Lightning logger: expected a class such as "
            "lightning.pytorch.loggers.MLFlowLogger."
        )
    takes = inspect.signature(kind).parameters
    given = {"run_name": run_dir.name, **settings} if "run_name" in takes else dict(settings)
    if "save_dir" in takes and takes["save_dir"].default is inspect.Parameter.empty:
        given.setdefault("save_dir", str(run_dir))
    by = next((argument for argument in _CONTINUED_BY if argument in takes), None)
    # What is typed wins: it may name another run on purpose.
    before = _recorded(run_dir).get(name) if resumes and by not in settings else None
    if issubclass(kind, CSVLogger):  # it would begin by deleting the file of the version that it continues
        before = None
    if before is not None and by is not None:
        given[by] = before
    try:
        logger = build(given)
        if before is None:
            # Once: MLflow, for one, rejects a parameter that is logged again with another value.
            logger.log_hyperparams(hyperparams)
        version = logger.version
    except ImportError as error:
        raise UserError(f"{key} needs a package that is not installed: {_text(error)}") from error
    except Exception as error:
        hint = "" if before is None else f" (remove {run_dir / FILE_NAME} to begin a new run there)"
        kind_of_error = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{key}: {kind_of_error}{_text(error)}{hint}") from error
    write_atomically(run_dir / FILE_NAME, json.dumps({**_recorded(run_dir), name: version}, indent=2))
    return Tracker(key, logger)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _recorded(run_dir: Path) -> dict[str, int | str]:
    """Return the loggers' own names of the run, as far as they can be part of a path."""
    try:
        found = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in known if isinstance(v, int | str) and re.fullmatch(r"\w[\w.-]*", str(v))}
