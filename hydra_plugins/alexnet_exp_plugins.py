"""Our launchers and sweepers, in the namespace package where Hydra looks for plugins.

Hydra imports this module at every start, so it imports nothing heavy. The work is in alexnet_exp/sweeps/.
"""

# No `from __future__ import annotations`: Hydra executes this file before it is in sys.modules, where dataclasses
# would look string annotations up.
import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from alexnet_exp.config.hydra_internals import basic_sweeper, store
from alexnet_exp.errors import UserError, missing_extra

BasicSweeper, BasicSweeperConf = basic_sweeper()


@dataclass
class ProcessesConfig:
    """Settings of hydra/launcher=processes."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.ProcessesLauncher"
    # Jobs at a time; auto: one per group of trainer.devices GPUs, or cores // threads.
    max_parallel: Any = "auto"
    threads: int = 2  # per job
    on_failure: str = "continue"  # or stop: start no more jobs
    retries: int = 0  # of a job killed by a signal, from its last checkpoint


def _typed(params: Mapping[str, Any] | None) -> list[str]:
    """Return hydra.sweeper.params, {KEY: VALUES}, as overrides."""
    return [f"{key}={'null' if values is None else values}" for key, values in (params or {}).items()]


class _Launcher(Launcher):
    """What both launchers share; abstract, so that Hydra does not register it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.begun = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the sweep was started with."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for them.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first.

        Returns:
            One entry per job, for the sweeper; the value of a failed one raises when read.
        """
        begun, self.begun = self.begun, True
        return self.run([list(overrides) for overrides in job_overrides], initial_job_idx, begun)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Compose the configuration of a job."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    @abstractmethod
    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        """Run jobs; `begun` if this process has already started the sweep."""


class ProcessesLauncher(_Launcher):
    """Runs every job of a sweep in its own process, with the command line of a single run."""

    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        from alexnet_exp.sweeps.launch import launch

        return launch(self.config, self.settings, jobs, first, self.compose, begun)


@dataclass
class SlurmConfig:
    """Settings of hydra/launcher=slurm; nodes and tasks follow trainer.num_nodes and trainer.devices."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.SlurmLauncher"
    max_parallel: Any = None  # jobs at a time; null: no limit
    time: Any = None  # per job, for sbatch: minutes, HH:MM:SS, D-HH:MM:SS; null: the partition's default
    partition: Any = None  # null: the cluster's default
    gpus_per_node: Any = (
        None  # for sbatch: 4, a100:4; null: trainer.devices, or none with trainer=cpu; 0: none
    )
    cpus_per_task: int = 2  # per device
    signal_seconds: int = 90  # before its time limit a job saves and requeues itself
    sbatch: list[str] = field(default_factory=list)  # more options for sbatch: [--account=NAME,--mem=64G]
    setup: list[str] = field(default_factory=list)  # shell commands before the run: [module load cuda]
    wait: bool = True  # show a table until all jobs have ended; false: submit and return


class SlurmLauncher(_Launcher):
    """Submits the jobs of a sweep to SLURM as one job array."""

    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        from alexnet_exp.sweeps.slurm import launch

        return launch(self.config, self.settings, jobs, first, self.compose, begun)


@dataclass
class GridConfig(BasicSweeperConf):
    """Settings of hydra/sweeper=basic: those of Hydra's own sweeper."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.GridSweeper"
    params: Any = None  # {KEY: VALUES}; Any, since Hydra's own type cannot be set on the command line


class GridSweeper(BasicSweeper):
    """Runs every combination like Hydra's own, but a failed job does not stop later batches."""

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run the jobs.

        Args:
            arguments: As typed.

        Returns:
            One entry per job.

        Raises:
            UserError: If the sweep cannot start, or a job did not finish.
        """
        from alexnet_exp.sweeps.grid import run_batches

        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise UserError(
                f"invalid hydra.sweeper.max_batch_size={self.max_batch_size}: expected an integer >= 1, or null."
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(_typed(self.params) + arguments)
        batches = self.split_arguments(overrides, self.max_batch_size)
        return run_batches(self.config, batches, self.launcher, self.validate_batch_is_legal)


@dataclass
class OptunaConfig:
    """Settings of hydra/sweeper=optuna."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.OptunaSweeper"
    n_trials: int = 20  # of the whole study, including pruned and failed trials, and those of other machines
    metric: str = "val/top1"  # of the best epoch; losses are minimised, anything else maximised
    sampler: str = "tpe"  # or any other of Optuna's samplers
    sampler_arguments: Any = None  # {KEY: VALUE}; not {}, whose keys would need a + to set
    pruner: str = "median"  # none, hyperband, or any other of Optuna's pruners
    pruner_arguments: Any = None
    seed: Any = 0  # of the sampler; null: random
    storage: Any = None  # a file or a storage URL; null: study.log in the directory of the sweep
    study_name: Any = None  # null: named after the sweep
    params: Any = None  # {KEY: VALUES}; the command line overrides them


class OptunaSweeper(Sweeper):
    """Searches with Optuna; every trial is a job of hydra/launcher=processes."""

    def __init__(self, params: Any = None, **settings: Any) -> None:
        self.params, self.settings = params, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the sweep was started with."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the search.

        Args:
            arguments: As typed.
        """
        if importlib.util.find_spec("optuna") is None:
            raise UserError(f"hydra/sweeper=optuna needs {missing_extra('optuna', 'sweeps')}")
        from alexnet_exp.sweeps.optuna.search import search

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(_typed(self.params) + arguments)
        search(self.config, self.settings, overrides, self.validate_batch_is_legal, self.compose)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Compose the configuration of a trial."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)


store(group="hydra/launcher", name="processes", node=ProcessesConfig, provider="alexnet_exp")
store(group="hydra/launcher", name="slurm", node=SlurmConfig, provider="alexnet_exp")
# Replaces Hydra's own, which the import above has stored.
store(group="hydra/sweeper", name="basic", node=GridConfig, provider="alexnet_exp")
store(group="hydra/sweeper", name="optuna", node=OptunaConfig, provider="alexnet_exp")
