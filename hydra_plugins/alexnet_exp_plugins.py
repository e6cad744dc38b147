"""What Hydra finds of ours: it takes launchers and sweepers from the namespace package `hydra_plugins` alone.

Hydra imports this module at every start, so nothing heavy is imported here. The work is in alexnet_exp/sweeps/.
"""

# Without the import of annotations from __future__: Hydra runs this file before Python knows it as a module, and
# dataclasses could not look the annotations up.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ProcessesConfig:
    """Settings of hydra/launcher=processes."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.ProcessesLauncher"
    max_parallel: Any = (
        "auto"  # jobs at a time; auto: one for each group of trainer.devices GPUs, or cores // threads
    )
    threads: int = 2  # of each job
    on_failure: str = "continue"  # or stop: start no other job
    retries: int = 0  # starts again from its last checkpoint a job that something outside killed


class ProcessesLauncher(Launcher):
    """Starts every job of a sweep as a process of its own: the command line of a single run."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.config: DictConfig | None = None
        self.begun = False
        self.collect = (
            False  # a sweeper that learns from failures sets it; else the first one ends the command
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember the configuration that the sweep was started with."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for them.

        Args:
            job_overrides: What each job sets.
            initial_job_idx: Number of the first.

        Returns:
            One entry per job, for the sweeper.
        """
        from alexnet_exp.sweeps.launch import launch

        assert self.config is not None
        jobs = [list(overrides) for overrides in job_overrides]
        begun, self.begun = self.begun, True
        returned = launch(self.config, self.settings, jobs, initial_job_idx, begun)
        failed = [job for job in returned if job.status == JobStatus.FAILED]
        if failed and not self.collect:
            raise failed[0]._return_value
        return returned


ConfigStore.instance().store(
    group="hydra/launcher", name="processes", node=ProcessesConfig, provider="alexnet_exp"
)
