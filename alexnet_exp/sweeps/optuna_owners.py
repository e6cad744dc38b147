"""Whose trial is whose: a study that several sweeps share must not wait for one that is gone.

A sweep signs the trials that it runs and renews the signature. A sweep of this machine is looked up among the
processes; one of another machine counts as gone when it has been silent for a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import os
import time

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from alexnet_exp.sweeps.process import identity, is_gone

OWNER, SEEN = "owner", "seen"  # attributes of a trial
LOST, FAILED = "lost", "failed"
BEAT_SECONDS = 60.0  # between two signatures
SILENT_SECONDS = 900.0  # clocks of two machines may differ by minutes


def sign(study: optuna.Study, trial_id: int) -> None:
    """Say that a trial is this process's, and that the process is there."""
    with contextlib.suppress(UpdateFinishedTrialError):  # given up for lost by another sweep meanwhile
        study._storage.set_trial_user_attr(trial_id, OWNER, identity(os.getpid()))
        study._storage.set_trial_user_attr(trial_id, SEEN, time.time())


def give_up_lost(study: optuna.Study, own: set[int]) -> list[int]:
    """Record as failed the trials that run in the study, but nowhere else.

    Args:
        study: Shared or not.
        own: Numbers of the trials of this process.

    Returns:
        Their numbers.
    """
    lost = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number in own or not _is_lost(trial):
            continue
        with contextlib.suppress(UpdateFinishedTrialError):  # two sweeps may see it at the same time
            study._storage.set_trial_user_attr(trial._trial_id, LOST, True)
            study._storage.set_trial_user_attr(trial._trial_id, FAILED, "the sweep that ran it is gone")
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            lost.append(trial.number)
    return lost


def _is_lost(trial: FrozenTrial) -> bool:
    owner, seen = (trial.user_attrs.get(key) for key in (OWNER, SEEN))
    gone = None if owner is None else is_gone(owner)
    if gone is not None:
        return gone
    if seen is None and trial.params:
        return False  # of some other program that uses the study
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - (seen or began) > SILENT_SECONDS
