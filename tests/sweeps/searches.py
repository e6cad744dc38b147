"""Searches with stand-ins for trials; `python -m tests.sweeps.searches DIR` runs one for a test to kill."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.config.hydra_internals import VERSION_BASE
from alexnet_exp.sweeps import job
from alexnet_exp.sweeps.optuna.search import search
from hydra_plugins.alexnet_exp_plugins import OptunaConfig, ProcessesConfig

STAND_IN = [sys.executable, "-S", str(Path(__file__).with_name("stand_in.py"))]
KILLED = ("epochs=4", "seconds=0.25", "lr=tag(log,interval(1e-3,1))")  # the search of this module's command


def defaults(**changes: Any) -> dict[str, Any]:
    """Return the default hydra.sweeper settings, without params."""
    settings = dataclasses.asdict(OptunaConfig()) | {"pruner": "none"} | changes
    return {key: value for key, value in settings.items() if key not in ("_target_", "params")}


def config(folder: Path, *typed: str, resume: bool = False, **launcher: Any) -> DictConfig:
    """Return the configuration that Hydra would pass to the sweeper."""
    return OmegaConf.create(
        {
            "sweep": {"resume": str(folder) if resume else None},
            "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 4, "limit_val_batches": 1.0},
            "data": {"val_size": 10},
            "hydra": {
                "launcher": {**dataclasses.asdict(ProcessesConfig()), "max_parallel": 2, **launcher},
                "sweep": {"dir": str(folder)},
                "overrides": {"task": list(typed), "hydra": []},
                "runtime": {"config_sources": []},
                "job": {"config_name": "train"},
            },
        }
    )


def parsed(*overrides: str) -> list[Override]:
    """Parse overrides as Hydra does, with the groups of conf/."""
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Replace every job by a stand-in."""
    before, job.PROGRAM = job.PROGRAM, STAND_IN
    try:
        yield
    finally:
        job.PROGRAM = before


def run(
    folder: Path, *typed: str, resume: bool = False, launcher: dict[str, Any] | None = None, **sweeper: Any
) -> str:
    """Run a search, and return what it printed."""
    printed = io.StringIO()
    with stand_ins(), contextlib.redirect_stdout(printed):
        asked = config(folder, *typed, resume=resume, **(launcher or {}))
        search(asked, defaults(**sweeper), parsed(*typed), lambda rows: None, lambda overrides: asked)
    return printed.getvalue()


if __name__ == "__main__":
    run(Path(sys.argv[1]), *KILLED, n_trials=4)
