"""Runs launched by torchrun or SLURM: which process is rank 0, and whether the process count fits the settings.

Lightning treats a SLURM job named bash or interactive as a terminal and ignores SLURM's variables there. So does this
package: a run started in such a job launches its other ranks itself, as on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from alexnet_exp.config.groups import Trainer
from alexnet_exp.errors import UserError
from alexnet_exp.settings import assigned
from alexnet_exp.training.launch.ranks import count_devices

_TERMINALS = ("bash", "interactive")
# Set by a launcher that starts one process per device: torchrun, or a custom one.
_EXTERNAL = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")
# World size under launchers (Kubernetes, mpirun, jsrun) whose rank variables Lightning does not read.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")
_RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "TORCHELASTIC_")


def started_externally() -> bool:
    """Return whether a launcher started this process as one of several."""
    return any(name in os.environ for name in _EXTERNAL) or (
        "SLURM_PROCID" in os.environ and not _is_terminal()
    )


def is_first_rank() -> bool:
    """Return whether this process is rank 0, before any process group exists."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # it orders nodes in its own way, not as SLURM does
        return os.environ.get("RANK", "0") == "0"
    # Each launcher sets some of these; only the first process has 0 in all that are set.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return all(rank == "0" for rank in ranks)


def check_processes(arguments: Sequence[str]) -> None:
    """Refuse to start a process that could not work together with the others of its run.

    Args:
        arguments: Command-line arguments of `train`.

    Raises:
        UserError: If srun has not started all tasks, or the processes would not share a run directory.
    """
    _check_known()
    sweep = bool({"-m", "--multirun"} & set(arguments))
    tasks = _check_tasks(sweep)
    if max(tasks, _number("WORLD_SIZE", 1)) == 1:
        return
    if sweep:
        raise UserError(
            "torchrun and srun launch the processes of one run: leave -m out, or start the sweep without them."
        )
    if not {"resume", "hydra.run.dir"} & set(assigned(arguments)):
        raise UserError(
            "Processes started by torchrun or srun must share a run directory: set resume=DIR (a new run starts there "
            "if DIR does not exist)."
        )
    # The agent's store outlives a restart: ranks of the second attempt would read the addresses of the first.
    restarts = _number("TORCHELASTIC_MAX_RESTARTS", 0)
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max-restarts would hang at the first restart, because torchrun's store keeps stale entries of "
            "the previous attempt: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment."
        )


@dataclass(frozen=True)
class _Launched:
    """Processes started by a launcher.

    Args:
        who: Name of the launcher.
        fix: How to launch another number: text with {nodes} and {devices}.
        count: World size.
        nodes: Number of nodes; None if unknown.
    """

    who: str
    fix: str
    count: int
    nodes: int | None


def check_process_count(trainer: Trainer) -> None:
    """Refuse settings that do not match the launched processes; under a launcher, a run starts none of its own.

    Args:
        trainer: Of the run.

    Raises:
        UserError: If the number of processes or nodes differs from the settings, or if the settings ask for several
            nodes without a launcher.
    """
    launched, nodes = _launched(), trainer.num_nodes
    if launched is None:
        if nodes > 1 and "MASTER_ADDR" not in os.environ:
            raise UserError(
                f"trainer.num_nodes={nodes} would wait for the other nodes forever: launch the run with torchrun or "
                "srun (see docs/cluster.md), or leave it out."
            )
        return
    devices = trainer.devices
    if not isinstance(devices, int) or devices < 1:
        # `auto` counts the devices of this machine; the others are taken to have as many.
        devices = count_devices(trainer)
    count, placed = launched.count, launched.nodes or nodes
    if devices * nodes == count and placed == nodes:
        return
    # For the hint: processes that are spread unevenly fit no trainer.num_nodes.
    machines = placed if count % placed == 0 else 1
    fitting = f"trainer.devices={count // machines}"
    fitting = fitting if machines == nodes else f"trainer.num_nodes={machines} {fitting}"
    needed, where = devices * nodes, "" if placed == nodes else f" on {placed} node{'s' * (placed != 1)}"
    raise UserError(
        f"trainer.devices={trainer.devices} with trainer.num_nodes={nodes} needs {needed} "
        f"process{'es' * (needed != 1)}, but {launched.who} has started {count}{where}: "
        f"{launched.fix.format(nodes=nodes, devices=devices)}, or set {fitting}."
    )


def _launched() -> _Launched | None:
    """Return the processes that a launcher has started for this run; None without a launcher."""
    each = _number("LOCAL_WORLD_SIZE", 0)
    count = _number("WORLD_SIZE", 1)
    nodes = count // each if each else None
    if "TORCHELASTIC_RUN_ID" in os.environ:  # also inside SLURM: Lightning looks for torchrun first
        return _Launched("torchrun", "use --nnodes={nodes} --nproc-per-node={devices}", count, nodes)
    if {"SLURM_PROCID", "SLURM_NTASKS"} & os.environ.keys() and not _is_terminal():
        fix = "request --nodes={nodes} --ntasks-per-node={devices} and start the command with srun"
        if "SLURM_STEP_ID" in os.environ:
            return _Launched("SLURM", fix, _tasks_of_step(), _number("SLURM_STEP_NUM_NODES", 0) or None)
        fix += " (in a notebook or a terminal: set SLURM_JOB_NAME=interactive)"
        return _Launched("SLURM", fix, 1, None)
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _Launched("the launcher (WORLD_SIZE)", "launch that many", count, nodes)
    return None


def _check_known() -> None:
    """Refuse processes that would each run as if they were alone.

    Raises:
        UserError: If the environment gives a world size above 1 and no rank.
    """
    if any(name.startswith(_RANKS) for name in os.environ):
        return
    for name in _WORLD_SIZES:
        if (count := _number(name, 1)) > 1:
            raise UserError(
                f"{name}={count} is set, but no rank: launch the processes with torchrun or srun, or unset {name}."
            )


def _check_tasks(sweep: bool) -> int:
    """Return how many SLURM tasks this run has; 1 outside SLURM, under torchrun and in a terminal.

    Args:
        sweep: Whether this process starts runs of its own, which are not SLURM tasks.

    Raises:
        UserError: If there are several tasks that Lightning would not treat as ranks of one run.
    """
    in_slurm = bool({"SLURM_PROCID", "SLURM_NTASKS"} & os.environ.keys())
    if not in_slurm or "TORCHELASTIC_RUN_ID" in os.environ:
        return 1
    tasks, started = _number("SLURM_NTASKS", 1), _tasks_of_step()
    if _is_terminal():
        if started > 1:
            raise UserError(
                f"srun has started {started} processes in a SLURM job named {os.environ['SLURM_JOB_NAME']}, which "
                "Lightning treats as a terminal: start them with SLURM_JOB_NAME=train srun ..."
            )
        return 1
    if sweep and started == 1:
        return 1
    if tasks > 1 and started == 1:
        raise UserError(
            f"This SLURM job has {tasks} tasks, but only one process is running: start the command with srun, or "
            "request a single task."
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"Lightning does not support SLURM jobs with --ntasks={tasks}: use --ntasks-per-node."
        )
    return tasks


def _tasks_of_step() -> int:
    """Return how many processes srun has started, this one included; 1 without srun."""
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    # salloc's shell is a step of one task, but its SLURM_NTASKS is that of the allocation.
    return _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))


def _is_terminal() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in _TERMINALS


def _number(name: str, default: int) -> int:
    """Read an integer from the environment of the launcher."""
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal():
        raise UserError(
            f"invalid {name}={value} in the environment: expected an integer; unset it, or let the launcher set it."
        )
    return int(value)
