"""Processors or GPUs, shared among the jobs of a sweep."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

from alexnet_exp import cores
from alexnet_exp.settings import key_of
from alexnet_exp.sweeps.job import Job

log = logging.getLogger(__name__)
_SECONDS = 30.0  # for nvidia-smi, which a broken driver may hold for ever
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SHAPING = ("trainer", "experiment", "debug")  # settings that can change how many devices a job takes
# What launchers tell the processes that they start: a job would take itself for one of these, and jobs share a port
# or a W&B run.
_OF_A_LAUNCHER = (
    "SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT", "WANDB_RUN_ID",
)  # fmt: skip


def trainers(
    job_overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]
) -> list[DictConfig]:
    """Return the settings of the trainer that occur among jobs.

    Args:
        job_overrides: What each job sets.
        compose: Makes a job's configuration.
    """
    shaping = {tuple(o for o in own if key_of(o).startswith(_SHAPING)): list(own) for own in job_overrides}
    return [compose(own).trainer for own in shaping.values()]


class Resources:
    """Room for so many jobs.

    Args:
        slots: Jobs at a time.
        threads: Of each job.
        groups: Disjoint groups of GPUs, one for each job at a time; empty on a machine without.
        sweep: Name that groups the jobs' W&B runs.
    """

    def __init__(self, slots: int, threads: int, groups: list[tuple[str, ...]], sweep: str) -> None:
        self.free, self.threads, self.groups, self.sweep = slots, threads, list(groups), sweep
        self._with_gpus = bool(groups)

    @classmethod
    def of_this_machine(
        cls, config: DictConfig, settings: Mapping[str, Any], trainers: Sequence[DictConfig]
    ) -> Resources:
        """Find out what there is room for.

        Args:
            config: The sweep's configuration, with `hydra`.
            settings: Of the launcher.
            trainers: Those that occur among the jobs; where they differ, each job has room for the most devices.
        """
        wanted, threads = settings["max_parallel"], settings["threads"]
        gpus = [] if all(trainer.accelerator == "cpu" for trainer in trainers) else visible_gpus()
        per_job = max(_devices_per_job(trainer.devices) for trainer in trainers)
        groups, most = _groups(gpus, per_job), max(1, cores.available_cores() // (threads * per_job))
        if gpus:
            # Indices are those of all GPUs that the sweep sees, so no job may see fewer.
            groups = [] if any(isinstance(trainer.devices, ListConfig) for trainer in trainers) else groups
            most = len(groups) or 1
        slots = most if wanted == "auto" else min(wanted, most) if gpus else wanted
        return cls(slots, threads, groups, os.path.basename(str(config.hydra.sweep.dir)))

    def take(self, job: Job) -> dict[str, str] | None:
        """Return the environment for a job, or None while there is no room."""
        if self.free == 0:
            return None
        self.free -= 1
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
        environment = {**inherited, **dict.fromkeys(_THREADS, str(self.threads))}
        environment.pop(
            "HYDRA_FULL_ERROR", None
        )  # the command line sets it for itself; train.log has the traceback
        environment.setdefault("WANDB_RUN_GROUP", self.sweep)
        if self._with_gpus:
            job.devices = self.groups.pop(0)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.devices)
        return environment

    def give_back(self, job: Job) -> None:
        """Take back what a job held."""
        self.free += 1
        if job.devices is not None:
            self.groups.append(job.devices)
            job.devices = None


def _devices_per_job(devices: Any) -> int:
    """Return how many devices a job takes: one where the settings leave it open, so that the jobs share them."""
    if isinstance(devices, int) and devices > 0:
        return devices
    return len(devices) if isinstance(devices, ListConfig) else 1


def _groups(gpus: list[str], size: int) -> list[tuple[str, ...]]:
    """Cut a list into groups of equal size; what is left over is left out."""
    return [tuple(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]


def visible_gpus() -> list[str]:
    """List the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi does not answer (%s): the sweep counts no GPUs.", error)
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
