from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.optuna.search import _quiet
from alexnet_exp.sweeps.optuna.space import Space, read_space, suggest
from alexnet_exp.sweeps.optuna.study import (
    Sweeper,
    _open_storage,
    absolute,
    check_sweeper,
    num_trials,
    open_study,
)
from tests.sweeps.searches import config, defaults, parsed

LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def space(*overrides: str) -> Space:
    return read_space(parsed(*(overrides or (LR,))))


def sweeper(**settings: Any) -> Sweeper:
    return read(Sweeper, defaults(**settings))


def opened(folder: Path, *overrides: str, **settings: Any) -> Any:
    with _quiet():
        return open_study(sweeper(**settings), space(*overrides), folder, 30)[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", "TPESampler"),
        ("TPESampler", "TPESampler"),
        ("random", "RandomSampler"),
        ("qmc", "QMCSampler"),
        ("nsga-ii", "NSGAIISampler"),
        ("brute_force", "BruteForceSampler"),
    ],
)
def test_sampler_names_are_matched_loosely(tmp_path: Path, name: str, kind: str):
    assert type(opened(tmp_path, sampler=name).sampler).__name__ == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("none", "NopPruner"), ("median", "MedianPruner"), ("successive_halving", "SuccessiveHalvingPruner")],
)
def test_pruner_names_are_matched_loosely(tmp_path: Path, name: str, kind: str):
    assert type(opened(tmp_path, pruner=name).pruner).__name__ == kind


def test_hyperband_allocates_the_epochs_of_a_run(tmp_path: Path):
    pruner = opened(tmp_path, pruner="hyperband").pruner
    assert pruner._max_resource == 30
    given = opened(tmp_path, pruner="hyperband", pruner_arguments={"max_resource": 9}).pruner
    assert given._max_resource == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpr"}, "no such sampler. Did you mean tpe"),
        ({"pruner": "medium"}, "no such pruner. Did you mean median"),
        ({"sampler_arguments": {"n_startup": 3}}, "invalid arguments for hydra.sweeper.sampler=TPESampler"),
        ({"sampler": "grid"}, r"needs a range or choices for optimizer\.lr"),
        ({"storage": "nosql://host/db"}, "storage cannot be opened"),
    ],
)
def test_names_and_arguments_unknown_to_optuna_are_one_line_errors(
    tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, **settings)


def drawn(study: Any) -> float:
    trial = study.ask()
    for key, distribution in space().distributions.items():
        suggest(trial, key, distribution)
    return trial.params["optimizer.lr"]


def test_searches_with_the_same_seed_sample_the_same_values_and_a_resumed_one_new_values(tmp_path: Path):
    first = opened(tmp_path / "a")
    values = [drawn(first), drawn(first)]
    assert drawn(opened(tmp_path / "b")) == values[0]
    assert drawn(opened(tmp_path / "a")) not in values
    assert drawn(opened(tmp_path / "c", seed=1)) != values[0]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("val/top1", "MAXIMIZE"), ("val/loss", "MINIMIZE"), ("train/top1", "MAXIMIZE")],
)
def test_losses_are_minimised_and_other_metrics_maximised(tmp_path: Path, metric: str, direction: str):
    assert opened(tmp_path, metric=metric).direction.name == direction


@pytest.mark.parametrize(("sampler", "count"), [("grid", 6), ("brute_force", 6), ("tpe", 20)])
def test_an_exhaustive_sampler_stops_after_the_last_point(sampler: str, count: int):
    assert num_trials(sweeper(sampler=sampler), space("a=1,2,3", "b=range(0,2)")) == count


def test_a_journal_is_readable_after_a_kill(tmp_path: Path):
    opened(tmp_path).ask()
    (tmp_path / "study.log.lock").symlink_to(tmp_path / "study.log")
    with open(tmp_path / "study.log", "ab") as journal:
        journal.write(b'{"op_code": 4, "wor')
    study = opened(tmp_path)
    study.ask()
    assert len(opened(tmp_path).trials) == 2


@pytest.mark.parametrize("where", ["outputs/lr.log", "~/outputs/lr.log"])
def test_the_lock_of_a_journal_points_to_it_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with _quiet():
        lock: Any = _open_storage(where)._backend._lock  # type: ignore[attr-defined]
    lock.acquire()
    # Optuna breaks the lock of a dead process by the age of its target; without a target it waits forever.
    assert (tmp_path / "outputs" / "lr.log.lock").samefile(tmp_path / "outputs" / "lr.log")
    lock.release()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr.log", "/here/lr.log"),
        ("~/lr.log", "/users/me/lr.log"),
        ("/there/lr.log", "/there/lr.log"),
        ("sqlite:///lr.db", "sqlite:////here/lr.db"),
        ("sqlite:////there/lr.db", "sqlite:////there/lr.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://me@host/lr", "postgresql://me@host/lr"),
    ],
)
def test_the_path_of_a_storage_becomes_absolute(monkeypatch: pytest.MonkeyPatch, typed: str, meant: str):
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    assert absolute(typed) == meant


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, r"invalid hydra\.sweeper\.n_trials=0"),
        ({"sampler_arguments": 3}, r"invalid hydra\.sweeper\.sampler_arguments=3"),
        ({"metric": "test/top1"}, "expected one of val/top1"),  # no tuning on the test images
        ({"seed": -1}, r"invalid hydra\.sweeper\.seed=-1"),
    ],
)
def test_invalid_settings_are_rejected(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check_sweeper(defaults(**changes), config(tmp_path))


def test_a_validation_metric_needs_validation_images(tmp_path: Path):
    asked = config(tmp_path)
    asked.data.val_size = 0
    with pytest.raises(UserError, match="needs validation images"):
        check_sweeper(defaults(), asked)
    check_sweeper(defaults(metric="train/loss"), asked)
