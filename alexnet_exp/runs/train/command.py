"""`alexnet-exp train`: one training run, from settings to report."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.groups import Settings
from alexnet_exp.config.messages import explain
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError, shell_command
from alexnet_exp.pretrained import shipped_file
from alexnet_exp.tracking.log import log, logging_to
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.launch.external import check_process_count, is_first_rank, started_externally
from alexnet_exp.training.launch.ranks import Ranks, check_sync_batchnorm, count_devices
from alexnet_exp.training.launch.signals import (
    Stopped,
    ignore_signals,
    requeue,
    signals_held,
    stopping_on_signals,
)

if TYPE_CHECKING:
    from alexnet_exp.report.summary import Accuracy
    from alexnet_exp.runs.train.fit import Fit


def train(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> dict[str, Any]:
    """Train and test one network.

    Args:
        config: Resolved settings, plain values; see conf/train.yaml.
        overrides: What the user typed.
        run_dir: Where everything goes; must not hold another run.
        command: The command line, for the record.

    Returns:
        What result.json holds.

    Raises:
        UserError: For anything the user can fix; result.json then has status 'failed'.
    """
    settings = read(Settings, config)
    # Before the directory is created, so that a mistyped path leaves none behind.
    for key, given in (("ckpt", settings.ckpt), ("weights", settings.weights)):
        if given is None or given in ("none", "torchvision") or settings.resume or Path(given).exists():
            continue
        if key == "ckpt" or shipped_file(given) is None:
            raise UserError(f"{key}={given}: there is no such file or run directory.")
    check_process_count(settings.trainer)
    check_sync_batchnorm(settings.trainer)
    run = RunDirectory(run_dir)
    if not is_first_rank():  # started by torchrun or SLURM: rank 0 owns the directory
        ignore_signals()
        return follow(config, overrides, run_dir)
    with run.lock():
        exists = (run_dir / "config.yaml").exists()
        if exists and not settings.resume:
            raise UserError(
                f"{run_dir} holds a run already; continue it with resume={run_dir} or choose another."
            )
        record = run.record()  # to be put back if the run cannot resume
        run.begin()
        run.write_settings(config, overrides)
        console = Console(soft_wrap=True)
        relative = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
        new = " (resume= found no run there: starting a new one)" if settings.resume and not exists else ""
        console.print(f"run directory: {relative}{new}", highlight=False)
        with logging_to(run_dir / "train.log"), stopping_on_signals():
            session = _Session(run, config, overrides, command, console)
            session.resumes = exists
            try:
                result = session.run_all()
            except Stopped as stop:
                _log_resume_command(stop, relative)
                raise
            except Exception:
                if session.refused:
                    run.put_back(record)  # nothing was trained: restore the settings of the run
                raise
        if session.accuracy is not None:
            console.print(f"accuracy:      {session.accuracy.line}", highlight=False)
        for what, path in (("report:       ", relative / "report.html"), ("run directory:", relative)):
            console.print(f"{what} {path}", highlight=False)
    return result


def follow(config: dict[str, Any], overrides: list[str], run_dir: Path) -> dict[str, Any]:
    """Join a run as any rank but the first: train with the others, write and print nothing."""
    from alexnet_exp.runs.train import fit as fitting

    with logging_to(None):
        data = fitting.prepare_data(config)
        fitting.fit_to_data(config, data, overrides)
        fit = fitting.assemble(config, data, run_dir, [], Console(quiet=True))
        fitting.train_and_test(fit, fitting.start_point(fit, run_dir))
        fit.classifier.outcomes.gather()  # a collective: rank 0 takes part in it, too
    return {}


class _Session:
    """Rank 0's part of a run: loggers, result and report around the fit."""

    def __init__(
        self, run: RunDirectory, config: dict[str, Any], overrides: list[str], command: str, console: Console
    ) -> None:
        self.run, self.config, self.overrides, self.command = run, config, overrides, command
        self.console = console
        self.started = time.time()
        self.loggers: list[Any] = []
        self.fit: Fit | None = None
        self.start: Path | None = None
        self.resumes = False
        self.accuracy: Accuracy | None = None  # once the run has ended

    def run_all(self) -> dict[str, Any]:
        status, error = "failed", None
        try:
            trainer = read(Settings, self.config).trainer
            # Counting devices may import Lightning.
            with signals_held():
                devices = 1 if started_externally() else count_devices(trainer)
            with Ranks(
                self.run.path,
                devices,
                trainer.num_nodes,
                on_failure=lambda error: self._end("failed", error),
            ) as ranks:
                self._prepare()
                ranks.go(self.config, self.overrides)  # the other ranks have been waiting for these
                self._train()
            status = "finished"
        except UserError as problem:
            error = str(problem)
            raise
        except Stopped as stop:
            status, error = "interrupted", str(stop)
            raise
        except (KeyboardInterrupt, SystemExit):  # Lightning raises SystemExit on Ctrl-C
            status, error = "interrupted", "interrupted"
            raise KeyboardInterrupt from None
        except Exception as problem:
            error = explain(problem) or f"{type(problem).__name__}: {problem}"
            logging.getLogger("run").exception("The run failed.")  # traceback for train.log
            raise
        finally:
            result = self._end(status, error, status == "failed" and self.refused)
        return result

    @property
    def refused(self) -> bool:
        """Whether this is a resumed run that has not taken a step, so that its files must stay as they were."""
        has_trained = self.fit is not None and self.fit.trainer.global_step > self.fit.start_step
        return self.resumes and not has_trained

    def _prepare(self) -> None:
        with signals_held():  # importing torch takes seconds; a signal would interrupt it half-way
            from alexnet_exp.runs.train import fit as fitting
            from alexnet_exp.runs.train.loggers import make_loggers

        data = fitting.prepare_data(self.config)
        data.tell(self._say)
        fitting.fit_to_data(self.config, data, self.overrides)
        self.run.write_settings(self.config, self.overrides)  # again: `auto` is settled now
        self.fit = fitting.assemble(self.config, data, self.run.path, [], self.console)
        self.start = fitting.start_point(self.fit, self.run.path)
        # After start_point: a run that cannot resume must not open a W&B run.
        self.loggers = make_loggers(self.config, self.run)
        fitting.attach_loggers(self.fit, self.loggers)
        for logger in self.loggers:
            if hasattr(logger, "log_splits"):
                logger.log_splits(data.facts())

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)
        logging.getLogger("run").info(line)  # for train.log

    def _train(self) -> None:
        from alexnet_exp.runs.train import fit as fitting
        from alexnet_exp.runs.train.results import write_fold
        from alexnet_exp.training.callbacks.progress import print_summary

        assert self.fit is not None
        if self.fit.settings.callbacks.model_summary.enabled:
            print_summary(self.fit.layers, self.console)
        fitting.train_and_test(self.fit, self.start)
        self.fit.classifier.outcomes.gather()
        if self.fit.fold is not None:
            write_fold(self.run.path / "predictions.csv", self.fit)

    def _end(self, status: str, error: str | None, refused: bool = False) -> dict[str, Any]:
        """Write whatever can be written of report and result, and close the loggers, however the run ended.

        For a resumed run that was refused, figures and report stay as they were.
        """
        from alexnet_exp.report.summary import accuracy
        from alexnet_exp.runs.train.results import (
            close_loggers,
            evaluation_of,
            log_pictures,
            make_report,
            make_result,
        )

        seconds = time.time() - self.started
        result = make_result(self.config, self.fit, status, error, seconds, self.command, self.loggers)
        # A run that trained must not fail over its figures, W&B or its report.
        with _warn_on_error("The accuracy could not be summarised"):
            if self.fit is not None:
                self.accuracy = accuracy(result, self.config, evaluation_of(self.fit, pictures=False))
        with _warn_on_error("The figures could not be drawn"):
            if self.fit is not None and not refused:
                log_pictures(self.fit, self.run, self.loggers)
        # After the pictures, which are also logged to W&B.
        with _warn_on_error("The W&B run could not be finished"):
            close_loggers(self.loggers, self.fit, 0 if status == "finished" else 1)
        with _warn_on_error("The report could not be written"):
            if not refused:
                make_report(self.run, self.fit, result)
        # Last: a directory with a result.json counts as complete.
        try:
            self.run.write_result(result)
        except UserError as problem:
            if error is None:
                raise
            log.warning("%s", problem)  # the error that ended the run matters more
        return result


def _log_resume_command(stop: Stopped, run_dir: Path) -> None:
    after = "" if stop.saved_step is None else f" after step {stop.saved_step}, which is saved"
    log.info("%s%s. To resume: python train.py %s", stop, after, shell_command([f"resume={run_dir}"]))
    if stop.number == getattr(signal, "SIGUSR1", None) and requeue():
        log.info("SLURM requeues this job.")


@contextlib.contextmanager
def _warn_on_error(what: str) -> Iterator[None]:
    """Turn any exception into a warning."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", what, explain(error) or error)
