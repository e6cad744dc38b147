"""What hydra/launcher=slurm does: the jobs of a sweep as one SLURM job array, and a table of them while they run."""

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

from alexnet_exp.errors import UserError
from alexnet_exp.files import write_atomically
from alexnet_exp.sweeps.job import FAILED, FINISHED, OUTPUT, RUNNING, WAITING, Job
from alexnet_exp.sweeps.launch import concluded, taken_up
from alexnet_exp.sweeps.resources import trainers
from alexnet_exp.sweeps.table import Table
from alexnet_exp.tracking.redact import OF_ANY_URL, url_passwords, without_passwords

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
    with taken_up(config, job_overrides, first, go_on) as (record, jobs, console):
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
    known = states(arrays)
    if known is None:
        raise UserError(
            "SLURM does not say which jobs of this sweep are still going on (squeue failed): try again."
        )
    alive = {task for task, state in known.items() if state not in OVER}
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
    return submit(path, dict(zip([OF_ANY_URL], passwords, strict=False)))


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


# `resume=` starts a run that is not there yet, and goes on with one that is: the same line serves a requeued job.
_COMMAND = '-m alexnet_exp.cli train "${settings[@]}"'


@dataclass(frozen=True)
class Shape:
    """What every task of an array asks for.

    Args:
        nodes: Machines.
        tasks: Processes on each: one for each device.
        on_gpus: Whether the devices may be GPUs.
    """

    nodes: int
    tasks: int
    on_gpus: bool


def common_shape(job_overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]) -> Shape:
    """Return the shape that all jobs have.

    Args:
        job_overrides: What each job sets.
        compose: Makes a job's configuration.

    Raises:
        UserError: If they differ, or leave the number of devices open.
    """
    shapes = {_shape(trainer) for trainer in trainers(job_overrides, compose)}
    if len(shapes) > 1:
        raise UserError(
            "trainer.devices and trainer.num_nodes cannot be swept with hydra/launcher=slurm: all jobs of an array "
            "take the same machines. Start one sweep for each value."
        )
    return shapes.pop()


def _shape(trainer: DictConfig) -> Shape:
    devices, accelerator = trainer.devices, trainer.accelerator
    if not isinstance(devices, int) or devices < 1:
        raise UserError(
            f"hydra/launcher=slurm must know how many devices a job takes, and trainer.devices={devices} does not "
            "say: give a number, such as trainer=gpu trainer.devices=4, or trainer=cpu."
        )
    return Shape(trainer.num_nodes, devices, accelerator != "cpu")


def script(jobs: Sequence[Job], settings: Mapping[str, Any], shape: Shape, directory: Path) -> str:
    """Write the script.

    Args:
        jobs: To be run; the names of their directories are the numbers of the array's tasks.
        settings: Of the launcher.
        shape: Of every job.
        directory: Of the sweep.
    """
    cpus = settings["cpus_per_task"]
    lines = [
        "#!/bin/bash",
        "# Jobs of a sweep, made by hydra/launcher=slurm. A job that has begun goes on from its last checkpoint.",
        *(f"#SBATCH {option}" for option in _options(jobs, settings, shape, directory)),
        "",
        "case $SLURM_ARRAY_TASK_ID in",
        *(
            f"  {task_of(job)}) settings=({shlex.join(without_passwords(_arguments(job)))}) ;;"
            for job in jobs
        ),
        "esac",
        f"export OMP_NUM_THREADS={cpus} MKL_NUM_THREADS={cpus}",
        f'export WANDB_RUN_GROUP="${{WANDB_RUN_GROUP:-{directory.name}}}"',
        *settings["setup"],
        "trap : TERM  # the end that SLURM asks for is the run's to say, which saves first",
        f"srun --cpus-per-task={cpus} --kill-on-bad-exit=1 {shlex.quote(sys.executable)} {_COMMAND}",
    ]
    return "\n".join(lines) + "\n"


def task_of(job: Job) -> int:
    """Return a job's number in an array, the same one in every array of its sweep."""
    return int(job.directory.name)


def _arguments(job: Job) -> list[str]:
    return [*job.flags, *job.overrides, f"resume={job.directory}"]


def _options(jobs: Sequence[Job], settings: Mapping[str, Any], shape: Shape, directory: Path) -> list[str]:
    at_once = "" if settings["max_parallel"] is None else f"%{settings['max_parallel']}"
    gpus = shape.tasks if shape.on_gpus and settings["gpus_per_node"] is None else settings["gpus_per_node"]
    output = str(directory).replace("%", "%%") + f"/%a/{OUTPUT}"
    options = {
        "job-name": f"alexnet_exp_{directory.name}",  # Lightning takes "bash" for a terminal
        "array": _ranges(sorted(task_of(job) for job in jobs)) + at_once,
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks,
        "cpus-per-task": settings["cpus_per_task"],
        "gpus-per-node": gpus or None,
        "time": settings["time"],
        "partition": settings["partition"],
        "signal": f"USR1@{settings['signal_seconds']}",
        "open-mode": "append",
        "output": output,
    }
    named = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return [*named, "--requeue", *(line.removeprefix("#SBATCH ") for line in settings["sbatch"])]


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers as SLURM does: 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


_SECONDS = 60.0  # a busy controller answers late
OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "REVOKED", "TIMEOUT")
)  # fmt: skip


def submit(script: Path, variables: Mapping[str, str] | None = None) -> str:
    """Hand a script to SLURM.

    Args:
        script: A file.
        variables: Of the environment of its jobs, beside this process's.

    Returns:
        The number of the job array.

    Raises:
        UserError: If SLURM is not here, does not answer, or refuses it.
    """
    # HYDRA_FULL_ERROR is ours, and each job has a W&B run of its own; jobs inherit the rest.
    not_theirs = ("HYDRA_FULL_ERROR", "WANDB_RUN_ID")
    environment = {k: v for k, v in os.environ.items() if k not in not_theirs} | dict(variables or {})
    try:
        done = _asked("sbatch", "--parsable", str(script), environment=environment)
    except FileNotFoundError:
        raise UserError(
            "hydra/launcher=slurm needs sbatch: start the sweep on a machine that SLURM takes jobs from."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"SLURM has not answered sbatch for {_SECONDS:.0f} s, and may have taken {script} all the same: look at "
            f"squeue --me, and scancel what is there of it before sweep.resume={script.parent} submits it again."
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        raise UserError(f"SLURM refused the sweep ({script}): {reason}")
    return done.stdout.strip().partition(";")[0]  # "NUMBER;CLUSTER" where there are several


def states(arrays: Sequence[str]) -> dict[int, str] | None:
    """Return the state of every task that SLURM remembers, in its own words: PENDING, RUNNING, TIMEOUT.

    Args:
        arrays: Numbers of job arrays, oldest first; where two have the same task, the later one counts.

    Returns:
        States by task; None if SLURM does not answer.
    """
    if not arrays:
        return {}
    try:
        done = _asked(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--jobs={','.join(arrays)}",
            "--format=%F %K %T",
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None  # forgotten: all are over
    rows = [line.split() for line in done.stdout.splitlines()]
    known = [(arrays.index(array), int(task), state) for array, task, state in rows if task.isdigit()]
    return {task: state for _, task, state in sorted(known)}


def _asked(*command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
    )
