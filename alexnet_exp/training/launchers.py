"""Processes that torchrun or SLURM has started: who speaks for the run, and whether they are as many as it takes.

Lightning takes a SLURM job named bash or interactive for a terminal, and looks at none of SLURM's variables there. Nor
does this package: a run that is started there starts its other ranks itself, as on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.training.devices import count_devices

_TERMINALS = ("bash", "interactive")
# Set by a launcher that has already started a process for every device: torchrun, or one of the user's own.
_EXTERNAL = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def started_externally() -> bool:
    """Return whether this process is one of several that something else has started."""
    return any(name in os.environ for name in _EXTERNAL) or (
        "SLURM_PROCID" in os.environ and not _is_terminal()
    )


def is_first_rank() -> bool:
    """Return whether this process speaks for the run, before any process group exists."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return all(rank == "0" for rank in ranks)


def check_processes(arguments: Sequence[str]) -> None:
    """Refuse to start one of several processes that could not work together.

    Args:
        arguments: Of `train`, as typed.

    Raises:
        UserError: If SLURM has more tasks than were started, or the processes would not share a directory.
    """
    tasks = _check_tasks()
    if max(tasks, _number("WORLD_SIZE", 1)) == 1:
        return
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(
            "torchrun and srun start a run's processes, not a sweep's: leave -m out, or start the sweep without them."
        )
    if not any(argument.lstrip("+").startswith(("resume=", "hydra.run.dir=")) for argument in arguments):
        raise UserError(
            "All processes that torchrun or srun starts work in one directory, which each must be told: say "
            "resume=DIR; a run that is not there yet starts there."
        )
    # Its agent keeps one store for all attempts, and a rank of the second would read the first one's addresses.
    restarts = _number("TORCHELASTIC_MAX_RESTARTS", 0)
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max-restarts would hang at the first restart, which finds what the processes of before have "
            "left in torchrun's store: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment."
        )


def check_process_count(trainer: Mapping[str, Any]) -> None:
    """Refuse devices that no process was started for: beside a launcher's, a run starts none of its own.

    Args:
        trainer: Settings of the run.

    Raises:
        UserError: If the launcher has started more processes or fewer than the settings take.
    """
    found = _launched()
    if found is None:
        return
    (who, mend), count = found
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if not isinstance(devices, int) or devices < 1:
        devices = count_devices(trainer)
    if devices * nodes == count:
        return
    fitting = f"devices={count // nodes}" if count % nodes == 0 else f"num_nodes=1 trainer.devices={count}"
    raise UserError(
        f"trainer.devices={trainer['devices']} with trainer.num_nodes={nodes} takes {_processes(devices * nodes)}, and "
        f"{who} has started {count}: {mend.format(nodes=nodes, devices=devices)}, or say trainer.{fitting}."
    )


_TORCHRUN = "torchrun", "start it with --nnodes={nodes} --nproc-per-node={devices}"
_SLURM = "SLURM", "ask for --nodes={nodes} --ntasks-per-node={devices} and start the command with srun"
_OTHER = "the launcher (WORLD_SIZE)", "let it start as many"


def _launched() -> tuple[tuple[str, str], int] | None:
    """Return what has started the processes of this run with how to mend that, and how many; None if nothing has."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # also inside of SLURM, where Lightning looks for it first
        return _TORCHRUN, _number("WORLD_SIZE", 1)
    if {"SLURM_PROCID", "SLURM_NTASKS"} & os.environ.keys() and not _is_terminal():
        return _SLURM, _tasks_of_step()
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _OTHER, _number("WORLD_SIZE", 1)
    return None


def _check_tasks() -> int:
    """Return how many processes of this run SLURM has; 1 where that is not for SLURM to say.

    Raises:
        UserError: If they are several that Lightning would not take for ranks of one run.
    """
    if "SLURM_PROCID" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return 1
    tasks, started = _number("SLURM_NTASKS", 1), _tasks_of_step()
    if _is_terminal():
        if started > 1:
            raise UserError(
                f"srun has started {started} processes in a SLURM job named {os.environ['SLURM_JOB_NAME']}, which "
                "Lightning takes for a terminal: start them with SLURM_JOB_NAME=train srun ..."
            )
        return 1
    if tasks > 1 and started == 1:
        raise UserError(
            f"This SLURM job has {tasks} tasks, and this is a single process: start the command with srun, or ask for "
            "one task."
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"Lightning takes no SLURM job with --ntasks={tasks}: ask for tasks by --ntasks-per-node."
        )
    return tasks


def _tasks_of_step() -> int:
    """Return how many processes srun has started with this one; 1 in a script or a shell without it."""
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    # The shell of an allocation is a step of one task, in which SLURM_NTASKS is the allocation's.
    return _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))


def _is_terminal() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in _TERMINALS


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _number(name: str, default: int) -> int:
    """Read a whole number that a launcher has left in the environment."""
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal():
        raise UserError(
            f"{name}={value} in the environment is not a number: unset it, or let the launcher set it."
        )
    return int(value)
