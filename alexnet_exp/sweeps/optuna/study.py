"""The study of an Optuna sweep: storage, sampler and pruner from hydra.sweeper, and whose trial is whose.

Several sweeps may share a study. Each signs the trials that it runs and renews the signature once a minute. Whether a
sweep of this machine still runs is looked up among its processes; one of another machine counts as gone after a
quarter of an hour of silence. Optuna's heartbeat would do for a database only, not for a journal file on a shared disk,
and would notice a sweep killed on this machine only after its grace period.
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
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from alexnet_exp.config.checks import check_rules
from alexnet_exp.config.schema import Rule, at_least, metric, null, text
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.sweeps.job import identity, is_gone
from alexnet_exp.sweeps.optuna.space import Space, enumerated
from alexnet_exp.tracking.redact import redact, with_passwords
from alexnet_exp.tracking.run_reader import lower_is_better

STORAGE = "study.log"  # in the sweep's directory
EXHAUSTIVE = (GridSampler, BruteForceSampler)  # they try every point once
OWNER, SEEN = "owner", "seen"  # attributes of a trial
LOST, REASON = "lost", "failed"
BEAT_SECONDS = 60.0  # between two signatures
SILENT_SECONDS = 900.0  # clocks of two machines may differ by minutes
_SQLITE = "sqlite:///"
_MAP = Rule("settings by name: {KEY: VALUE}", lambda v: isinstance(v, Mapping))
_RULES = {
    "n_trials": at_least(1),
    "metric": metric,
    "sampler": text,
    "sampler_arguments": _MAP | null,
    "pruner": text,
    "pruner_arguments": _MAP | null,
    "seed": at_least(0) | null,
    "storage": text | null,
    "study_name": text | null,
}


def check_sweeper(settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse settings of the sweeper that cannot work.

    Args:
        settings: hydra.sweeper, without params.
        config: Of the sweep: a metric that its trials will not have is refused.

    Raises:
        UserError: For the first that is wrong.
    """
    check_rules(settings, _RULES, "hydra.sweeper.")
    unvalidated = {
        "data.val_size=0: set data.val_size=5000": config["data"].get("val_size") == 0,
        "trainer.limit_val_batches=0: leave it out": config["trainer"]["limit_val_batches"] == 0,
    }
    for why, holds in unvalidated.items():
        if holds and settings["metric"].startswith("val/"):
            raise UserError(f"hydra.sweeper.metric={settings['metric']} needs validation images, and {why}.")


def check_choices(settings: Mapping[str, Any], space: Space, max_epochs: int | None) -> None:
    """Make sampler and pruner once before the sweep has a directory; arguments as for `open_study`.

    Raises:
        UserError: If Optuna has no such class, or it refuses its arguments.
    """
    _sampler(settings, space, seed=0)
    _pruner(settings, max_epochs)


def open_study(
    settings: Mapping[str, Any], space: Space, directory: Path, max_epochs: int | None
) -> tuple[optuna.Study, BaseStorage]:
    """Open a study, or create it.

    Args:
        settings: hydra.sweeper, checked.
        space: What is searched.
        directory: Of the sweep.
        max_epochs: Of every trial, where that is known: what hyperband shares out.

    Returns:
        The study and its storage.

    Raises:
        UserError: If the storage cannot be opened, or holds a study that does not fit.
    """
    own = settings["storage"] is None
    name = settings["study_name"] or ("study" if own else directory.name)
    if own:
        _heal(directory / STORAGE)
    storage = _open_storage(str(directory / STORAGE) if own else settings["storage"])
    direction = "minimize" if lower_is_better(settings["metric"]) else "maximize"
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    _check_fits(study, settings["metric"], space)
    study.set_user_attr("metric", settings["metric"])
    # A search that goes on must not repeat its first random draws, nor two machines draw the same.
    place = "" if own else f"{socket.gethostname()} {os.getpid()}"
    seed = settings["seed"]
    drawn = None if seed is None else random.Random(f"{seed} {len(study.trials)} {place}").getrandbits(31)
    sampler, pruner = _sampler(settings, space, drawn), _pruner(settings, max_epochs)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner), storage


def running_trial(study: optuna.Study, storage: BaseStorage, number: int) -> Trial:
    """Return a trial that an earlier process has asked for, to continue it."""
    return Trial(study, _trial_id(study, storage, number))


def sign(trial: Trial) -> None:
    """Record that a trial is this process's, and that the process is alive."""
    with contextlib.suppress(UpdateFinishedTrialError):  # given up for lost by another sweep meanwhile
        trial.set_user_attr(OWNER, identity(os.getpid()))
        trial.set_user_attr(SEEN, time.time())


def give_up_lost(study: optuna.Study, storage: BaseStorage, own: set[int]) -> list[int]:
    """Record as failed the trials that run in the study, but nowhere else.

    Args:
        study: Shared or not.
        storage: The study's.
        own: Numbers of the trials of this process.

    Returns:
        Their numbers.
    """
    lost = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number in own or not _is_lost(trial):
            continue
        with contextlib.suppress(UpdateFinishedTrialError):  # two sweeps may see it at the same time
            trial_id = _trial_id(study, storage, trial.number)
            storage.set_trial_user_attr(trial_id, LOST, True)
            storage.set_trial_user_attr(trial_id, REASON, "the sweep that ran it is gone")
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            lost.append(trial.number)
    return lost


def _trial_id(study: optuna.Study, storage: BaseStorage, number: int) -> int:
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def _is_lost(trial: FrozenTrial) -> bool:
    owner, seen = (trial.user_attrs.get(key) for key in (OWNER, SEEN))
    gone = None if owner is None else is_gone(owner)
    if gone is not None:
        return gone
    if seen is None and trial.params:
        return False  # of some other program that uses the study
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - (seen or began) > SILENT_SECONDS


def absolute(storage: str) -> str:
    """Make the path of a storage one that another working directory does not change: of a file, or of SQLite."""
    prefix = _SQLITE if storage.startswith(_SQLITE) else ""
    path = storage.removeprefix(prefix)
    if not path or "://" in path or path.startswith(":"):  # a server; :memory:
        return storage
    return prefix + str(Path(path).expanduser().absolute())


def num_trials(settings: Mapping[str, Any], space: Space) -> int:
    """Return how many trials there are to be: an exhaustive sampler ends with the last point."""
    exhaustive = issubclass(_named(settings["sampler"], "sampler"), EXHAUSTIVE)
    return int(min(settings["n_trials"], space.points())) if exhaustive else settings["n_trials"]


def _open_storage(where: str) -> BaseStorage:
    try:
        if "://" in where:
            return get_storage(with_passwords(where, "hydra.sweeper.storage"))
        path = Path(where).expanduser().absolute()  # the lock beside it is a link to this very text
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except UserError:
        raise
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"hydra.sweeper.storage cannot be opened: {redact(first)}") from error


def _heal(journal: Path) -> None:
    """Take away what a kill may leave of a journal that no other process uses: its lock, and half a line."""
    with contextlib.suppress(FileNotFoundError):
        journal.with_name(f"{journal.name}.lock").unlink()
    if journal.exists() and not (text := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, text.rfind(b"\n") + 1)


def _check_fits(study: optuna.Study, metric_name: str, space: Space) -> None:
    before = study.user_attrs.get("metric", metric_name)
    if before != metric_name:
        raise UserError(
            f"The study {study.study_name} is about {before}: say hydra.sweeper.metric={before}, or another "
            "hydra.sweeper.study_name."
        )
    for trial in study.trials:
        for key, distribution in trial.distributions.items():
            try:
                optuna.distributions.check_distribution_compatibility(
                    distribution, space.distributions.get(key, distribution)
                )
            except ValueError as error:
                raise UserError(
                    f"The study {study.study_name} has other choices for {key}: leave them as they were, or say "
                    "another hydra.sweeper.study_name."
                ) from error


def _named(name: str, kind: str) -> type[Any]:
    """Find one of Optuna's samplers or pruners: tpe, TPE and TPESampler are the same."""
    module, ending = (getattr(optuna, f"{kind}s"), kind.capitalize())
    known = {n.removesuffix(ending).lower(): n for n in module.__all__ if n.endswith(ending)}
    known.pop("base", None)
    asked = name.lower().removesuffix(kind).replace("_", "").replace("-", "")
    asked = "nop" if kind == "pruner" and asked == "none" else asked
    if asked not in known:
        listed = ", ".join(sorted(known))
        raise UserError(
            f"hydra.sweeper.{kind}={name}: Optuna has no such {kind}.{nearest(asked, known)} It has {listed}."
        )
    return getattr(module, known[asked])


def _sampler(settings: Mapping[str, Any], space: Space, seed: int | None) -> optuna.samplers.BaseSampler:
    chosen = _named(settings["sampler"], "sampler")
    # Trials that run count as bad ones: no two search one place.
    offered: dict[str, Any] = {"seed": seed, "constant_liar": True}
    if "search_space" in inspect.signature(chosen).parameters:
        values = {key: enumerated(d) for key, d in space.distributions.items()}
        if endless := [key for key, v in values.items() if v is None]:
            raise UserError(f"hydra.sweeper.sampler=grid needs a range or choices for {', '.join(endless)}.")
        offered["search_space"] = values
    return _made(chosen, "sampler", offered, settings["sampler_arguments"] or {})


def _pruner(settings: Mapping[str, Any], max_epochs: int | None) -> optuna.pruners.BasePruner:
    offered = {} if max_epochs is None else {"max_resource": max_epochs}
    return _made(_named(settings["pruner"], "pruner"), "pruner", offered, settings["pruner_arguments"] or {})


def _made(chosen: type[Any], kind: str, offered: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """Call a class with what it takes of our arguments, and all of the user's."""
    takes = inspect.signature(chosen).parameters
    try:
        return chosen(**{**{k: v for k, v in offered.items() if k in takes}, **given})
    except (TypeError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"hydra.sweeper.{kind}={chosen.__name__} cannot be made: {first}") from error
