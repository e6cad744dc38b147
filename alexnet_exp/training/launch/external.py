"""Processes that torchrun or SLURM has started: who speaks for the run, and whether they are as many as it takes.

Lightning takes a SLURM job named bash or interactive for a terminal, and looks at none of SLURM's variables there. Nor
does this package: a run that is started there starts its other ranks itself, as on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.settings import assigned
from alexnet_exp.training.launch.ranks import count_devices

_TERMINALS = ("bash", "interactive")
# Set by a launcher that has already started a process for every device: torchrun, or one of the user's own.
_EXTERNAL = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")
# How many there are, of launchers (Kubernetes, mpirun, jsrun) that do not tell Lightning which of them this one is.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")
_WHICH = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "TORCHELASTIC_")


def started_externally() -> bool:
    """Return whether this process is one of several that something else has started."""
    return any(name in os.environ for name in _EXTERNAL) or (
        "SLURM_PROCID" in os.environ and not _is_terminal()
    )


def is_first_rank() -> bool:
    """Return whether this process speaks for the run, before any process group exists."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # it numbers machines as it likes, by another order than SLURM's
        return os.environ.get("RANK", "0") == "0"
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return all(rank == "0" for rank in ranks)


def check_processes(arguments: Sequence[str]) -> None:
    """Refuse to start one of several processes that could not work together.

    Args:
        arguments: Of `train`, as typed.

    Raises:
        UserError: If SLURM has more tasks than were started, or the processes would not share a directory.
    """
    _check_known()
    sweep = bool({"-m", "--multirun"} & set(arguments))
    tasks = _check_tasks(sweep)
    if max(tasks, _number("WORLD_SIZE", 1)) == 1:
        return
    if sweep:
        raise UserError(
            "torchrun and srun start a run's processes, not a sweep's: leave -m out, or start the sweep without them."
        )
    if not {"resume", "hydra.run.dir"} & set(assigned(arguments)):
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


@dataclass(frozen=True)
class _Launched:
    """Processes that something else has started.

    Args:
        who: Has started them.
        mend: How to start others: text with {nodes} and {devices}.
        count: All of them.
        nodes: Machines that they are on; None if nothing says so.
    """

    who: str
    mend: str
    count: int
    nodes: int | None


def check_process_count(trainer: Mapping[str, Any]) -> None:
    """Refuse devices that no process was started for: beside a launcher's, a run starts none of its own.

    Args:
        trainer: Settings of the run.

    Raises:
        UserError: If the launcher has started more processes or fewer than the settings take, or elsewhere; or if
            there are to be other machines, and nothing has started a process there.
    """
    launched, nodes = _launched(), trainer["num_nodes"]
    if launched is None:
        if nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"trainer.num_nodes={nodes} would wait for the other machines for ever: start the run with torchrun or "
                "srun, as docs/cluster.md has it, or leave it out."
            )
        return
    devices = trainer["devices"]
    if not isinstance(devices, int) or devices < 1:
        devices = count_devices(trainer)
    count, placed = launched.count, launched.nodes or nodes
    if devices * nodes == count and placed == nodes:
        return
    machines = placed if count % placed == 0 else 1
    fitting = f"devices={count // machines}"
    fitting = fitting if machines == nodes else f"num_nodes={machines} trainer.{fitting}"
    raise UserError(
        f"trainer.devices={trainer['devices']} with trainer.num_nodes={nodes} takes {_processes(devices * nodes)}, and "
        f"{launched.who} has started {count}{'' if placed == nodes else f' on {_machines(placed)}'}: "
        f"{launched.mend.format(nodes=nodes, devices=devices)}, or say trainer.{fitting}."
    )


def _launched() -> _Launched | None:
    """Return what has started the processes of this run; None if nothing has."""
    each = _number("LOCAL_WORLD_SIZE", 0)
    count = _number("WORLD_SIZE", 1)
    nodes = count // each if each else None
    if "TORCHELASTIC_RUN_ID" in os.environ:  # also inside of SLURM, where Lightning looks for it first
        mend = "start it with --nnodes={nodes} --nproc-per-node={devices}"
        return _Launched("torchrun", mend, count, nodes)
    if {"SLURM_PROCID", "SLURM_NTASKS"} & os.environ.keys() and not _is_terminal():
        mend = "ask for --nodes={nodes} --ntasks-per-node={devices} and start the command with srun"
        if "SLURM_STEP_ID" in os.environ:
            return _Launched("SLURM", mend, _tasks_of_step(), _number("SLURM_STEP_NUM_NODES", 0) or None)
        mend += " (in a notebook or a terminal: put SLURM_JOB_NAME=interactive ahead of it)"
        return _Launched("SLURM", mend, 1, None)
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _Launched("the launcher (WORLD_SIZE)", "let it start as many", count, nodes)
    return None


def _check_known() -> None:
    """Refuse processes that would each take themselves for the whole run.

    Raises:
        UserError: If something says that they are several, and nothing which of them this one is.
    """
    if any(name.startswith(_WHICH) for name in os.environ):
        return
    for name in _COUNTS:
        if (count := _number(name, 1)) > 1:
            raise UserError(
                f"{name}={count} says that this is one of several processes, and nothing says which: start them with "
                f"torchrun or srun, or unset {name}."
            )


def _check_tasks(sweep: bool) -> int:
    """Return how many processes of this run SLURM has; 1 where that is not for SLURM to say.

    Args:
        sweep: Whether this process starts runs of its own, which are no tasks of SLURM's.

    Raises:
        UserError: If they are several that Lightning would not take for ranks of one run.
    """
    in_slurm = bool({"SLURM_PROCID", "SLURM_NTASKS"} & os.environ.keys())
    if not in_slurm or "TORCHELASTIC_RUN_ID" in os.environ:
        return 1
    tasks, started = _number("SLURM_NTASKS", 1), _tasks_of_step()
    if _is_terminal():
        if started > 1:
            raise UserError(
                f"srun has started {started} processes in a SLURM job named {os.environ['SLURM_JOB_NAME']}, which "
                "Lightning takes for a terminal: start them with SLURM_JOB_NAME=train srun ..."
            )
        return 1
    if sweep and started == 1:
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


def _machines(count: int) -> str:
    return "1 machine" if count == 1 else f"{count} machines"


def _number(name: str, default: int) -> int:
    """Read a whole number that a launcher has left in the environment."""
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal():
        raise UserError(
            f"{name}={value} in the environment is not a number: unset it, or let the launcher set it."
        )
    return int(value)
