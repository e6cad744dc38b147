from __future__ import annotations

import os
import time
from typing import Any

import optuna
import pytest

from alexnet_exp.sweeps.optuna_owners import SILENT_SECONDS, give_up_lost, sign
from alexnet_exp.sweeps.process import identity

ELSEWHERE = ["another machine", "1", "1"]


@pytest.fixture
def study() -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def ago(seconds: float) -> float:
    return time.time() - seconds


@pytest.mark.parametrize(
    ("attributes", "lost"),
    [
        ({"owner": ELSEWHERE, "seen": ago(SILENT_SECONDS + 60)}, True),
        ({"owner": ELSEWHERE, "seen": ago(60)}, False),
        ({"owner": identity(os.getpid()), "seen": ago(10 * SILENT_SECONDS)}, False),  # a slow machine
        ({"owner": [*(identity(os.getpid()) or [])[:2], "another time"], "seen": ago(0)}, True),
        ({}, False),  # asked for a moment ago
    ],
)
def test_a_trial_is_lost_when_its_sweep_is_gone(study: Any, attributes: dict[str, Any], lost: bool):
    trial = study.ask()
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    assert give_up_lost(study, set()) == ([0] if lost else [])
    assert study.trials[0].state.name == ("FAIL" if lost else "RUNNING")


def test_own_trials_are_never_given_up(study: Any):
    study.ask().set_user_attr("owner", [*(identity(os.getpid()) or [])[:2], "another time"])
    assert give_up_lost(study, {0}) == []


def test_a_trial_of_another_program_is_left_alone(study: Any, monkeypatch: pytest.MonkeyPatch):
    study.ask().suggest_float("x", 0, 1)
    monkeypatch.setattr("alexnet_exp.sweeps.optuna_owners.SILENT_SECONDS", -1.0)
    assert give_up_lost(study, set()) == []


def test_a_trial_that_was_asked_for_and_never_begun_is_lost_after_a_while(
    study: Any, monkeypatch: pytest.MonkeyPatch
):
    study.ask()
    monkeypatch.setattr("alexnet_exp.sweeps.optuna_owners.SILENT_SECONDS", -1.0)
    assert give_up_lost(study, set()) == [0]


def test_signing_a_trial_that_was_given_up_meanwhile_is_no_error(study: Any):
    trial = study.ask()
    study.tell(trial, 1.0)
    sign(study, trial._trial_id)
    assert "owner" not in study.trials[0].user_attrs
