"""hydra/launcher=slurm: run the jobs of a sweep as one SLURM job array, and show a table of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from rich.console import Console

from alexnet_exp.config.schema import at_least, checked, group, null, setting
from alexnet_exp.errors import UserError
from alexnet_exp.files import write_atomically
from alexnet_exp.sweeps.job import FAILED, FINISHED, OUTPUT, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import conclude, open_sweep
from alexnet_exp.sweeps.resources import trainers
from alexnet_exp.sweeps.table import Table
from alexnet_exp.tracking.redact import OF_ANY_URL, url_passwords, without_passwords

_POLL_SECONDS = 5.0
_SLURM_PREFIXES = ("srun:", "slurmstepd")  # of lines in a job's output that are not its own
# Polls in a row before a job counts as ended: a job about to be requeued looks ended, and result.json arrives late on
# network file systems.
_POLLS = 2


@group
class SlurmLauncher:
    """Settings of hydra/launcher=slurm; SLURM itself checks those without a rule."""

    max_parallel: int | None = setting(at_least(1) | null)
    cpus_per_task: int = setting(at_least(1))
    signal_seconds: int = setting(at_least(1))
    time: str | int | None
    partition: str | None
    gpus_per_node: str | int | None
    sbatch: list[str]
    setup: list[str]
    wait: bool


def launch(
    config: DictConfig,
    settings: Mapping[str, Any],
    job_overrides: list[list[str]],
    first: int,
    compose: Callable[[list[str]], DictConfig],
    go_on: bool = False,
) -> Sequence[JobReturn]:
    """Submit the jobs of a sweep, except those that have finished, and wait for them.

    Args:
        config: The sweep's configuration, with `hydra`.
        settings: The launcher's.
        job_overrides: The overrides of each job.
        first: Number of the first job.
        compose: Composes a job's configuration.
        go_on: Whether this process has already started the sweep: a later batch.

    Returns:
        One entry per job; the value of a failed one raises when read.

    Raises:
        UserError: For settings that are invalid or rejected by SLURM, or a sweep that cannot be resumed.
    """
    launcher = check_settings(settings)
    shape = common_shape(job_overrides, compose)
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    with open_sweep(config, job_overrides, first, go_on) as (record, jobs, console):
        todo = _to_submit(jobs, record.arrays)
        if todo:
            record.add_array(_submit(todo, launcher, shape, directory, len(record.arrays) + 1))
            array = record.arrays[-1]
            console.print(
                f"SLURM job array {array}: {len(todo)} jobs; see squeue -j {array}, cancel with scancel {array}\n"
                f"output of job N: {directory}/N/output.log\n"
                f"the same command with sweep.resume={directory} shows them again, and submits missing jobs",
                highlight=False,
                markup=False,
            )
        if not launcher.wait:
            # Hydra has no status for a job that is only submitted.
            return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED) for job in jobs]
        _wait(jobs, record.arrays, directory, console)
        return conclude(jobs, directory, console)


def check_settings(settings: Mapping[str, Any]) -> SlurmLauncher:
    """Return the launcher's settings as an object.

    Raises:
        UserError: For the first invalid one.
    """
    launcher = checked(SlurmLauncher, settings, "hydra.launcher.")
    for line in launcher.sbatch:
        if not line.removeprefix("#SBATCH ").startswith("-") or "\n" in line:
            raise UserError(
                f"invalid hydra.launcher.sbatch={line!r}: expected an option such as --account=NAME."
            )
    return launcher


def _to_submit(jobs: list[Job], arrays: list[str]) -> list[Job]:
    """Return the jobs that have not finished and are not queued or running in SLURM."""
    known = states(arrays)
    if known is None:
        # Guessing could start a second process in the directory of a running job.
        raise UserError(
            "squeue failed, so it is unknown which jobs of this sweep are still running: try again."
        )
    alive = {task for task, state in known.items() if state not in OVER}
    return [job for job in jobs if job.state != FINISHED and task_of(job) not in alive]


def _submit(jobs: list[Job], launcher: SlurmLauncher, shape: Shape, directory: Path, number: int) -> str:
    for job in jobs:
        job.directory.mkdir(parents=True, exist_ok=True)  # SLURM does not create the folder of --output
        job.note_result()
    # URL passwords are left out of the script; sbatch passes the environment on to the jobs.
    passwords = url_passwords([job.overrides for job in jobs])
    if len(passwords) > 1:
        raise UserError(
            f"The settings have several URL passwords, but the jobs of an array read one from {OF_ANY_URL}: start one "
            "sweep per password."
        )
    # One script per submission, kept as a record of what was submitted.
    path = directory / f"array-{number}.sh"
    before = os.umask(0o077)  # settings may be private
    try:
        write_atomically(path, script(jobs, launcher, shape, directory))
    finally:
        os.umask(before)
    return submit(path, dict(zip([OF_ANY_URL], passwords, strict=False)))  # without a password, no variable


def _wait(jobs: list[Job], arrays: list[str], directory: Path, console: Console) -> None:
    """Show the jobs until all have ended; Ctrl-C detaches and leaves them running."""
    try:
        Watch(jobs, arrays, Table(jobs, console)).run()
    except KeyboardInterrupt:
        console.print(
            f"the jobs keep running: sweep.resume={directory} shows them, scancel {' '.join(arrays)} cancels them",
            highlight=False,
            markup=False,
        )
        raise


class Watch:
    """Track jobs that SLURM runs.

    Args:
        jobs: All jobs of the sweep.
        arrays: Their job arrays, oldest first.
        table: Displays the jobs.
    """

    def __init__(self, jobs: list[Job], arrays: list[str], table: Table) -> None:
        self.jobs, self.arrays, self.table = jobs, arrays, table
        self._over: Counter[int] = Counter()  # polls in a row that found a job ended

    def run(self) -> None:
        """Wait until every job has ended."""
        with self.table:
            while self.look():
                time.sleep(_POLL_SECONDS)

    def look(self) -> bool:
        """Poll once; return whether any job is left to wait for."""
        known = states(self.arrays)
        if known is not None:
            for job in self._left():
                self._note(job, known.get(task_of(job)))
        self.table.refresh()
        return bool(self._left())

    def _left(self) -> list[Job]:
        return [job for job in self.jobs if job.state in (WAITING, RUNNING)]

    def _note(self, job: Job, state: str | None) -> None:
        if state is None or state in OVER:
            self._over[job.number] += 1
            if self._over[job.number] >= _POLLS:
                self._ended(job, state)
            return
        self._over[job.number] = 0
        if state == "RUNNING" and job.state == WAITING:
            job.state, job.tries, job.started = RUNNING, job.tries + 1, time.time()
            self.table.started(job)
        elif state == "PENDING" and job.state == RUNNING:
            job.state = WAITING
            self.table.say(f"job {job.number} was preempted: SLURM has requeued it")

    def _ended(self, job: Job, state: str | None) -> None:
        result = job.result()
        if result and result.get("status") == "finished":
            job.state = FINISHED
        else:
            said = [line for line in job.last_lines(20) if not line.startswith(_SLURM_PREFIXES)]
            reason = job.error() or (said[-1] if said else "no output")
            job.state, job.why = FAILED, f"{reason} (SLURM: {state})" if state else str(reason)
        self.table.ended(job)


# `resume=` starts a new run or resumes an existing one, so the same line serves a requeued job.
_COMMAND = '-m alexnet_exp.cli train "${settings[@]}"'


@dataclass(frozen=True)
class Shape:
    """The resources of every task of an array.

    Args:
        nodes: Number of nodes.
        tasks: Processes per node: one per device.
        on_gpus: Whether the devices may be GPUs.
    """

    nodes: int
    tasks: int
    on_gpus: bool


def common_shape(job_overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]) -> Shape:
    """Return the shape that all jobs share.

    Args:
        job_overrides: The overrides of each job.
        compose: Composes a job's configuration.

    Raises:
        UserError: If they differ, or do not fix the number of devices.
    """
    shapes = {_shape(trainer) for trainer in trainers(job_overrides, compose)}
    if len(shapes) > 1:
        raise UserError(
            "hydra/launcher=slurm cannot sweep over trainer.devices or trainer.num_nodes: all jobs of an array get "
            "the same resources. Start one sweep per value."
        )
    return shapes.pop()


def _shape(trainer: DictConfig) -> Shape:
    devices, accelerator = trainer.devices, trainer.accelerator
    if not isinstance(devices, int) or devices < 1:
        raise UserError(
            f"hydra/launcher=slurm needs a number of devices, not trainer.devices={devices}: set it, as in "
            "trainer=gpu trainer.devices=4, or set trainer=cpu."
        )
    return Shape(trainer.num_nodes, devices, accelerator != "cpu")


def script(jobs: Sequence[Job], launcher: SlurmLauncher, shape: Shape, directory: Path) -> str:
    """Return the batch script.

    Args:
        jobs: The jobs to run; their directories are named after their array tasks.
        launcher: Its settings.
        shape: Of every job.
        directory: The directory of the sweep.
    """
    cpus = launcher.cpus_per_task
    typed = [(job, [*job.flags, *job.overrides, f"resume={job.directory}"]) for job in jobs]
    lines = [
        "#!/bin/bash",
        "# Jobs of a sweep, written by hydra/launcher=slurm. A requeued job resumes from its last checkpoint.",
        *(f"#SBATCH {option}" for option in _options(jobs, launcher, shape, directory)),
        "",
        "case $SLURM_ARRAY_TASK_ID in",
        *(
            f"  {task_of(job)}) settings=({shlex.join(without_passwords(arguments))}) ;;"
            for job, arguments in typed
        ),
        "esac",
        f"export OMP_NUM_THREADS={cpus} MKL_NUM_THREADS={cpus}",
        f'export WANDB_RUN_GROUP="${{WANDB_RUN_GROUP:-{directory.name}}}"',
        *launcher.setup,
        "trap : TERM  # the shell must outlive the run, which saves a checkpoint on SIGTERM",
        f"srun --cpus-per-task={cpus} --kill-on-bad-exit=1 {shlex.quote(sys.executable)} {_COMMAND}",
    ]
    return "\n".join(lines) + "\n"


def task_of(job: Job) -> int:
    """Return a job's task number, which is the same in every array of its sweep."""
    return int(job.directory.name)


def _options(jobs: Sequence[Job], launcher: SlurmLauncher, shape: Shape, directory: Path) -> list[str]:
    at_once = "" if launcher.max_parallel is None else f"%{launcher.max_parallel}"
    gpus = shape.tasks if shape.on_gpus and launcher.gpus_per_node is None else launcher.gpus_per_node
    output = str(directory).replace("%", "%%") + f"/%a/{OUTPUT}"  # SLURM expands %a, and %% to %
    # --requeue and the signal come as a pair: the run saves on USR1 before its time is up, and asks to be queued
    # again.
    options = {
        "job-name": f"alexnet_exp_{directory.name}",  # Lightning ignores SLURM in a job named "bash"
        "array": _ranges(sorted(task_of(job) for job in jobs)) + at_once,
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks,
        "cpus-per-task": launcher.cpus_per_task,
        "gpus-per-node": gpus or None,
        "time": launcher.time,
        "partition": launcher.partition,
        "signal": f"USR1@{launcher.signal_seconds}",  # to srun's tasks only; B: would signal the shell
        "open-mode": "append",  # a requeued job keeps its earlier output
        "output": output,
    }
    named = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return [*named, "--requeue", *(line.removeprefix("#SBATCH ") for line in launcher.sbatch)]


def _ranges(numbers: list[int]) -> str:
    """Format sorted numbers as SLURM does: 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


_SECONDS = 60.0  # a busy controller is slow to respond
OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "REVOKED", "TIMEOUT")
)  # fmt: skip


def submit(script: Path, variables: Mapping[str, str] | None = None) -> str:
    """Submit a script to SLURM.

    Args:
        script: The file.
        variables: Environment variables for its jobs, in addition to this process's.

    Returns:
        The ID of the job array.

    Raises:
        UserError: If SLURM is missing, does not respond, or rejects it.
    """
    # Jobs inherit the rest. HYDRA_FULL_ERROR is set by us, and each job needs its own W&B run.
    dropped = ("HYDRA_FULL_ERROR", "WANDB_RUN_ID")
    environment = {k: v for k, v in os.environ.items() if k not in dropped} | dict(variables or {})
    try:
        done = _call("sbatch", "--parsable", str(script), environment=environment)
    except FileNotFoundError:
        raise UserError(
            "hydra/launcher=slurm needs sbatch: start the sweep on a login node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"sbatch timed out after {_SECONDS:.0f} s, and may have submitted {script}: cancel its jobs (squeue --me, "
            f"scancel) before submitting it again with sweep.resume={script.parent}."
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        raise UserError(f"SLURM rejected the sweep ({script}): {reason}")
    return done.stdout.strip().partition(";")[0]  # "NUMBER;CLUSTER" where there are several


def states(arrays: Sequence[str]) -> dict[int, str] | None:
    """Return the state of every task that SLURM still knows: PENDING, RUNNING, TIMEOUT, ...

    Args:
        arrays: IDs of job arrays, oldest first; a later array overrides the same task of an earlier one.

    Returns:
        States by task; None if SLURM does not respond.
    """
    if not arrays:
        return {}
    try:
        done = _call(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(arrays)}", "--format=%F %K %T"
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None  # purged from SLURM's memory: all have ended
    # Without --array squeue would print waiting tasks in one line, as 42_[3-9].
    rows = [line.split() for line in done.stdout.splitlines()]
    known = [(arrays.index(array), int(task), state) for array, task, state in rows if task.isdigit()]
    return {task: state for _, task, state in sorted(known)}  # the latest array's state wins


def _call(*command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
    )
