"""Share CPU cores or GPUs among the jobs of a sweep."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

from alexnet_exp import cores
from alexnet_exp.settings import key_of
from alexnet_exp.sweeps.job import Job

log = logging.getLogger(__name__)
_SECONDS = 30.0  # for nvidia-smi, which hangs on a broken driver
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_DEVICE_GROUPS = ("trainer", "experiment", "debug")  # groups that can change the number of devices
# Set by launchers for their own ranks. A job that inherited them would act as such a rank, and all jobs would share one
# port and one W&B run.
_LAUNCHER_VARIABLES = (
    "SLURM_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT", "WANDB_RUN_ID",
)  # fmt: skip


def trainers(
    job_overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]
) -> list[DictConfig]:
    """Return the different trainer settings among jobs.

    Args:
        job_overrides: The overrides of each job.
        compose: Composes a job's configuration.
    """
    # Composing takes tenths of a second: do it once for each combination that can matter.
    shaping = {
        tuple(o for o in own if key_of(o).startswith(_DEVICE_GROUPS)): list(own) for own in job_overrides
    }
    return [compose(own).trainer for own in shaping.values()]


class Resources:
    """Slots for jobs, each with its cores or GPUs.

    Args:
        slots: Jobs at a time.
        threads: Per job.
        groups: Disjoint groups of GPUs, one per slot; empty without GPUs.
        sweep: W&B group of the jobs' runs.
    """

    def __init__(self, slots: int, threads: int, groups: list[tuple[str, ...]], sweep: str) -> None:
        self.free, self.threads, self.groups, self.sweep = slots, threads, list(groups), sweep
        self._with_gpus = bool(groups)

    @classmethod
    def of_this_machine(
        cls, config: DictConfig, max_parallel: int | str, threads: int, trainers: Sequence[DictConfig]
    ) -> Resources:
        """Determine what fits on this machine.

        Args:
            config: The sweep's configuration, with `hydra`.
            max_parallel: Jobs at a time, or 'auto'.
            threads: Per job.
            trainers: The trainer settings of the jobs; every slot fits the job with the most devices.
        """
        gpus = [] if all(trainer.accelerator == "cpu" for trainer in trainers) else visible_gpus()
        # Slots of one size, so that small jobs never keep a large one waiting.
        per_job = max(_devices_per_job(trainer.devices) for trainer in trainers)
        groups = [tuple(gpus[i : i + per_job]) for i in range(0, len(gpus) - per_job + 1, per_job)]
        most = max(1, cores.available_cores() // (threads * per_job))
        if gpus:
            # trainer.devices=[2,3] counts all GPUs visible to the sweep, so such a job must see all of them.
            groups = [] if any(isinstance(trainer.devices, ListConfig) for trainer in trainers) else groups
            most = len(groups) or 1
        # Jobs may share cores if max_parallel asks for it, but each needs its own GPUs.
        wanted = most if isinstance(max_parallel, str) else max_parallel
        slots = min(wanted, most) if gpus else wanted
        return cls(slots, threads, groups, os.path.basename(str(config.hydra.sweep.dir)))

    def take(self, job: Job) -> dict[str, str] | None:
        """Return the environment for a job, or None if no slot is free."""
        if self.free == 0:
            return None
        self.free -= 1
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER_VARIABLES)
        }
        environment = {**inherited, **dict.fromkeys(_THREADS, str(self.threads))}
        environment.pop("HYDRA_FULL_ERROR", None)  # set by our own command line, not by the user
        environment.setdefault("WANDB_RUN_GROUP", self.sweep)
        if self._with_gpus:
            job.devices = self.groups.pop(0)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.devices)
        return environment

    def give_back(self, job: Job) -> None:
        """Release the slot of a job."""
        self.free += 1
        if job.devices is not None:
            self.groups.append(job.devices)
            job.devices = None


def _devices_per_job(devices: Any) -> int:
    """Return the number of devices per job: one for auto, so that the jobs share the machine."""
    if isinstance(devices, int) and devices > 0:
        return devices
    return len(devices) if isinstance(devices, ListConfig) else 1


def visible_gpus() -> list[str]:
    """List the usable GPUs as for CUDA_VISIBLE_DEVICES, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = (name.strip() for name in chosen.split(","))
        # CUDA, too, ignores everything from the first invalid one on.
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi does not respond (%s): the sweep runs without GPUs.", error)
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
