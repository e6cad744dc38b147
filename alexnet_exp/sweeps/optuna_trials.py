"""Trials as jobs: asked of the study, watched epoch by epoch, and told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FINISHED, Job
from alexnet_exp.sweeps.optuna_space import Space, suggest
from alexnet_exp.tracking.compare_runs import Run
from alexnet_exp.tracking.metrics_csv import FILE_NAME, read_metrics

PRUNED = "pruned"


@dataclass
class TrialJob(Job):
    """A job whose settings the study has drawn.

    Args:
        trial: Of the study.
        read: Time stamp of the metrics that the study has been told of.
        pruned: When it was asked to end, in seconds of the monotonic clock.
    """

    trial: Trial = field(kw_only=True)
    read: int = 0
    pruned: float | None = None

    def max_epochs(self) -> int | None:
        """Return how many epochs it trains, once its settings are written."""
        try:
            config = yaml.safe_load((self.directory / "config.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return config["trainer"]["max_epochs"]


@dataclass
class Trials:
    """The study's side of a sweep.

    Args:
        study: To ask and tell.
        space: What it draws from.
        metric: Name of the objective.
        count: Trials that the study is to have.
        directory: Of the sweep; a trial has the folder of its number.
        flags: Of every job.
    """

    study: optuna.Study
    space: Space
    metric: str
    count: int
    directory: Path
    flags: list[str]

    def left(self) -> int:
        """Return how many are still to be asked for: other machines count, too."""
        begun = [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
        return max(0, self.count - len(begun))

    def ask(self) -> TrialJob:
        """Let the sampler draw another trial.

        Raises:
            UserError: If the sampler lacks a package, or cannot draw from this space.
        """
        trial = self.study.ask()
        try:
            for key, distribution in self.space.distributions.items():
                suggest(trial, key, distribution)
        except (ImportError, ValueError) as error:
            self.study.tell(trial, state=TrialState.FAIL)
            first = str(error).strip().splitlines()[0]
            raise UserError(f"hydra.sweeper.sampler cannot draw a trial: {first}") from error
        job = self._job(trial)
        job.directory.mkdir(parents=True)  # tells a later sweep.resume whose trial it is
        return job

    def unfinished(self) -> Iterator[TrialJob]:
        """Find the trials of this sweep that an earlier process has left."""
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if self.folder(frozen).is_dir():
                job = self._job(Trial(self.study, frozen._trial_id))
                if (job.result() or {}).get("status") == "finished":
                    job.state = FINISHED
                yield job

    def folder(self, trial: FrozenTrial | Trial) -> Path:
        """Return the run directory of a trial of this sweep."""
        return self.directory / str(trial.number)

    def _job(self, trial: Trial) -> TrialJob:
        overrides = self.space.overrides(trial.params)
        return TrialJob(trial.number, overrides, self.folder(trial), self.flags, trial=trial)

    def report(self, job: TrialJob) -> None:
        """Tell the study of the epochs that the job has finished since the last look."""
        told = self._told(job)
        for epoch, value in self._epochs(job):
            if epoch not in told:
                job.trial.report(value, epoch)

    def should_end(self, job: TrialJob) -> bool:
        """Return whether a running job is not worth its time: it lies behind, and has epochs left to train."""
        done, wanted = max(self._told(job), default=0), job.max_epochs()
        over = wanted is not None and 0 < wanted <= done
        return bool(done) and not over and job.trial.should_prune()

    def tell(self, job: TrialJob) -> None:
        """Record how a job has ended."""
        self.report(job)
        state, value = TrialState.FAIL, self.value(job)
        if job.state == PRUNED:
            state = TrialState.PRUNED
        elif job.state == FINISHED and value is not None:
            state = TrialState.COMPLETE
        else:
            job.trial.set_user_attr("failed", job.why or f"{self.metric} was never a number")
        try:
            self.study.tell(job.trial, value if state == TrialState.COMPLETE else None, state)
        except RuntimeError as error:
            # An exhaustive sampler that has seen the last point stops Study.optimize, which is not what runs here.
            if "Study.stop" not in str(error):
                raise

    def value(self, job: TrialJob) -> float | None:
        """Return the best epoch's value, or None if it was never a number."""
        return Run(job.directory, job.directory.name, {}).metric(self.metric)

    def _told(self, job: TrialJob) -> set[int]:
        frozen = self.study.get_trials(deepcopy=False)[job.trial.number]
        return set(frozen.intermediate_values)

    def _epochs(self, job: TrialJob) -> list[tuple[int, float]]:
        """Return epoch and value of every row that has the metric and is a number."""
        try:
            rows: list[dict[str, Any]] = list(read_metrics(job.directory / FILE_NAME))
        except FileNotFoundError:
            return []
        found = {int(r["epoch"]): float(r[self.metric]) for r in rows if self.metric in r and "epoch" in r}
        return [(epoch, value) for epoch, value in found.items() if math.isfinite(value)]

    def has_news(self, job: TrialJob) -> bool:
        """Return whether the job has written metrics since the last look."""
        try:
            stamp = (job.directory / FILE_NAME).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        job.read, before = stamp, job.read
        return stamp != before

    def end(self, job: TrialJob, number: int) -> None:
        """Ask a job to end, with its report and result."""
        job.pruned = time.monotonic()
        job.signal(number)
