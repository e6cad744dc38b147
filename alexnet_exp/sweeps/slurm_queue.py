"""What is asked of SLURM: to take a script, and how its jobs are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from alexnet_exp.errors import UserError

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
