"""The batch script of a job array: one task for each job of a sweep, each the command line of a single run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import OUTPUT, Job
from alexnet_exp.sweeps.resources import trainers
from alexnet_exp.tracking.redact import without_passwords

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
