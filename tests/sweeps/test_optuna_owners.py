from __future__ import annotations

import os
import time
from typing import Any

import optuna
import pytest

from alexnet_exp.sweeps.job import identity
from alexnet_exp.sweeps.optuna.study import SILENT_SECONDS, give_up_lost, running_trial, sign

ELSEWHERE = ["another machine", "1", "1"]


@pytest.fixture
def storage() -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    # With an earlier study, trial numbers, which are per study, differ from the storage's ids.
    optuna.create_study(storage=storage).ask()
    return storage


@pytest.fixture
def study(storage: Any) -> Any:
    return optuna.create_study(storage=storage)


def ago(seconds: float) -> float:
    return time.time() - seconds


@pytest.mark.parametrize(
    ("attributes", "lost"),
    [
        ({"owner": ELSEWHERE, "seen": ago(SILENT_SECONDS + 60)}, True),
        ({"owner": ELSEWHERE, "seen": ago(60)}, False),
        ({"owner": identity(os.getpid()), "seen": ago(10 * SILENT_SECONDS)}, False),  # a slow machine
        ({"owner": [*(identity(os.getpid()) or [])[:2], "another time"], "seen": ago(0)}, True),
        ({}, False),  # just asked for
    ],
)
def test_a_trial_is_lost_when_its_sweep_has_died(
    study: Any, storage: Any, attributes: dict[str, Any], lost: bool
):
    trial = study.ask()
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    assert give_up_lost(study, storage, set()) == ([0] if lost else [])
    assert study.trials[0].state.name == ("FAIL" if lost else "RUNNING")


def test_own_trials_are_never_lost(study: Any, storage: Any):
    study.ask().set_user_attr("owner", [*(identity(os.getpid()) or [])[:2], "another time"])
    assert give_up_lost(study, storage, {0}) == []


def test_a_trial_of_another_program_is_left_alone(study: Any, storage: Any, monkeypatch: pytest.MonkeyPatch):
    study.ask().suggest_float("x", 0, 1)
    monkeypatch.setattr("alexnet_exp.sweeps.optuna.study.SILENT_SECONDS", -1.0)
    assert give_up_lost(study, storage, set()) == []


def test_a_trial_that_never_started_is_lost_after_a_while(
    study: Any, storage: Any, monkeypatch: pytest.MonkeyPatch
):
    study.ask()
    monkeypatch.setattr("alexnet_exp.sweeps.optuna.study.SILENT_SECONDS", -1.0)
    assert give_up_lost(study, storage, set()) == [0]


def test_signing_a_lost_trial_is_not_an_error(study: Any):
    trial = study.ask()
    study.tell(trial, 1.0)
    sign(trial)
    assert "owner" not in study.trials[0].user_attrs


def test_a_trial_of_an_earlier_process_keeps_its_sampled_values(study: Any, storage: Any):
    drawn = [study.ask() for _ in range(2)]
    values = [trial.suggest_float("x", 0, 1) for trial in drawn]
    again = running_trial(study, storage, 1)
    assert (again.number, again.suggest_float("x", 0, 1)) == (1, values[1])
    again.report(0.5, 1)
    study.tell(again, 0.5)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE"]
