"""hydra/sweeper=optuna: run a study whose trials are jobs in processes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from rich.console import Console

from alexnet_exp.config.overrides import typed
from alexnet_exp.config.schema import checked
from alexnet_exp.errors import UserError, shell_command
from alexnet_exp.runs.compare.command import summarise
from alexnet_exp.runs.compare.table import print_table
from alexnet_exp.sweeps.job import FAILED
from alexnet_exp.sweeps.launch import Launcher, begin, job_flags, resume_hint
from alexnet_exp.sweeps.optuna.page import write_sweep_page
from alexnet_exp.sweeps.optuna.pool import TrialPool, Trials
from alexnet_exp.sweeps.optuna.space import Space, as_overrides, check_values, read_space
from alexnet_exp.sweeps.optuna.study import (
    REASON,
    STORAGE,
    absolute,
    check_choices,
    check_sweeper,
    num_trials,
    open_study,
)
from alexnet_exp.sweeps.record import SweepRecord
from alexnet_exp.sweeps.resources import Resources, trainers
from alexnet_exp.tracking.redact import redact, without_passwords

_LAUNCHER = "alexnet_exp_plugins.ProcessesLauncher"


def search(
    config: DictConfig,
    settings: Mapping[str, Any],
    overrides: Sequence[Override],
    validate: Callable[[list[list[str]]], None],
    compose: Callable[[list[str]], DictConfig],
) -> None:
    """Run or resume a search, and show the results.

    Args:
        config: The sweep's configuration, with `hydra`.
        settings: hydra.sweeper, without params.
        overrides: Parsed: the search space, and what all trials share.
        validate: Raises if overrides do not compose.
        compose: Composes a trial's configuration.

    Raises:
        UserError: For invalid settings, or if no trial finished.
    """
    if not config.hydra.launcher._target_.endswith(_LAUNCHER):
        raise UserError("hydra/sweeper=optuna needs hydra/launcher=processes, its default.")
    # All that can be refused is refused before the sweep has a directory.
    launcher = checked(Launcher, _plain(config.hydra.launcher), "hydra.launcher.")
    sweeper = check_sweeper(_plain(settings), config)
    # A setting of this start of the sweep, not of its trials.
    overrides = [o for o in overrides if o.key_or_group != "sweep.resume"]
    space = read_space(overrides)
    with _quiet():
        check_choices(sweeper, space, _max_epochs(config))
    check_values(space, overrides, compose)
    validate(space.examples())
    directory = Path(str(config.hydra.sweep.dir)).absolute()
    record, console = SweepRecord(directory), Console(soft_wrap=True)
    record.check_resumable(config)  # before `lock` creates the directory
    with record.lock(), _quiet():
        begin(record, config, console)
        typed = sweeper.storage
        sweeper = replace(sweeper, storage=record.place(typed, absolute(typed)) if typed else None)
        study, stored = open_study(sweeper, space, directory, _max_epochs(config))
        record.keep("study", without_passwords(f"{typed or STORAGE} {study.study_name}"))
        count = num_trials(sweeper, space)
        flags, own = job_flags(config), typed is None
        trials = Trials(study, stored, space, sweeper.metric, count, directory, flags, own)
        needed = trainers(space.examples(), compose)
        resources = Resources.of_this_machine(config, launcher.max_parallel, launcher.threads, needed)
        pool = TrialPool(trials, launcher, resources, console)
        with resume_hint(directory, console):
            pool.run()
        _conclude(trials, console)
    console.print(f"sweep directory: {directory}", highlight=False)
    _check_outcome(pool, study)  # last: the pages show why trials have failed


def _check_outcome(pool: TrialPool, study: optuna.Study) -> None:
    if pool.stopping:
        job = next(job for job in pool.jobs if job.state == FAILED)
        raise UserError(f"hydra.launcher.on_failure=stop: {job.directory} failed: {job.why}")
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        reasons = [trial.user_attrs[REASON] for trial in study.trials if REASON in trial.user_attrs]
        first = f" The first failed: {redact(reasons[0])}" if reasons else ""
        raise UserError(f"No trial finished ({counts}).{first}")


def _plain(settings: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "_target_"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's line per trial and its warnings about experimental classes."""
    with warnings.catch_warnings():
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        yield


def _max_epochs(config: DictConfig) -> int | None:
    epochs = config.trainer.max_epochs
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def _conclude(trials: Trials, console: Console) -> None:
    """Write the pages, and print the best trial and the command that repeats it."""
    ended = trials.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    # In a shared study, all of them may be another sweep's.
    if any(trials.folder(trial).exists() for trial in ended):
        print_table(summarise(trials.directory, trials.metric))
    best = trials.study.best_trial if any(t.state == TrialState.COMPLETE for t in ended) else None
    command = repeat_command(trials.space, trials.flags, best.params) if best else None
    write_sweep_page(trials, command)
    if best:
        drawn = redact(" ".join(as_overrides(best.params)))
        console.print(f"best trial:      {best.number}, {trials.metric} {best.value:.4f}", highlight=False)
        console.print(f"best settings:   {drawn}", highlight=False, markup=False)
        console.print(f"command:         {command}", highlight=False, markup=False)
    console.print(f"page:            {trials.directory / 'sweep.html'}", highlight=False)


def repeat_command(space: Space, flags: list[str], drawn: Mapping[str, Any]) -> str:
    """Return the command line of a single run with a trial's settings, without secrets."""
    return redact(shell_command(["alexnet-exp", "train", *flags, *map(typed, space.overrides(drawn))]))
