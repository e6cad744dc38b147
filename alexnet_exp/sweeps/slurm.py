"""What hydra/launcher=slurm does: the jobs of a sweep as one SLURM job array, and a table of them while they run."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps import slurm_queue
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import begin, concluded, job_flags, say_what_is_equal
from alexnet_exp.sweeps.record import SweepRecord
from alexnet_exp.sweeps.slurm_script import Shape, common_shape, script, task_of
from alexnet_exp.sweeps.table import Table
from alexnet_exp.tracking.redact import OF_ANY_URL, url_passwords
from alexnet_exp.tracking.run_directory import write_atomically

_POLL_SECONDS = 5.0
_OF_SLURM = ("srun:", "slurmstepd")  # begin lines that are not the run's own
_LOOKS = (
    2  # that must agree before a job counts as ended: between end and requeue it may look so, files come late
)


def launch(
    config: DictConfig,
    settings: Mapping[str, Any],
    job_overrides: list[list[str]],
    first: int,
    compose: Callable[[list[str]], DictConfig],
    go_on: bool = False,
) -> Sequence[JobReturn]:
    """Submit the jobs of a sweep, or those that are still to do, and wait for them.

    Args:
        config: The sweep's configuration, with `hydra`.
        settings: Of the launcher.
        job_overrides: What each job sets.
        first: Number of the first job.
        compose: Makes a job's configuration.
        go_on: Whether this process has begun the sweep already.

    Returns:
        One entry per job; of a failed one, reading its value raises.

    Raises:
        UserError: For settings that are no launcher's, or that SLURM refuses, or a sweep that cannot go on.
    """
    check_settings(settings)
    shape = common_shape(job_overrides, compose)
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    record, console = SweepRecord(directory), Console(soft_wrap=True)
    with record.lock():
        begin(record, config, console, go_on)
        jobs = record.jobs(job_overrides, first, job_flags(config))
        say_what_is_equal(len(job_overrides) - len(jobs), console)
        todo = _to_submit(jobs, record.arrays)
        if todo:
            record.add_array(_submit(todo, settings, shape, directory, len(record.arrays) + 1))
            _say_how_to_follow(record.arrays[-1], len(todo), directory, console)
        if not settings["wait"]:
            return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED) for job in jobs]
        _wait(jobs, record.arrays, directory, console)
        return concluded(jobs, directory, console)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are no launcher's.

    Raises:
        UserError: For the first of them.
    """
    for name, least in (("max_parallel", 1), ("cpus_per_task", 1), ("signal_seconds", 1)):
        value = settings[name]
        if not (isinstance(value, int) and value >= least) and not (name == "max_parallel" and value is None):
            raise UserError(
                f"hydra.launcher.{name}={value} is not possible: say a whole number, {least} or more."
            )
    for line in settings["sbatch"]:
        if not line.removeprefix("#SBATCH ").startswith("-") or "\n" in line:
            raise UserError(
                f"hydra.launcher.sbatch has {line!r}, which is no option of sbatch: '--account=NAME'."
            )


def _to_submit(jobs: list[Job], arrays: list[str]) -> list[Job]:
    """Return the jobs that neither have finished nor are with SLURM still."""
    known = slurm_queue.states(arrays)
    if known is None:
        raise UserError(
            "SLURM does not say which jobs of this sweep are still going on (squeue failed): try again."
        )
    alive = {task for task, state in known.items() if state not in slurm_queue.OVER}
    return [job for job in jobs if job.state != FINISHED and task_of(job) not in alive]


def _submit(jobs: list[Job], settings: Mapping[str, Any], shape: Shape, directory: Path, number: int) -> str:
    for job in jobs:
        job.directory.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for what a job prints
        job.note_result()
    # The script lacks the password of a URL; sbatch hands the environment on to the jobs.
    passwords = url_passwords([job.overrides for job in jobs])
    if len(passwords) > 1:
        raise UserError(
            f"The settings hold several passwords, and the jobs of an array read one from {OF_ANY_URL}: start one "
            "sweep for each."
        )
    path = directory / f"array-{number}.sh"
    before = os.umask(0o077)  # it holds the settings as typed
    try:
        write_atomically(path, script(jobs, settings, shape, directory))
    finally:
        os.umask(before)
    return slurm_queue.submit(path, dict(zip([OF_ANY_URL], passwords, strict=False)))


def _say_how_to_follow(array: str, count: int, directory: Path, console: Console) -> None:
    for line in (
        f"SLURM job array {array}: {count} jobs; squeue -j {array} lists them, scancel {array} ends them",
        f"what job N prints: {directory}/N/output.log",
        f"the same command with sweep.resume={directory} watches them, and submits what is missing",
    ):
        console.print(line, highlight=False, markup=False)


def _wait(jobs: list[Job], arrays: list[str], directory: Path, console: Console) -> None:
    """Show the jobs until all have ended; Ctrl-C ends the watching, not the jobs."""
    try:
        Watch(jobs, arrays, Table(jobs, console)).run()
    except KeyboardInterrupt:
        console.print(
            f"SLURM goes on: sweep.resume={directory} watches again, scancel {' '.join(arrays)} ends the jobs",
            highlight=False,
            markup=False,
        )
        raise


class Watch:
    """Follows jobs that SLURM runs.

    Args:
        jobs: All of the sweep.
        arrays: The job arrays that they are in, oldest first.
        table: Shows the jobs.
    """

    def __init__(self, jobs: list[Job], arrays: list[str], table: Table) -> None:
        self.jobs, self.arrays, self.table = jobs, arrays, table
        self._over: Counter[int] = Counter()  # looks in a row that found a job ended

    def run(self) -> None:
        """Wait until every job has ended."""
        with self.table:
            while self.look():
                time.sleep(_POLL_SECONDS)

    def look(self) -> bool:
        """Ask once how the jobs are; return whether any is left to wait for."""
        known = slurm_queue.states(self.arrays)
        if known is not None:
            for job in self._left():
                self._note(job, known.get(task_of(job)))
        self.table.refresh()
        return bool(self._left())

    def _left(self) -> list[Job]:
        return [job for job in self.jobs if job.state in (WAITING, RUNNING)]

    def _note(self, job: Job, state: str | None) -> None:
        if state is None or state in slurm_queue.OVER:
            self._over[job.number] += 1
            if self._over[job.number] >= _LOOKS:
                self._ended(job, state)
            return
        self._over[job.number] = 0
        if state == "RUNNING" and job.state == WAITING:
            job.state, job.tries, job.started = RUNNING, job.tries + 1, time.time()
            self.table.started(job)
        elif state == "PENDING" and job.state == RUNNING:
            job.state = WAITING
            self.table.say(f"job {job.number} was taken off its machine: SLURM starts it again")

    def _ended(self, job: Job, state: str | None) -> None:
        result = job.result()
        if result and result.get("status") == "finished":
            job.state = FINISHED
        else:
            said = [line for line in job.last_lines(20) if not line.startswith(_OF_SLURM)]
            reason = job.error() or [*said[-1:], "it said nothing"][0]
            job.state, job.why = FAILED, f"{reason} (SLURM: {state})" if state else str(reason)
        self.table.ended(job)
