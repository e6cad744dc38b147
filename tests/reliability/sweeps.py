"""Invalid sweeps, and environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from tests.reliability.bad import DIGITS, Bad, Kind, text


def _sweep_of(*overrides: str) -> str:
    listed = ", ".join(f'"{override}"' for override in overrides)
    return f'{{"overrides": [{listed}], "jobs": []}}'


_HERE = "hydra.sweep.dir=sweep"
SWEEPS = Kind(
    "Sweeps",
    "refused before the first job starts",
    (
        Bad("hydra.launcher.max_parallel=0", "expected auto, or an integer >= 1"),
        Bad("hydra.launcher.on_failure=ignore", "expected one of continue, stop"),
        Bad("hydra/launcher=submitit", "conf/hydra/launcher has no file submitit.yaml"),
        Bad("hydra/launcher=slurm hydra.launcher.cpus_per_task=0", "invalid hydra.launcher.cpus_per_task=0"),
        Bad("hydra/launcher=slurm 'hydra.launcher.sbatch=[account]'", "expected an option such as --account=NAME"),
        Bad(
            "trainer=cpu hydra/launcher=slurm",
            "hydra/launcher=slurm needs sbatch",
            "`train -m hydra/launcher=slurm` where there is no SLURM",
            environment={"PATH": ""},
        ),
        Bad("", "sweep already holds a sweep: resume it with sweep.resume=", "the directory of another sweep",
            text("sweep/sweep.json", _sweep_of("seed=1,2"))),
        Bad("sweep.resume=sweep", "missing seed=3,4, new seed=1,2", "`sweep.resume=` with other values",
            text("sweep/sweep.json", _sweep_of("seed=3,4"))),
        Bad("sweep.resume=sweep", "sweep.json is damaged", "`sweep.resume=` of a sweep.json that is cut short",
            text("sweep/sweep.json", _sweep_of("seed=1,2")[:20])),
    ),
    base=("train", "-m", "seed=1,2", _HERE),
    verb="train -m",
    leaves="an empty sweep",
)  # fmt: skip

OPTUNA = Kind(
    "Searches",
    "refused before the first trial starts",
    (
        Bad("seed=3", "hydra/sweeper=optuna has nothing to search: give a setting several values"),
        Bad("optimizer.lr=interval(1,0.1)", "invalid search space"),
        Bad("'optimizer.lr=tag(exp,interval(0.1,1))'", "unknown tag exp; the only one is log"),
        Bad("'optimizer.lr=tag(log,choice(0.1,1))'", "the tag log does not apply to choices"),
        Bad("optimizer.lr=0.1,1 hydra.sweeper.sampler=gridd", "Optuna has no such sampler. Did you mean grid"),
        Bad("optimizer.lr=0.1,1 hydra.sweeper.metric=accuracy", "expected one of val/top1"),
        Bad("optimizer.lr=0.1,1 data.val_size=0", "hydra.sweeper.metric=val/top1 needs validation images"),
        Bad("optimizer.lr=0.1,1 hydra/launcher=slurm", "hydra/sweeper=optuna needs hydra/launcher=processes"),
        Bad("'optimizer.lr=interval(0.1,1)' hydra.sweeper.sampler=grid", "needs a range or choices for optimizer.lr"),
        Bad("optimizer.lr=0.1,1 hydra.sweeper.storage=nosql://x", "hydra.sweeper.storage cannot be opened"),
        Bad("optimizer.lr=0.1,1 hydra.sweeper.sampler_arguments={depth:3}", "invalid arguments for hydra.sweeper."),
    ),
    base=("train", "-m", "hydra/sweeper=optuna", _HERE),
    verb="train -m hydra/sweeper=optuna",
    leaves="an empty sweep",
    needs=("optuna",),
)  # fmt: skip


def _gone(here: Path) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()


ENVIRONMENT = Kind(
    "The environment",
    "refused before a run begins; no directory is left",
    (
        Bad("train", "The current folder has been removed", "a current folder that was removed", _gone),
        Bad("train hydra.run.dir=" + "x" * 300, "cannot be written (File name too long)", "a directory of 300 letters"),
        Bad("train hydra.run.dir=file/run", "cannot be written (Not a directory)", "a directory inside of a file",
            text("file", "mine")),
        Bad("train", "invalid paths.data_dir='': expected a path", "`ALEXNET_DATA_DIR=` without a value",
            environment={"ALEXNET_DATA_DIR": ""}),
        Bad("train", "invalid WORLD_SIZE=two in the environment: expected an integer", "`WORLD_SIZE=two`",
            environment={"WORLD_SIZE": "two"}),
        Bad("train", "Processes started by torchrun or srun must share a run directory", "torchrun without `resume=`",
            environment={"WORLD_SIZE": "2", "LOCAL_RANK": "0"}),
        Bad("train -m seed=1,2", "torchrun and srun launch the processes of one run", "torchrun with `-m`",
            environment={"WORLD_SIZE": "2", "LOCAL_RANK": "0"}),
        Bad("train resume=new", "torchrun --max-restarts would hang at the first restart", "`--max-restarts=3`",
            environment={"WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}),
        Bad("train", "This SLURM job has 4 tasks, but only one process is running", "four SLURM tasks without srun",
            environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}),
    ),
)  # fmt: skip

_NO_KEY = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
TRACKING = Kind(
    "Weights & Biases",
    "refused before training starts; the run's result.json says so",
    (
        Bad("logger=wandb", "invalid WANDB_MODE=sometimes in the environment: expected one of online",
            "`WANDB_MODE=sometimes`", environment={**_NO_KEY, "WANDB_MODE": "sometimes"}),
        Bad("logger=wandb logger.wandb.mode=online", "W&B has no API key", environment=_NO_KEY),
    ),
    base=DIGITS,
    leaves="a failed run",
)  # fmt: skip
DASHBOARD = Kind(
    "A dashboard without an account",
    "refused before anything is built",
    (
        Bad(
            "dashboard me/mine",
            "W&B has no API key: run `wandb login`, or set dry_run=true",
            environment=_NO_KEY,
        ),
    ),
    needs=("wandb_workspaces",),
)

KINDS = (SWEEPS, OPTUNA, ENVIRONMENT, TRACKING, DASHBOARD)
