"""Run the trials of a study as jobs: ask for one per free slot, report every epoch, prune, tell the outcome."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import Launcher, Pool
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
_PRUNE_SECONDS = 60.0  # for a pruned job to write its checkpoint and report


@dataclass
class TrialJob(Job):
    """A job with settings sampled by the study.

    Args:
        trial: The study's.
        read: mtime of the metrics that were last reported to the study.
        pruned: When it was told to stop (monotonic clock, in seconds).
    """

    trial: Trial = field(kw_only=True)
    read: int = 0
    pruned: float | None = None


@dataclass
class Trials:
    """The study's side of a sweep.

    Args:
        study: The study.
        storage: The study's.
        space: The search space.
        metric: Name of the objective.
        count: Total number of trials in the study.
        directory: The directory of the sweep, with a numbered folder per trial.
        flags: Hydra flags of every job.
        own: Whether the study belongs to this sweep only.
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
        """Return how many trials are left to ask for; those of other machines count, lost ones do not."""
        trials = self.study.get_trials(deepcopy=False)
        begun = [t for t in trials if t.state != TrialState.WAITING and not t.user_attrs.get(LOST)]
        return max(0, self.count - len(begun))

    def ask(self) -> TrialJob:
        """Sample another trial."""
        return self._begin(self.study.ask())

    def unfinished(self) -> Iterator[TrialJob]:
        """Yield the trials of this sweep that an earlier process left unfinished."""
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if self.own or self.folder(frozen).is_dir():
                job = self._begin(running_trial(self.study, self.storage, frozen.number))
                if (job.result() or {}).get("status") == "finished":
                    job.state = FINISHED
                yield job

    def _begin(self, trial: Trial) -> TrialJob:
        """Sample the parameters that a trial does not have yet, and create its folder.

        Raises:
            UserError: If the sampler lacks a package, or cannot draw from this space.
        """
        sign(trial)
        try:
            for key, distribution in self.space.distributions.items():
                suggest(trial, key, distribution)
        except (ImportError, ValueError) as error:
            # Left running, it would be continued by the next sweep, which fails in the same way.
            self.study.tell(trial, state=TrialState.FAIL)
            first = str(error).strip().splitlines()[0]
            raise UserError(f"hydra.sweeper.sampler cannot sample a trial: {first}") from error
        overrides = self.space.overrides(trial.params)
        job = TrialJob(trial.number, overrides, self.folder(trial), self.flags, trial=trial)
        # The folder marks the trial as this sweep's for a later sweep.resume.
        job.directory.mkdir(parents=True, exist_ok=True)
        return job

    def renew(self, jobs: list[TrialJob]) -> list[int]:
        """Renew the signatures of our trials; fail those of dead sweeps and return their numbers."""
        for job in jobs:
            sign(job.trial)
        return give_up_lost(self.study, self.storage, {job.number for job in jobs})

    def folder(self, trial: FrozenTrial | Trial) -> Path:
        """Return the run directory of a trial."""
        return self.directory / str(trial.number)

    def report(self, job: TrialJob) -> None:
        """Report the epochs finished since the last call to the study."""
        frozen = self._frozen(job)
        for epoch, value in self._epochs(job):
            # metrics.csv is read from the start each time, and Optuna warns about an epoch reported twice.
            if epoch not in frozen.intermediate_values and not frozen.state.is_finished():
                job.trial.report(value, epoch)

    def should_end(self, job: TrialJob) -> bool:
        """Return whether to stop a running job: it should be pruned, and has epochs left."""
        frozen, wanted = self._frozen(job), job.max_epochs()
        done = max(frozen.intermediate_values, default=0)
        if frozen.state.is_finished():
            return True  # another sweep declared it lost, e.g. while this machine was suspended
        return done > 0 and (wanted is None or done < wanted) and job.trial.should_prune()

    def tell(self, job: TrialJob) -> None:
        """Tell the study how a job ended."""
        if self._frozen(job).state.is_finished():
            return
        self.report(job)
        state, value = TrialState.FAIL, self.value(job)
        if job.state == PRUNED:
            state = TrialState.PRUNED
        elif job.state == FINISHED and value is not None:
            state = TrialState.COMPLETE
        else:
            job.trial.set_user_attr(REASON, job.why or f"{self.metric} was never finite")
        try:
            self.study.tell(job.trial, value if state == TrialState.COMPLETE else None, state)
        except RuntimeError:
            # After its last point an exhaustive sampler calls Study.stop, which raises outside Study.optimize. The
            # trial has been recorded by then.
            if not (isinstance(self.study.sampler, EXHAUSTIVE) and self._frozen(job).state.is_finished()):
                raise

    def value(self, job: TrialJob) -> float | None:
        """Return the value of the best epoch, or None if it was never finite."""
        return Run(job.directory).metric(self.metric)

    def _frozen(self, job: TrialJob) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[job.trial.number]  # numbers are positions

    def _epochs(self, job: TrialJob) -> list[tuple[int, float]]:
        """Return the epochs with a finite value of the metric."""
        rows = Run(job.directory).rows
        found = {int(row["epoch"]): row[self.metric] for row in rows if self.metric in row and "epoch" in row}
        return [(epoch, value) for epoch, value in found.items() if math.isfinite(value)]

    def has_news(self, job: TrialJob) -> bool:
        """Return whether the job has written metrics since the last call."""
        try:
            stamp = (job.directory / _METRICS).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        job.read, before = stamp, job.read
        return stamp != before


class TrialTable(Table):
    """The live table for trials, with sampled parameters and objective.

    Args:
        trials: The study's side of the sweep.
        jobs: The jobs of this process; the list grows.
        console: Where to print.
    """

    def __init__(self, trials: Trials, jobs: list[Job], console: Console) -> None:
        super().__init__(jobs, console)
        self.trials = trials

    def ended(self, job: Job) -> None:
        """Print how a trial ended."""
        if job.state == PRUNED:
            self.say(f"job {job.number} pruned: {self._best(job)}")
        else:
            super().ended(job)

    def _opening(self) -> str:
        resumed = f", {len(self.jobs)} to resume" if self.jobs else ""
        return f"{self.trials.count} trials, {self.trials.left()} to sample{resumed}"

    def _name(self, job: Job) -> str:
        assert isinstance(job, TrialJob)
        return " ".join(as_overrides(job.trial.params))

    def _best(self, job: Job) -> str:
        assert isinstance(job, TrialJob)
        value = self.trials.value(job)
        return "" if value is None else f"{self.trials.metric} {value:.4f}"


class TrialPool(Pool):
    """A pool that gets its jobs from a study.

    Args:
        trials: The study's side of the sweep.
        launcher: Settings of the launcher.
        resources: The CPU cores or GPUs that jobs share.
        console: For the table.
    """

    def __init__(self, trials: Trials, launcher: Launcher, resources: Resources, console: Console) -> None:
        jobs: list[Job] = list(trials.unfinished())
        super().__init__(jobs, launcher, resources, TrialTable(trials, jobs, console))
        self.trials = trials
        self._next_renewal = 0.0  # monotonic clock, in seconds

    def run(self) -> None:
        """Run trials until the study has enough."""
        for job in self._in(FINISHED):  # finished, but the process died before it told the study
            self._tell(job)
        super().run()

    def _step(self) -> bool:
        self._renew_signatures()
        # Not before a slot is free: a trial asked for early is sampled from fewer outcomes.
        wanted = self.resources.free and not self.stopping and not self._in(WAITING)
        if wanted and self.trials.left():
            self.jobs.append(self.trials.ask())
        busy = super()._step()
        for job in self._in(RUNNING):
            self._watch(job)
        return busy or bool(not self.stopping and self.trials.left())

    def _renew_signatures(self) -> None:
        if time.monotonic() < self._next_renewal:
            return
        self._next_renewal = time.monotonic() + BEAT_SECONDS
        ours = [j for j in self.jobs if isinstance(j, TrialJob) and j.state in (RUNNING, WAITING)]
        for number in self.trials.renew(ours):
            self.table.say(f"trial {number} is lost: its sweep has died")

    def _watch(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        if job.pruned is not None:
            if time.monotonic() - job.pruned > _PRUNE_SECONDS:
                job.kill()
        elif self.trials.has_news(job):
            self.trials.report(job)
            if self.trials.should_end(job):
                job.pruned = time.monotonic()
                job.signal(signal.SIGTERM)  # not SIGKILL: it still writes its report and result

    def _ended(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        # A job that finished ahead of the signal counts as finished.
        if job.state == FAILED and job.pruned is not None:
            job.state = PRUNED
            self.table.ended(job)
        else:
            super()._ended(job)
        if job.state != WAITING:  # a retry
            self._tell(job)

    def _tell(self, job: Job) -> None:
        assert isinstance(job, TrialJob)
        self.trials.tell(job)
