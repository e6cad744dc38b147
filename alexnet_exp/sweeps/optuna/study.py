"""The study of an Optuna sweep: storage, sampler and pruner from hydra.sweeper, and ownership of trials.

Sweeps can share a study. Each signs the trials that it runs, and renews the signatures once a minute. A sweep on this
machine is alive if its process is; one on another machine counts as dead after 15 minutes without a renewal. Optuna's
own heartbeat works for databases only, not for a journal file on a shared disk, and would notice a sweep killed on this
machine only after its grace period.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from alexnet_exp.config.schema import Rule, at_least, checked, group, metric, null, setting, text
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.sweeps.job import identity, is_gone
from alexnet_exp.sweeps.optuna.space import Space, enumerated
from alexnet_exp.tracking.metrics import lower_is_better
from alexnet_exp.tracking.redact import redact, with_passwords

STORAGE = "study.log"  # in the sweep's directory
EXHAUSTIVE = (GridSampler, BruteForceSampler)  # try every point once
OWNER, SEEN = "owner", "seen"  # attributes of a trial
LOST, REASON = "lost", "failed"
BEAT_SECONDS = 60.0  # between renewals of a signature
SILENT_SECONDS = 900.0  # long: the clocks of two machines may differ by minutes
_SQLITE = "sqlite:///"
_MAP = Rule("{KEY: VALUE}", lambda v: isinstance(v, Mapping))


@group
class Sweeper:
    """Settings of hydra/sweeper=optuna, without params."""

    n_trials: int = setting(at_least(1))
    metric: str = setting(metric)
    sampler: str = setting(text)
    sampler_arguments: Mapping[str, Any] | None = setting(_MAP | null)
    pruner: str = setting(text)
    pruner_arguments: Mapping[str, Any] | None = setting(_MAP | null)
    seed: int | None = setting(at_least(0) | null)
    storage: str | None = setting(text | null)
    study_name: str | None = setting(text | null)


def check_sweeper(settings: Mapping[str, Any], config: DictConfig) -> Sweeper:
    """Return the settings of the sweeper as an object; trials must log its metric.

    Args:
        settings: hydra.sweeper, without params.
        config: The sweep's.

    Raises:
        UserError: For the first error.
    """
    sweeper = checked(Sweeper, settings, "hydra.sweeper.")
    unvalidated = {
        "data.val_size=0: set data.val_size=5000": config.data.get("val_size") == 0,
        "trainer.limit_val_batches=0: leave it out": config.trainer.limit_val_batches == 0,
    }
    for why, holds in unvalidated.items():
        if holds and sweeper.metric.startswith("val/"):
            raise UserError(f"hydra.sweeper.metric={sweeper.metric} needs validation images, and {why}.")
    return sweeper


def check_choices(sweeper: Sweeper, space: Space, max_epochs: int | None) -> None:
    """Construct sampler and pruner once before the sweep has a directory; arguments as for `open_study`.

    Raises:
        UserError: If Optuna has no such class, or it rejects its arguments.
    """
    _sampler(sweeper, space, seed=0)
    _pruner(sweeper, max_epochs)


def open_study(
    sweeper: Sweeper, space: Space, directory: Path, max_epochs: int | None
) -> tuple[optuna.Study, BaseStorage]:
    """Open a study, or create it.

    Args:
        sweeper: Its settings.
        space: The search space.
        directory: The directory of the sweep.
        max_epochs: Of every trial, if known: the budget of hyperband.

    Returns:
        The study and its storage.

    Raises:
        UserError: If the storage cannot be opened, or its study has another metric or search space.
    """
    own = sweeper.storage is None
    name = sweeper.study_name or ("study" if own else directory.name)
    if own:
        _repair(directory / STORAGE)
    storage = _open_storage(sweeper.storage or str(directory / STORAGE))
    direction = "minimize" if lower_is_better(sweeper.metric) else "maximize"
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    _check_fits(study, sweeper.metric, space)
    study.set_user_attr("metric", sweeper.metric)
    # A resumed search must not repeat its first samples, and two machines must not sample the same.
    place = "" if own else f"{socket.gethostname()} {os.getpid()}"
    seed = sweeper.seed
    drawn = None if seed is None else random.Random(f"{seed} {len(study.trials)} {place}").getrandbits(31)
    sampler, pruner = _sampler(sweeper, space, drawn), _pruner(sweeper, max_epochs)
    # Opened a second time, because the sampler's seed depends on the trials found the first time.
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner), storage


def running_trial(study: optuna.Study, storage: BaseStorage, number: int) -> Trial:
    """Return a trial that an earlier process asked for, to continue it."""
    return Trial(study, _trial_id(study, storage, number))


def sign(trial: Trial) -> None:
    """Sign a trial as this process's, with the current time."""
    with contextlib.suppress(UpdateFinishedTrialError):  # another sweep declared it lost
        trial.set_user_attr(OWNER, identity(os.getpid()))
        trial.set_user_attr(SEEN, time.time())


def give_up_lost(study: optuna.Study, storage: BaseStorage, own: set[int]) -> list[int]:
    """Fail the trials that are marked as running, but whose sweep is dead.

    Args:
        study: Shared or not.
        storage: The study's.
        own: Numbers of this process's trials.

    Returns:
        The numbers of the failed trials.
    """
    lost = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number in own or not _is_lost(trial):
            continue
        with contextlib.suppress(UpdateFinishedTrialError):  # two sweeps may notice at the same time
            trial_id = _trial_id(study, storage, trial.number)
            storage.set_trial_user_attr(trial_id, LOST, True)
            storage.set_trial_user_attr(trial_id, REASON, "its sweep has died")
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            lost.append(trial.number)
    return lost


def _trial_id(study: optuna.Study, storage: BaseStorage, number: int) -> int:
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def _is_lost(trial: FrozenTrial) -> bool:
    owner, seen = (trial.user_attrs.get(key) for key in (OWNER, SEEN))
    # On this machine the process itself can be asked; only for others does silence have to count.
    gone = None if owner is None else is_gone(owner)
    if gone is not None:
        return gone
    if seen is None and trial.params:
        return False  # of another program that uses the study
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - (seen or began) > SILENT_SECONDS


def absolute(storage: str) -> str:
    """Make the path of a storage (a file or SQLite) absolute."""
    prefix = _SQLITE if storage.startswith(_SQLITE) else ""
    path = storage.removeprefix(prefix)
    if not path or "://" in path or path.startswith(":"):  # a server; :memory:
        return storage
    return prefix + str(Path(path).expanduser().absolute())


def num_trials(sweeper: Sweeper, space: Space) -> int:
    """Return the number of trials; an exhaustive sampler ends with its last point."""
    exhaustive = issubclass(_named(sweeper.sampler, "sampler"), EXHAUSTIVE)
    return int(min(sweeper.n_trials, space.points())) if exhaustive else sweeper.n_trials


def _open_storage(where: str) -> BaseStorage:
    try:
        if "://" in where:
            return get_storage(with_passwords(where, "hydra.sweeper.storage"))
        path = Path(where).expanduser().absolute()  # its lock file is a symlink to this path as written
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except UserError:
        raise
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"hydra.sweeper.storage cannot be opened: {redact(first)}") from error


def _repair(journal: Path) -> None:
    """Remove what a killed process may leave of a journal that nobody else uses: its lock, and half a line."""
    with contextlib.suppress(FileNotFoundError):
        journal.with_name(f"{journal.name}.lock").unlink()
    if journal.exists() and not (text := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)


def _check_fits(study: optuna.Study, metric_name: str, space: Space) -> None:
    before = study.user_attrs.get("metric", metric_name)
    if before != metric_name:
        raise UserError(
            f"The study {study.study_name} optimizes {before}: set hydra.sweeper.metric={before}, or another "
            "hydra.sweeper.study_name."
        )
    for trial in study.trials:
        for key, distribution in trial.distributions.items():
            try:
                # A key that is no longer searched is compared with itself, and fits.
                optuna.distributions.check_distribution_compatibility(
                    distribution, space.distributions.get(key, distribution)
                )
            except ValueError as error:
                raise UserError(
                    f"The study {study.study_name} has other choices for {key}: use those, or set another "
                    "hydra.sweeper.study_name."
                ) from error


def _named(name: str, kind: str) -> type[Any]:
    """Find one of Optuna's samplers or pruners by name: tpe, TPE or TPESampler."""
    module, ending = (getattr(optuna, f"{kind}s"), kind.capitalize())
    known = {n.removesuffix(ending).lower(): n for n in module.__all__ if n.endswith(ending)}
    known.pop("base", None)
    asked = name.lower().removesuffix(kind).replace("_", "").replace("-", "")
    asked = "nop" if kind == "pruner" and asked == "none" else asked  # Optuna's name for no pruning
    if asked not in known:
        listed = ", ".join(sorted(known))
        raise UserError(
            f"hydra.sweeper.{kind}={name}: Optuna has no such {kind}.{nearest(asked, known)} It has {listed}."
        )
    return getattr(module, known[asked])


def _sampler(sweeper: Sweeper, space: Space, seed: int | None) -> optuna.samplers.BaseSampler:
    chosen = _named(sweeper.sampler, "sampler")
    # constant_liar counts running trials as bad ones, so that parallel trials do not sample the same region.
    offered: dict[str, Any] = {"seed": seed, "constant_liar": True}
    if "search_space" in inspect.signature(chosen).parameters:
        values = {key: enumerated(d) for key, d in space.distributions.items()}
        if endless := [key for key, v in values.items() if v is None]:
            raise UserError(f"hydra.sweeper.sampler=grid needs a range or choices for {', '.join(endless)}.")
        offered["search_space"] = values
    return _build(chosen, "sampler", offered, sweeper.sampler_arguments or {})


def _pruner(sweeper: Sweeper, max_epochs: int | None) -> optuna.pruners.BasePruner:
    offered = {} if max_epochs is None else {"max_resource": max_epochs}
    return _build(_named(sweeper.pruner, "pruner"), "pruner", offered, sweeper.pruner_arguments or {})


def _build(chosen: type[Any], kind: str, offered: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """Construct a class with those of our arguments that it takes, and all of the user's."""
    takes = inspect.signature(chosen).parameters
    try:
        return chosen(**{**{k: v for k, v in offered.items() if k in takes}, **given})
    except (TypeError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"invalid arguments for hydra.sweeper.{kind}={chosen.__name__}: {first}") from error
