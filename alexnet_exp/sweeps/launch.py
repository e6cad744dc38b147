"""What hydra/launcher=processes does: jobs in processes, several at a time, and a sweep that can go on later."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alexnet_exp.errors import UserError, shell_command
from alexnet_exp.runs.compare.command import summarise
from alexnet_exp.runs.compare.table import print_table
from alexnet_exp.settings import key_of
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job, JobFailed
from alexnet_exp.sweeps.record import SweepRecord, of_the_job
from alexnet_exp.sweeps.resources import Resources, trainers
from alexnet_exp.sweeps.table import Table

_POLL_SECONDS = 0.2
# For jobs to save when the sweep ends: a second is left of the five that docs/sweeps.md promises.
_GRACE_SECONDS = 4.0


def launch(
    config: DictConfig,
    settings: Mapping[str, Any],
    job_overrides: list[list[str]],
    first: int,
    compose: Callable[[list[str]], DictConfig],
    go_on: bool = False,
) -> Sequence[JobReturn]:
    """Run the jobs of a sweep, or those that are still to do.

    Args:
        config: The sweep's configuration, with `hydra`.
        settings: Of the launcher: max_parallel, threads, on_failure, retries.
        job_overrides: What each job sets.
        first: Number of the first job.
        compose: Makes a job's configuration.
        go_on: Whether this process has begun the sweep already.

    Returns:
        One entry per job; of a failed one, reading its value raises.

    Raises:
        UserError: For settings that are no launcher's, or a sweep that cannot go on.
    """
    check_settings(settings)
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    with taken_up(config, job_overrides, first, go_on) as (_, jobs, console):
        resources = Resources.of_this_machine(config, settings, trainers(job_overrides, compose))
        pool = Pool(jobs, settings, resources, Table(jobs, console))
        with saying_how_to_go_on(directory, console):
            pool.run()
        return concluded(jobs, directory, console)


def begin(record: SweepRecord, config: DictConfig, console: Console, go_on: bool = False) -> None:
    """Start the record of a sweep, or go on with the one that is there.

    Args:
        record: Locked.
        config: The sweep's configuration, with `hydra`.
        console: Told of a setting that has no effect.
        go_on: Whether this process has begun the sweep already.

    Raises:
        UserError: If the sweep cannot go on.
    """
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    if not go_on and sweep.get("subdir", _NUMBER) != _NUMBER:
        text = "hydra.sweep.subdir has no effect: the directory of a job is its number"
        console.print(text, highlight=False)
    go_on = go_on or bool(OmegaConf.select(config, "sweep.resume"))
    deciding = [o for o in config.hydra.overrides.hydra if key_of(o).startswith(_OF_THE_JOBS)]
    record.begin(of_the_job(config.hydra.overrides.task), [*job_flags(config), *deciding], go_on)


@contextlib.contextmanager
def taken_up(
    config: DictConfig, job_overrides: list[list[str]], first: int, go_on: bool
) -> Iterator[tuple[SweepRecord, list[Job], Console]]:
    """Hold the directory of a sweep, and yield its record, its jobs, equal ones once, and where to print.

    Args:
        config: The sweep's configuration, with `hydra`.
        job_overrides: What each job sets.
        first: Number of the first job.
        go_on: Whether this process has begun the sweep already.

    Raises:
        UserError: If the sweep cannot go on.
    """
    record, console = SweepRecord(Path(str(config.hydra.sweep.dir)).absolute()), Console(soft_wrap=True)
    with record.lock():
        begin(record, config, console, go_on)
        jobs = record.jobs(job_overrides, first, job_flags(config))
        say_what_is_equal(len(job_overrides) - len(jobs), console)
        yield record, jobs, console


def say_what_is_equal(count: int, console: Console) -> None:
    """Tell that jobs with the same settings as another, `count` of them, are not run again."""
    if count:
        console.print(f"{count} of the jobs repeat the settings of another: they run once", highlight=False)


def concluded(jobs: list[Job], directory: Path, console: Console) -> list[JobReturn]:
    """Write and show the summary of a sweep that has ended, and say to Hydra how each job has."""
    if any(job.result() for job in jobs):
        print_table(summarise(directory))
        console.print(f"page:            {directory / 'compare.html'}", highlight=False)
    console.print(f"sweep directory: {directory}", highlight=False)
    return [_returned(job) for job in jobs]


@contextlib.contextmanager
def saying_how_to_go_on(directory: Path, console: Console) -> Iterator[None]:
    """Tell whoever ends a sweep how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"The sweep goes on with the same command and {shell_command([f'sweep.resume={directory}'])}",
            highlight=False,
            markup=False,
        )
        raise


_OF_THE_SWEEP = (
    "hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper", "hydra.sweep.", "hydra.run.", "hydra.mode",
)  # fmt: skip
_OF_THE_JOBS = ("hydra/sweeper", "hydra.sweeper.params")  # of these, what tells which jobs there are
_NUMBER = "${hydra.job.num}"  # hydra.sweep.subdir as it is in conf/hydra


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are no launcher's."""
    most, threads, retries = (settings[k] for k in ("max_parallel", "threads", "retries"))
    if most != "auto" and not (isinstance(most, int) and most >= 1):
        raise UserError(f"hydra.launcher.max_parallel={most} is not possible: say auto, or a number of jobs.")
    if threads < 1 or retries < 0:
        raise UserError("hydra.launcher.threads must be 1 or more, and hydra.launcher.retries 0 or more.")
    if settings["on_failure"] not in ("continue", "stop"):
        raise UserError(
            f"hydra.launcher.on_failure={settings['on_failure']} is not possible: continue or stop."
        )


def job_flags(config: DictConfig) -> list[str]:
    """Return Hydra's flags and settings that a job needs, too."""
    sources = [s for s in config.hydra.runtime.config_sources if s.provider == "command-line"]
    flags = [part for source in sources for part in ("--config-dir", source.path)]
    if config.hydra.job.config_name not in (None, "train"):
        flags += ["--config-name", config.hydra.job.config_name]
    return [*flags, *(o for o in config.hydra.overrides.hydra if not key_of(o).startswith(_OF_THE_SWEEP))]


def _returned(job: Job) -> JobReturn:
    done = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    if job.state == FINISHED:
        done.return_value = (job.result() or {}).get("metrics", {})
    else:
        done.status = JobStatus.FAILED
        done.return_value = JobFailed(f"{job.directory}: {job.why or 'it has not been started'}")
    return done


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a batch system's SIGTERM end a sweep as Ctrl-C does, and both where it was started with `&` in a script.

    The shell has such a process ignore Ctrl-C, and its jobs would inherit that.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pool:
    """Runs jobs as long as there is room for another.

    Args:
        jobs: All of the sweep.
        settings: Of the launcher.
        resources: Processors or GPUs to share.
        table: Shows the jobs.
    """

    def __init__(
        self, jobs: list[Job], settings: Mapping[str, Any], resources: Resources, table: Table
    ) -> None:
        self.jobs, self.settings, self.resources, self.table = jobs, settings, resources, table
        self.stopping = False

    def run(self) -> None:
        """Run all jobs to their end; Ctrl-C ends them within five seconds."""
        with _interruptible():
            try:
                with self.table:
                    while self._step():
                        time.sleep(_POLL_SECONDS)
            except BaseException:  # a full disk ends the sweep; its jobs save what they have
                self._end_all()
                raise
            finally:
                for job in self._in(RUNNING):
                    job.kill()

    def _step(self) -> bool:
        """Start what there is room for and collect what has ended; return whether anything is left to do."""
        for job in self._in(RUNNING):
            if job.poll():
                self.resources.give_back(job)
                self._ended(job)
        for job in [] if self.stopping else self._in(WAITING):
            environment = self.resources.take(job)
            if environment is None:
                break
            job.start(environment)
            self.table.started(job)
        self.table.refresh()
        return bool(self._in(RUNNING) or (self._in(WAITING) and not self.stopping))

    def _ended(self, job: Job) -> None:
        if job.state == FAILED and job.killed() and job.tries <= self.settings["retries"]:
            job.state = WAITING
        elif job.state == FAILED and self.settings["on_failure"] == "stop":
            self.stopping = True
        self.table.ended(job)

    def _end_all(self) -> None:
        for job in self._in(RUNNING):
            job.signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._in(RUNNING) and time.monotonic() < deadline:
            for job in self._in(RUNNING):
                job.poll()
            time.sleep(0.05)
        for job in self._in(RUNNING):
            job.kill()

    def _in(self, state: str) -> list[Job]:
        return [job for job in self.jobs if job.state == state]
