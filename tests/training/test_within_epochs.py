"""Validation, checkpoints, limits and the end of a run inside an epoch."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from alexnet_exp.runs.train import command as train_module
from tests.training.small_runs import (
    DROPOUT,
    assert_same_end,
    checkpoint,
    resume,
    rows,
    run,
    same,
    train_until,
)

# 7 batches an epoch, or 10 with TEN.
HARD = [*DROPOUT, "test=false", "callbacks.ema.enabled=true", "callbacks.ema.decay=0.9", "scheduler=none"]
TEN = ["data.batch_size=20"]
STEPS = ["trainer.max_epochs=null"]  # small runs set max_epochs, which would take precedence


def validations(directory: Path) -> list[tuple[int, float]]:
    """Return the step and accuracy of every validation in metrics.csv."""
    return [(int(row["step"]), row["val/top1"]) for row in rows(directory) if "val/top1" in row]


class Watch(Callback):
    """Record the weights of every validation."""

    weights: ClassVar[dict[int, torch.Tensor]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            Watch.weights[trainer.global_step] = pl_module.model.features.conv1.weight.detach().clone()


WATCH = {"watch": {"_target_": f"{__name__}.Watch"}}

# ------------------------------------------------------------------------------------------------ every validation


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.val_check_interval=2"],
        ["trainer.val_check_interval=0.3", "trainer.max_epochs=2"],
        ["trainer.val_check_interval=4", "trainer.check_val_every_n_epoch=null"],
        [
            "trainer.val_check_interval=2",
            "trainer.accumulate_grad_batches=3",
        ],  # between the batches of a step
    ],
)
def test_the_best_checkpoint_is_from_the_best_validation(tmp_path: Path, more: list[str]) -> None:
    Watch.weights.clear()
    # The learning rate is so high that the first validations are better than later ones.
    result = run(tmp_path, "test=false", "optimizer.lr=0.05", "scheduler=none", "trainer.max_epochs=3", *more,
                 callbacks=WATCH)  # fmt: skip
    measured = validations(tmp_path)
    best = max(value for _, value in measured)
    step = next(step for step, value in measured if value == best)
    assert result["best"]["value"] == best and result["best"]["step"] == step
    saved = checkpoint(tmp_path, "best")
    assert saved["global_step"] == step
    assert torch.equal(saved["state_dict"]["model.features.conv1.weight"], Watch.weights[step])


def test_the_end_of_an_epoch_is_not_mistaken_for_its_earlier_validation(tmp_path: Path) -> None:
    run(tmp_path, "test=false", "trainer.val_check_interval=6", "trainer.max_epochs=2")
    assert [step for step, _ in validations(tmp_path)] == [6, 13]
    assert checkpoint(tmp_path, "best")["global_step"] in (6, 13)


@pytest.mark.parametrize(
    ("more", "stop"),
    [
        (["trainer.val_check_interval=2"], 5),
        (["trainer.val_check_interval=3", "callbacks.early_stopping.enabled=true"], 11),
        # Saved between the batches of a step: the gradients so far are part of the checkpoint.
        (["trainer.val_check_interval=2", "trainer.accumulate_grad_batches=3"], 2),
        (["trainer.val_check_interval=4", "trainer.accumulate_grad_batches=5", "optimizer=adam"], 1),
    ],
)
def test_a_run_resumed_from_a_best_checkpoint_inside_an_epoch_equals_an_uninterrupted_one(
    tmp_path: Path, more: list[str], stop: int
) -> None:
    settings = [*HARD, "init=published", "trainer.max_epochs=2", "callbacks.checkpoint.monitor=val/loss",
                "callbacks.checkpoint.mode=min", *more]  # fmt: skip
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", stop, *settings)
    place = checkpoint(tmp_path / "parts")["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert place["ready"] % 7, "no checkpoint from inside an epoch"
    result = resume(tmp_path / "parts")
    assert result is not None and result["status"] == "finished"
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


# ------------------------------------------------------------------------------------------------ patience

STUCK = ["test=false", "trainer.max_epochs=9", "optimizer.lr=1e-9", "callbacks.early_stopping.enabled=true",
         "callbacks.early_stopping.min_delta=0.1"]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        (["trainer.val_check_interval=0.25", "callbacks.early_stopping.patience=3"], 4),
        (["trainer.val_check_interval=2", "callbacks.early_stopping.patience=1"], 2),
        (["trainer.check_val_every_n_epoch=2", "callbacks.early_stopping.patience=4"], 6),
        (["trainer.check_val_every_n_epoch=2", "callbacks.early_stopping.patience=1"], 4),
    ],
)
def test_patience_is_counted_in_epochs(tmp_path: Path, more: list[str], epochs: int) -> None:
    result = run(tmp_path, *STUCK, *more, "trainer.limit_train_batches=4")
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", epochs, 4 * epochs)


# ------------------------------------------------------------------------------------------------ steps and time


def test_max_steps_removes_the_default_max_epochs(tmp_path: Path) -> None:
    from tests.training.small_runs import SMALL, settings

    base = [setting for setting in SMALL if not setting.startswith("trainer.max_epochs")]
    for typed, epochs in (([], 30), (["trainer.max_steps=50"], None),
                          (["trainer.max_steps=50", "trainer.max_epochs=4"], 4),
                          (["trainer.max_steps=50", "debug=limit"], 2)):  # fmt: skip
        assert settings(*typed, base=base)[0]["trainer"]["max_epochs"] == epochs


def test_the_schedule_also_ends_at_max_steps(tmp_path: Path) -> None:
    result = run(tmp_path, *STEPS, "trainer.limit_train_batches=1", "trainer.max_steps=33", "scheduler=cosine",
                 "scheduler.warmup_epochs=0", "trainer.check_val_every_n_epoch=99", "test=false",
                 "trainer.log_every_n_steps=1")  # fmt: skip
    assert result["steps"] == 33
    rates = [row["lr"] for row in rows(tmp_path) if "lr" in row]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9) and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.max_steps=8"],
        ["trainer.max_steps=18"],
        ["trainer.max_steps=2", "trainer.accumulate_grad_batches=3"],
        ["trainer.max_steps=8", "trainer.check_val_every_n_epoch=5"],
        ["trainer.max_steps=8", "trainer.val_check_interval=4"],
        ["trainer.max_steps=8", "callbacks.checkpoint.enabled=false"],
        ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=5"],
        ["trainer.max_time=00:00:00:01", "trainer.max_epochs=10000"],
    ],
)
def test_the_final_weights_are_validated_once(tmp_path: Path, more: list[str]) -> None:
    result = run(tmp_path, *TEN, *STEPS, "test=false", *more)
    found = validations(tmp_path)
    assert found[-1][0] == result["steps"]
    assert len({step for step, _ in found}) == len(found)
    assert result["metrics"]["val/top1"] == found[-1][1]
    if "callbacks.checkpoint.enabled=false" not in more:
        assert result["best"]["value"] == max(value for _, value in found)
        assert {"epoch", "step"} <= result["best"].keys()


def test_a_scheduled_validation_is_not_repeated_at_the_end(tmp_path: Path) -> None:
    run(tmp_path, *TEN, *STEPS, "test=false", "trainer.max_steps=20", "trainer.val_check_interval=5")
    assert [step for step, _ in validations(tmp_path)] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.log_every_n_steps=2"],
        ["trainer.val_check_interval=4"],  # the run ends at a validation
        ["scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "trainer.check_val_every_n_epoch=2",
         "callbacks.early_stopping.enabled=true"],
    ],
)  # fmt: skip
def test_a_run_extended_from_8_to_20_steps_equals_one_of_20(tmp_path: Path, more: list[str]) -> None:
    settings = [*HARD, *TEN, *STEPS, *more]
    run(tmp_path / "whole", *settings, "trainer.max_steps=20")
    run(tmp_path / "parts", *settings, "trainer.max_steps=8")
    result = resume(tmp_path / "parts", "trainer.max_steps=20")
    assert result is not None and (result["status"], result["steps"]) == ("finished", 20)
    one, other = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for key in (
        "state_dict",
        "current_model_state",
        "optimizer_states",
        "lr_schedulers",
        "loops",
        "train_sums",
    ):
        assert same(one[key], other[key]), key
    # The final validation of the first part stays, and best.ckpt may be from it.
    extra = [row for row in rows(tmp_path / "parts") if row not in rows(tmp_path / "whole")]
    assert all(row["step"] == 8 for row in extra)
    assert [row for row in rows(tmp_path / "parts") if row not in extra] == rows(tmp_path / "whole")
    best = max(value for _, value in validations(tmp_path / "parts"))
    assert result["best"]["value"] == best


def test_a_run_that_ended_inside_an_epoch_and_was_killed_during_its_test_is_tested_on_resume(
    tmp_path: Path,
) -> None:
    first = run(tmp_path, *TEN, *STEPS, "trainer.max_steps=8")
    before = rows(tmp_path)
    (tmp_path / "result.json").unlink()
    again = resume(tmp_path)
    assert again is not None and again["metrics"] == first["metrics"] and again["best"] == first["best"]
    assert rows(tmp_path) == before


# ------------------------------------------------------------------------------------------------ throughput


class SlowValidation(Callback):
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        time.sleep(0.3)


def test_the_line_of_an_epoch_shows_the_throughput_of_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(train_module, "Console", lambda **_: Console(file=out, width=200))
    slow: dict[str, Any] = {"slow": {"_target_": f"{__name__}.SlowValidation"}}
    result = run(tmp_path, "callbacks.progress_bar.enabled=true", "test=false", "trainer.val_check_interval=2",
                 "trainer.max_epochs=2", callbacks=slow)  # fmt: skip
    lines = [line for line in out.getvalue().splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert lines[-1].endswith(f"  {result['images_per_second']:,.0f} images/s")
