"""A run that stopped early stays stopped, unless it gets more patience or a new run starts from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_reader import read_metrics
from alexnet_exp.training.callbacks.early_stopping import EarlyStopping
from tests.training.small_runs import checkpoint, resume, run

# Nothing improves after the first validation.
STOPS = ["test=false", "trainer.max_epochs=5", "optimizer.lr=1e-9", "callbacks.early_stopping.enabled=true",
         "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after two of five epochs."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    assert run(directory, *STOPS)["epochs"] == 2
    return directory


def test_a_run_that_stopped_early_is_finished(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert resume(stopped) is None
    assert "has already finished" in capsys.readouterr().out


def test_a_run_killed_after_early_stopping_does_not_continue_training(tmp_path: Path) -> None:
    run(tmp_path, *STOPS)
    (tmp_path / "result.json").unlink()
    again = resume(tmp_path, "trainer.max_epochs=9")
    assert again is not None and (again["status"], again["epochs"]) == ("finished", 2)
    more = resume(tmp_path, "callbacks.early_stopping.patience=3")  # one epoch of it is used up
    assert more is not None and more["epochs"] == 4
    less = resume(tmp_path, "callbacks.early_stopping.patience=2")
    assert less is not None and less["epochs"] == 4


@pytest.mark.parametrize("patience", [1, 2])
def test_a_new_run_from_one_that_stopped_early_resets_its_patience(
    stopped: Path, tmp_path: Path, patience: int
) -> None:
    typed = f"callbacks.early_stopping.patience={patience}"
    assert run(tmp_path, *STOPS, typed, f"ckpt={stopped}")["epochs"] == 2 + patience
    [state] = [v for k, v in checkpoint(tmp_path)["callbacks"].items() if k.startswith("EarlyStopping")]
    assert (state["wait_count"], state["patience"]) == (patience, patience)


def test_a_stop_is_remembered_with_several_validations_per_epoch(tmp_path: Path) -> None:
    assert run(tmp_path, *STOPS, "trainer.val_check_interval=2")["steps"] == 14
    (tmp_path / "result.json").unlink()
    again = resume(tmp_path)
    assert again is not None and again["steps"] == 14


def state_after(directory: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the saved state of a run's early stopping, and the run's metrics."""
    result = run(directory, *STOPS, *overrides)
    [state] = [v for k, v in checkpoint(directory)["callbacks"].items() if k.startswith("EarlyStopping")]
    return state, result["metrics"]


def test_an_epoch_without_validation_cannot_stop_the_run(tmp_path: Path) -> None:
    state, _ = state_after(tmp_path, "trainer.max_steps=10")  # the second epoch has three of seven steps
    assert state["wait_count"] == 0


def test_a_training_metric_is_evaluated_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    watched = ["callbacks.early_stopping.monitor=train/loss", "trainer.val_check_interval=2"]
    state, metrics = state_after(tmp_path, *watched, "trainer.max_epochs=1")
    assert state["best_score"].item() == pytest.approx(metrics["train/loss"], rel=1e-6)


def test_a_metric_that_is_not_measured_is_a_one_sentence_error() -> None:
    callback = EarlyStopping("val/top5", mode="max")
    trainer: Any = SimpleNamespace(
        sanity_checking=False, fast_dev_run=False, callback_metrics={"val/loss": torch.tensor(1.0)},
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"monitor=val/top5 is not measured in this run: choose one of val/loss"
    ):
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_a_run_stops_after_the_epoch_that_reaches_a_threshold_and_stays_stopped(
    tmp_path: Path,
) -> None:
    watched = ["callbacks.early_stopping.monitor=train/top1", "callbacks.early_stopping.mode=max"]
    typed = [
        *STOPS,
        *watched,
        "callbacks.early_stopping.patience=9",
        "optimizer.lr=0.01",
        "trainer.max_epochs=4",
    ]
    tops = [row["train/top1"] for row in epochs(tmp_path / "whole", *typed)]
    assert len(tops) == 4 and max(tops[:3]) > 0
    threshold = max(tops[0], tops[1])
    reached = next(i for i, top in enumerate(tops, 1) if top >= threshold)
    run_dir = tmp_path / "stopped"
    at = f"callbacks.early_stopping.threshold={threshold - 1e-6}"
    assert len(epochs(run_dir, *typed, at)) == reached
    (run_dir / "result.json").unlink()  # as if it was killed while testing
    again = resume(run_dir)
    assert again is not None and again["epochs"] == reached
    on = resume(run_dir, "callbacks.early_stopping.threshold=null")
    assert on is not None and on["epochs"] == 4


def epochs(directory: Path, *overrides: str) -> list[dict[str, float]]:
    run(directory, *overrides)
    return [row for row in read_metrics(directory / "metrics.csv") if "train/top1" in row]
