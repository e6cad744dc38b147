"""Runs the trials of a study: as soon as there is room, the sampler is asked for another."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import Pool
from alexnet_exp.sweeps.optuna_owners import BEAT_SECONDS
from alexnet_exp.sweeps.optuna_space import as_overrides
from alexnet_exp.sweeps.optuna_trials import PRUNED, TrialJob, Trials
from alexnet_exp.sweeps.resources import Resources
from alexnet_exp.sweeps.table import Table

_PRUNE_SECONDS = 60.0  # for a pruned job to write what it has


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
