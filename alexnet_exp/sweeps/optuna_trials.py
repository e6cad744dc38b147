"""Trials as jobs: asked of the study, watched epoch by epoch, and told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FINISHED, Job
from alexnet_exp.sweeps.optuna_owners import FAILED, LOST, give_up_lost, sign
from alexnet_exp.sweeps.optuna_space import Space, suggest
from alexnet_exp.tracking.compare_runs import Run
from alexnet_exp.tracking.records import read_rows

PRUNED = "pruned"
_METRICS = "metrics.csv"


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
        own: Whether the study is this sweep's alone.
    """

    study: optuna.Study
    space: Space
    metric: str
    count: int
    directory: Path
    flags: list[str]
    own: bool = True

    def left(self) -> int:
        """Return how many are still to be asked for: those of other machines count, too, but no lost ones."""
        trials = self.study.get_trials(deepcopy=False)
        begun = [t for t in trials if t.state != TrialState.WAITING and not t.user_attrs.get(LOST)]
        return max(0, self.count - len(begun))

    def ask(self) -> TrialJob:
        """Let the sampler draw another trial."""
        return self._begin(self.study.ask())

    def unfinished(self) -> Iterator[TrialJob]:
        """Find the trials of this sweep that an earlier process has left."""
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if self.own or self.folder(frozen).is_dir():
                job = self._begin(Trial(self.study, frozen._trial_id))
                if (job.result() or {}).get("status") == "finished":
                    job.state = FINISHED
                yield job

    def _begin(self, trial: Trial) -> TrialJob:
        """Draw what a trial has not drawn yet, and make its folder.

        Raises:
            UserError: If the sampler lacks a package, or cannot draw from this space.
        """
        sign(self.study, trial._trial_id)
        try:
            for key, distribution in self.space.distributions.items():
                suggest(trial, key, distribution)
        except (ImportError, ValueError) as error:
            self.study.tell(trial, state=TrialState.FAIL)
            first = str(error).strip().splitlines()[0]
            raise UserError(f"hydra.sweeper.sampler cannot draw a trial: {first}") from error
        overrides = self.space.overrides(trial.params)
        job = TrialJob(trial.number, overrides, self.folder(trial), self.flags, trial=trial)
        job.directory.mkdir(parents=True, exist_ok=True)  # tells a later sweep.resume whose trial it is
        return job

    def look_after(self, jobs: list[TrialJob]) -> list[int]:
        """Renew the signature of trials, and return the numbers of others whose sweep is gone."""
        for job in jobs:
            sign(self.study, job.trial._trial_id)
        return give_up_lost(self.study, {job.number for job in jobs})

    def folder(self, trial: FrozenTrial | Trial) -> Path:
        """Return the run directory of a trial of this sweep."""
        return self.directory / str(trial.number)

    def report(self, job: TrialJob) -> None:
        """Tell the study of the epochs that the job has finished since the last look."""
        frozen = self._frozen(job)
        for epoch, value in self._epochs(job):
            if epoch not in frozen.intermediate_values and not frozen.state.is_finished():
                job.trial.report(value, epoch)

    def should_end(self, job: TrialJob) -> bool:
        """Return whether a running job is not worth its time: it lies behind, and has epochs left to train."""
        frozen, wanted = self._frozen(job), job.max_epochs()
        done = max(frozen.intermediate_values, default=0)
        if frozen.state.is_finished():
            return True  # given up for lost, while this machine slept
        return done > 0 and (wanted is None or done < wanted) and job.trial.should_prune()

    def tell(self, job: TrialJob) -> None:
        """Record how a job has ended."""
        if self._frozen(job).state.is_finished():
            return
        self.report(job)
        state, value = TrialState.FAIL, self.value(job)
        if job.state == PRUNED:
            state = TrialState.PRUNED
        elif job.state == FINISHED and value is not None:
            state = TrialState.COMPLETE
        else:
            job.trial.set_user_attr(FAILED, job.why or f"{self.metric} was never a number")
        try:
            self.study.tell(job.trial, value if state == TrialState.COMPLETE else None, state)
        except RuntimeError as error:
            # An exhaustive sampler that has seen the last point stops Study.optimize, which is not what runs here.
            if "Study.stop" not in str(error):
                raise

    def value(self, job: TrialJob) -> float | None:
        """Return the best epoch's value, or None if it was never a number."""
        return Run(job.directory, job.directory.name, {}).metric(self.metric)

    def _frozen(self, job: TrialJob) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[job.trial.number]

    def _epochs(self, job: TrialJob) -> list[tuple[int, float]]:
        """Return epoch and value of every row that has the metric and is a number."""
        path = job.directory / _METRICS
        rows = read_rows(path) if path.exists() else []
        found = {int(row["epoch"]): row[self.metric] for row in rows if self.metric in row and "epoch" in row}
        return [(epoch, value) for epoch, value in found.items() if math.isfinite(value)]

    def has_news(self, job: TrialJob) -> bool:
        """Return whether the job has written metrics since the last look."""
        try:
            stamp = (job.directory / _METRICS).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        job.read, before = stamp, job.read
        return stamp != before

    def end(self, job: TrialJob, number: int) -> None:
        """Ask a job to end, with its report and result."""
        job.pruned = time.monotonic()
        job.signal(number)
