"""hydra/launcher=processes: run jobs as processes, several at a time, in a sweep that can be resumed."""

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

from alexnet_exp.config.schema import at_least, checked, choice, group, setting
from alexnet_exp.errors import shell_command
from alexnet_exp.runs.compare.command import summarise
from alexnet_exp.runs.compare.table import print_table
from alexnet_exp.settings import key_of
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job, JobFailed
from alexnet_exp.sweeps.record import SweepRecord, without_resume
from alexnet_exp.sweeps.resources import Resources, trainers
from alexnet_exp.sweeps.table import Table

_POLL_SECONDS = 0.2
# For jobs to save when the sweep is interrupted; docs/sweeps.md promises that it ends within five.
_GRACE_SECONDS = 4.0


@group
class Launcher:
    """Settings of hydra/launcher=processes."""

    max_parallel: int | str = setting(choice("auto") | at_least(1))
    threads: int = setting(at_least(1))
    retries: int = setting(at_least(0))
    on_failure: str = setting(choice("continue", "stop"))


def launch(
    config: DictConfig,
    settings: Mapping[str, Any],
    job_overrides: list[list[str]],
    first: int,
    compose: Callable[[list[str]], DictConfig],
    go_on: bool = False,
) -> Sequence[JobReturn]:
    """Run the jobs of a sweep, except those that have finished.

    Args:
        config: The sweep's configuration, with `hydra`.
        settings: The launcher's: max_parallel, threads, on_failure, retries.
        job_overrides: The overrides of each job.
        first: Number of the first job.
        compose: Composes a job's configuration.
        go_on: Whether this process has already started the sweep: a later batch.

    Returns:
        One entry per job; the value of a failed one raises when read.

    Raises:
        UserError: For invalid launcher settings, or a sweep that cannot be resumed.
    """
    launcher = checked(Launcher, settings, "hydra.launcher.")
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    with open_sweep(config, job_overrides, first, go_on) as (_, jobs, console):
        needed = trainers(job_overrides, compose)
        resources = Resources.of_this_machine(config, launcher.max_parallel, launcher.threads, needed)
        pool = Pool(jobs, launcher, resources, Table(jobs, console))
        with resume_hint(directory, console):
            pool.run()
        return conclude(jobs, directory, console)


def begin(record: SweepRecord, config: DictConfig, console: Console, go_on: bool = False) -> None:
    """Start the record of a sweep, or load the existing one.

    Args:
        record: Locked.
        config: The sweep's configuration, with `hydra`.
        console: For a warning about a setting without effect.
        go_on: Whether this process has already started the sweep.

    Raises:
        UserError: If the sweep cannot be resumed.
    """
    sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)  # hydra.job.num is not set here
    assert isinstance(sweep, dict)
    if not go_on and sweep.get("subdir", _NUMBER) != _NUMBER:
        text = "hydra.sweep.subdir has no effect: job directories are numbered"
        console.print(text, highlight=False)
    go_on = go_on or bool(OmegaConf.select(config, "sweep.resume"))
    deciding = [o for o in config.hydra.overrides.hydra if key_of(o).startswith(_OF_THE_JOBS)]
    record.begin(without_resume(config.hydra.overrides.task), [*job_flags(config), *deciding], go_on)


@contextlib.contextmanager
def open_sweep(
    config: DictConfig, job_overrides: list[list[str]], first: int, go_on: bool
) -> Iterator[tuple[SweepRecord, list[Job], Console]]:
    """Lock the directory of a sweep; yield its record, its jobs without duplicates, and the console.

    Args:
        config: The sweep's configuration, with `hydra`.
        job_overrides: The overrides of each job.
        first: Number of the first job.
        go_on: Whether this process has already started the sweep.

    Raises:
        UserError: If the sweep cannot be resumed.
    """
    record, console = SweepRecord(Path(str(config.hydra.sweep.dir)).absolute()), Console(soft_wrap=True)
    with record.lock():
        begin(record, config, console, go_on)
        jobs = record.jobs(job_overrides, first, job_flags(config))
        if duplicates := len(job_overrides) - len(jobs):
            console.print(
                f"{duplicates} jobs have the same settings as another: they run once", highlight=False
            )
        yield record, jobs, console


def conclude(jobs: list[Job], directory: Path, console: Console) -> list[JobReturn]:
    """Write and print the summary of a finished sweep; return the outcome of each job for Hydra."""
    if any(job.result() for job in jobs):  # else there may be no run to compare
        print_table(summarise(directory))
        console.print(f"page:            {directory / 'compare.html'}", highlight=False)
    console.print(f"sweep directory: {directory}", highlight=False)
    return [_returned(job) for job in jobs]


@contextlib.contextmanager
def resume_hint(directory: Path, console: Console) -> Iterator[None]:
    """Print how to resume the sweep if Ctrl-C interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"to resume the sweep, add {shell_command([f'sweep.resume={directory}'])} to the same command",
            highlight=False,
            markup=False,
        )
        raise


# What a job must not inherit: it would start a sweep of its own, or write into the directory of another job.
_OF_THE_SWEEP = (
    "hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper", "hydra.sweep.", "hydra.run.", "hydra.mode",
)  # fmt: skip
_OF_THE_JOBS = ("hydra/sweeper", "hydra.sweeper.params")  # the exceptions that determine which jobs there are
_NUMBER = "${hydra.job.num}"  # hydra.sweep.subdir in conf/hydra


def job_flags(config: DictConfig) -> list[str]:
    """Return the flags and settings of Hydra that apply to the jobs, too."""
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
        done.return_value = JobFailed(f"{job.directory}: {job.why or 'not started'}")
    return done


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, end a sweep like Ctrl-C.

    Also restore Ctrl-C in a process started with `&` in a script: the shell makes it ignore SIGINT, and its jobs would
    inherit that.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pool:
    """Run jobs in parallel, as many as fit.

    Args:
        jobs: All jobs of the sweep.
        launcher: Its settings.
        resources: The CPU cores or GPUs that they share.
        table: Displays the jobs.
    """

    def __init__(self, jobs: list[Job], launcher: Launcher, resources: Resources, table: Table) -> None:
        self.jobs, self.launcher, self.resources, self.table = jobs, launcher, resources, table
        self.stopping = False

    def run(self) -> None:
        """Run all jobs to completion; Ctrl-C ends them within five seconds."""
        with _interruptible():
            try:
                with self.table:
                    while self._step():
                        time.sleep(_POLL_SECONDS)
            except BaseException:  # Ctrl-C, but also a full disk: let the jobs save first
                self._end_all()
                raise
            finally:
                for job in self._in(RUNNING):
                    job.kill()

    def _step(self) -> bool:
        """Start jobs that fit and collect those that ended; return whether any are left."""
        for job in self._in(RUNNING):
            if job.poll():
                self.resources.give_back(job)
                self._ended(job)
        for job in [] if self.stopping else self._in(WAITING):
            environment = self.resources.take(job)
            if environment is None:
                # Slots are alike: if this job gets none, neither do the others.
                break
            job.start(environment)
            self.table.started(job)
        self.table.refresh()
        return bool(self._in(RUNNING) or (self._in(WAITING) and not self.stopping))

    def _ended(self, job: Job) -> None:
        if job.state == FAILED and job.killed() and job.tries <= self.launcher.retries:
            job.state = WAITING
        elif job.state == FAILED and self.launcher.on_failure == "stop":
            self.stopping = True
        self.table.ended(job)

    def _end_all(self) -> None:
        for job in self._in(RUNNING):
            job.signal(signal.SIGINT)  # like Ctrl-C in a single run: it saves its last step
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._in(RUNNING) and time.monotonic() < deadline:
            for job in self._in(RUNNING):
                job.poll()
            time.sleep(0.05)
        for job in self._in(RUNNING):
            job.kill()

    def _in(self, state: str) -> list[Job]:
        return [job for job in self.jobs if job.state == state]
