"""What Hydra finds of ours: it takes launchers and sweepers from the namespace package `hydra_plugins` alone.

Hydra imports this module at every start, so nothing heavy is imported here. The work is in alexnet_exp/sweeps/.
"""

# Without the import of annotations from __future__: Hydra runs this file before Python knows it as a module, and
# dataclasses could not look the annotations up.
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
    max_parallel: Any = (
        "auto"  # jobs at a time; auto: one for each group of trainer.devices GPUs, or cores // threads
    )
    threads: int = 2  # of each job
    on_failure: str = "continue"  # or stop: start no other job
    retries: int = 0  # starts again from its last checkpoint a job that something outside killed


def _typed(params: Mapping[str, Any] | None) -> list[str]:
    """Return hydra.sweeper.params as it would be typed: {KEY: VALUES}."""
    return [f"{key}={'null' if values is None else values}" for key, values in (params or {}).items()]


class _Launcher(Launcher):
    """What both launchers share; Hydra makes no launcher of an abstract class."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.begun = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what the sweep was started with."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for them.

        Args:
            job_overrides: What each job sets.
            initial_job_idx: Number of the first.

        Returns:
            One entry per job, for the sweeper; of one that failed, reading its value raises.
        """
        begun, self.begun = self.begun, True
        return self.run([list(overrides) for overrides in job_overrides], initial_job_idx, begun)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Make the configuration of a job."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    @abstractmethod
    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        """Run jobs; `begun` says whether this process has begun the sweep already."""


class ProcessesLauncher(_Launcher):
    """Starts every job of a sweep as a process of its own: the command line of a single run."""

    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        from alexnet_exp.sweeps.launch import launch

        return launch(self.config, self.settings, jobs, first, self.compose, begun)


@dataclass
class SlurmConfig:
    """Settings of hydra/launcher=slurm; nodes and tasks follow trainer.num_nodes and trainer.devices."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.SlurmLauncher"
    max_parallel: Any = None  # jobs at a time; null: as many as SLURM starts
    time: Any = (
        None  # of each job, as sbatch takes it: minutes, HH:MM:SS, D-HH:MM:SS; null: the partition's own
    )
    partition: Any = None  # null: the cluster's own
    gpus_per_node: Any = (
        None  # as sbatch takes it: 4, a100:4; null: trainer.devices, without trainer=cpu; 0: none
    )
    cpus_per_task: int = 2  # of each device's process
    signal_seconds: int = 90  # ahead of the end of its time a job saves and asks to be started again
    sbatch: list[str] = field(default_factory=list)  # other options of sbatch: [--account=NAME,--mem=64G]
    setup: list[str] = field(default_factory=list)  # lines of shell ahead of the run: [module load cuda]
    wait: bool = True  # show a table until all have ended; false: submit and return


class SlurmLauncher(_Launcher):
    """Hands the jobs of a sweep to SLURM, as one job array."""

    def run(self, jobs: list[list[str]], first: int, begun: bool) -> Sequence[JobReturn]:
        from alexnet_exp.sweeps.slurm import launch

        return launch(self.config, self.settings, jobs, first, self.compose, begun)


@dataclass
class GridConfig(BasicSweeperConf):
    """Settings of hydra/sweeper=basic, which are Hydra's own."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.GridSweeper"
    params: Any = None  # {KEY: VALUES}; Hydra's own type for it takes none on the command line


class GridSweeper(BasicSweeper):
    """Tries every combination as Hydra's own does, but a failed job does not end the batches after its own."""

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run the jobs.

        Args:
            arguments: As typed.

        Returns:
            One entry per job.

        Raises:
            UserError: If the sweep cannot begin, or some job has not finished.
        """
        from alexnet_exp.sweeps.grid import run_batches

        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise UserError(
                f"hydra.sweeper.max_batch_size={self.max_batch_size} is not possible: say a number of jobs, or null."
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(_typed(self.params) + arguments)
        batches = self.split_arguments(overrides, self.max_batch_size)
        return run_batches(self.config, batches, self.launcher, self.validate_batch_is_legal)


@dataclass
class OptunaConfig:
    """Settings of hydra/sweeper=optuna."""

    _target_: str = "hydra_plugins.alexnet_exp_plugins.OptunaSweeper"
    n_trials: int = 20  # of the whole study: pruned and failed ones, and those of other machines, included
    metric: str = "val/top1"  # best epoch of each trial; the lowest of a loss, the highest of anything else
    sampler: str = "tpe"  # or any other of Optuna's, by name
    sampler_arguments: Any = None  # {KEY: VALUE}; no empty map, to which Hydra would add keys by + alone
    pruner: str = "median"  # none, hyperband, or any other of Optuna's, by name
    pruner_arguments: Any = None
    seed: Any = 0  # of the sampler; null: another one each time
    storage: Any = None  # a file or a storage URL; null: study.log in the directory of the sweep
    study_name: Any = None  # null: the sweep's own
    params: Any = None  # {KEY: VALUES} as on the command line, which wins


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
        """Make the configuration of a trial."""
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)


store(group="hydra/launcher", name="processes", node=ProcessesConfig, provider="alexnet_exp")
store(group="hydra/launcher", name="slurm", node=SlurmConfig, provider="alexnet_exp")
# In place of Hydra's own, which has been stored by the import above.
store(group="hydra/sweeper", name="basic", node=GridConfig, provider="alexnet_exp")
store(group="hydra/sweeper", name="optuna", node=OptunaConfig, provider="alexnet_exp")
