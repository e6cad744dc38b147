"""Runs the trials of a study as jobs: asked for as soon as there is room, watched epoch by epoch, and told."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import Pool
from alexnet_exp.sweeps.optuna.space import Space, as_overrides, suggest
from alexnet_exp.sweeps.optuna.study import (
    BEAT_SECONDS,
    EXHAUSTIVE,
    LOST,
    REASON,
    give_up_lost,
    running_trial,
    sign,
)
from alexnet_exp.sweeps.resources import Resources
from alexnet_exp.sweeps.table import Table
from alexnet_exp.tracking.run_reader import Run

PRUNED = "pruned"
_METRICS = "metrics.csv"
_PRUNE_SECONDS = 60.0  # for a pruned job to write what it has


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
        storage: The study's.
        space: What it draws from.
        metric: Name of the objective.
        count: Trials that the study is to have.
        directory: Of the sweep; a trial has the folder of its number.
        flags: Of every job.
        own: Whether the study is this sweep's alone.
    """

    study: optuna.Study
    storage: BaseStorage
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
                job = self._begin(running_trial(self.study, self.storage, frozen.number))
                if (job.result() or {}).get("status") == "finished":
                    job.state = FINISHED
                yield job

    def _begin(self, trial: Trial) -> TrialJob:
        """Draw what a trial has not drawn yet, and make its folder.

        Raises:
            UserError: If the sampler lacks a package, or cannot draw from this space.
        """
        sign(trial)
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
            sign(job.trial)
        return give_up_lost(self.study, self.storage, {job.number for job in jobs})

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
            job.trial.set_user_attr(REASON, job.why or f"{self.metric} was never a number")
        try:
            self.study.tell(job.trial, value if state == TrialState.COMPLETE else None, state)
        except RuntimeError:
            # After its last point an exhaustive sampler stops Study.optimize, which is not what runs here; the trial
            # is recorded all the same.
            if not (isinstance(self.study.sampler, EXHAUSTIVE) and self._frozen(job).state.is_finished()):
                raise

    def value(self, job: TrialJob) -> float | None:
        """Return the best epoch's value, or None if it was never a number."""
        return Run(job.directory).metric(self.metric)

    def _frozen(self, job: TrialJob) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[job.trial.number]

    def _epochs(self, job: TrialJob) -> list[tuple[int, float]]:
        """Return epoch and value of every row that has the metric and is a number."""
        rows = Run(job.directory).rows
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


class TrialTable(Table):
    """The live table, for trials: what each has drawn, and its objective.

    Args:
        trials: The study's side.
        jobs: Those of this process; it grows.
        console: Where to.
    """

    def __init__(self, trials: Trials, jobs: list[Job], console: Console) -> None:
        super().__init__(jobs, console)
        self.trials = trials

    def ended(self, job: Job) -> None:
        """Say how a trial has ended."""
        if job.state == PRUNED:
            self.say(f"job {job.number} pruned: {self._best(job)}")
        else:
            super().ended(job)

    def _opening(self) -> str:
        going_on = f", {len(self.jobs)} of them unfinished from before" if self.jobs else ""
        return f"{self.trials.count} trials, {self.trials.left()} to draw{going_on}"

    def _name(self, job: Job) -> str:
        assert isinstance(job, TrialJob)
        return " ".join(as_overrides(job.trial.params))

    def _best(self, job: Job) -> str:
        assert isinstance(job, TrialJob)
        value = self.trials.value(job)
        return "" if value is None else f"{self.trials.metric} {value:.4f}"


class TrialPool(Pool):
    """A pool that is fed by a study.

    Args:
        trials: The study's side.
        settings: Of the launcher.
        resources: Processors or GPUs to share.
        console: Where to show the table.
    """

    def __init__(
        self, trials: Trials, settings: Mapping[str, Any], resources: Resources, console: Console
    ) -> None:
        jobs: list[Job] = list(trials.unfinished())
        super().__init__(jobs, settings, resources, TrialTable(trials, jobs, console))
        self.trials = trials
        self._looks_after = 0.0  # when it is due, by the monotonic clock

    def run(self) -> None:
        """Run trials until the study has as many as it is to have."""
        for job in self._in(FINISHED):  # the process that would have told died first
            self._tell(job)
        super().run()

    def _step(self) -> bool:
        self._look_after()
        wanted = self.resources.free and not self.stopping and not self._in(WAITING)
        if wanted and self.trials.left():
            self.jobs.append(self.trials.ask())
        going_on = super()._step()
        for job in self._in(RUNNING):
            self._watch(job)
        return going_on or bool(not self.stopping and self.trials.left())

    def _look_after(self) -> None:
        if time.monotonic() < self._looks_after:
            return
        self._looks_after = time.monotonic() + BEAT_SECONDS
        ours = [j for j in self.jobs if isinstance(j, TrialJob) and j.state in (RUNNING, WAITING)]
        for number in self.trials.look_after(ours):
            self.table.say(f"trial {number} is given up: the sweep that ran it is gone")

    def _watch(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        if job.pruned is not None:
            if time.monotonic() - job.pruned > _PRUNE_SECONDS:
                job.kill()
        elif self.trials.has_news(job):
            self.trials.report(job)
            if self.trials.should_end(job):
                self.trials.end(job, signal.SIGTERM)

    def _ended(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        if job.state == FAILED and job.pruned is not None:
            job.state = PRUNED
            self.table.ended(job)
        else:
            super()._ended(job)
        if job.state != WAITING:  # to be tried again
            self._tell(job)

    def _tell(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        self.trials.tell(job)
