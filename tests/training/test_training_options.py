"""Settings of trainer, callbacks and debug, tested by their effect on a small run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from small_runs import SMALL, checkpoint, rows, run, same

from alexnet_exp import cli
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory

STUCK = [
    "optimizer.lr=1e-30",
    "scheduler=none",
    "optimizer.weight_decay=0",
    "test=false",
]  # nothing is learned


class Watch(Callback):
    """Record the weights after every step and in validation, and the images of every batch."""

    weights: list[torch.Tensor]
    validating: list[torch.Tensor]
    batches: list[tuple[int, ...]]

    def __init__(self) -> None:
        Watch.weights, Watch.validating, Watch.batches = [], [], []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not Watch.weights:
            Watch.weights.append(first_weight(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        Watch.weights.append(first_weight(pl_module))
        Watch.batches.append(tuple(batch.indices.tolist()))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int,
                                  dataloader_idx: int = 0) -> None:  # fmt: skip
        Watch.validating.append(first_weight(pl_module))


WATCH = {"watch": {"_target_": f"{__name__}.Watch"}}


def first_weight(module: LightningModule) -> torch.Tensor:
    return next(module.parameters()).detach().clone()


def command(run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Run through the command line, which debug=, a Hydra config group, needs."""
    assert cli.main(["train", *SMALL, *overrides, f"hydra.run.dir={run_dir}"]) == 0
    result = RunDirectory(run_dir).result()
    assert result is not None
    return result


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


# -------------------------------------------------------------------------------------------- averaged weights


def test_averaged_weights_are_validated_and_saved(tmp_path: Path) -> None:
    run(tmp_path, "callbacks.ema.enabled=true", "callbacks.ema.decay=0.75", "test=false", callbacks=WATCH)
    average = Watch.weights[1]  # the first step's weights start the average
    for steps, weight in enumerate(Watch.weights[2:], 1):
        decay = (1 + steps) / (10 + steps)  # grows, and is still below 0.75
        average = decay * average + (1 - decay) * weight
    held = checkpoint(tmp_path)
    name = "model.features.conv1.weight"
    torch.testing.assert_close(held["state_dict"][name], average)
    torch.testing.assert_close(Watch.validating[0], average)
    assert torch.equal(held["current_model_state"][name], Watch.weights[-1])
    assert not torch.allclose(average, Watch.weights[-1])


# -------------------------------------------------------------------------------------------- steps and epochs


def test_gradient_accumulation_makes_one_step_of_several_batches(tmp_path: Path) -> None:
    result = run(tmp_path, "trainer.accumulate_grad_batches=3", "trainer.log_every_n_steps=1", "test=false",
                 callbacks=WATCH)  # fmt: skip
    assert result["steps"] == 3  # 7 batches: 3, 3 and 1
    moved = [not torch.equal(a, b) for a, b in zip(Watch.weights, Watch.weights[1:], strict=False)]
    assert moved == [False, False, True, False, False, True, True]
    assert [row["step"] for row in rows(tmp_path) if "lr" in row] == [1, 2, 3]


def test_lr_scaling_includes_accumulated_batches(tmp_path: Path) -> None:
    run(tmp_path, "trainer.accumulate_grad_batches=3", "optimizer.lr=0.01", "optimizer.lr_scaling=linear",
        "optimizer.base_batch=16", "scheduler=none", "test=false", "trainer.limit_train_batches=1")  # fmt: skip
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.06)


def test_max_steps_stops_a_run_inside_an_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, "trainer.max_steps=10", "trainer.max_epochs=-1", "scheduler=cosine")
    assert (result["status"], result["steps"]) == ("finished", 10)
    assert checkpoint(tmp_path)["global_step"] == 10
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(
        0.0, abs=1e-9
    )


def test_a_run_limited_only_by_time_cannot_have_a_schedule_over_its_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scheduler=cosine needs the length of the run"):
        run(tmp_path, "trainer.max_epochs=-1", "trainer.max_time=00:00:01:00", "scheduler=cosine")


def test_warmup_is_counted_in_real_epochs_whatever_max_epochs_says(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_steps=14", "trainer.max_epochs=50", "scheduler.warmup_epochs=1", "optimizer.lr=0.08",
        "trainer.log_every_n_steps=1", "test=false")  # fmt: skip
    rates = [row["lr"] for row in rows(tmp_path) if "lr" in row]
    assert rates[6] == max(rates) == pytest.approx(0.08)


def test_validation_can_run_several_times_per_epoch(tmp_path: Path) -> None:
    run(tmp_path, "trainer.val_check_interval=0.5", "test=false")
    assert [row["step"] for row in rows(tmp_path) if "val/loss" in row] == [3, 6]


def test_plateau_steps_once_per_validation(tmp_path: Path) -> None:
    run(tmp_path, "trainer.gradient_clip_val=1e-15", "optimizer.lr=0.1", "optimizer.weight_decay=0",
        "scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.mode=max",
        "scheduler.monitor=val/top1", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2",
        "test=false")  # fmt: skip
    (state,) = checkpoint(tmp_path)["lr_schedulers"]
    assert state["last_epoch"] == 2
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05


def test_plateau_with_an_unknown_metric_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler.monitor=val/f1 is not measured.*val/loss"):
        run(tmp_path, "scheduler=plateau", "scheduler.monitor=val/f1")


def test_a_checkpoint_monitor_with_an_unknown_metric_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"invalid callbacks.checkpoint.monitor=val/f1: expected .*val/loss"):
        run(tmp_path, "callbacks.checkpoint.monitor=val/f1")


def test_early_stopping_stops_when_nothing_improves(tmp_path: Path) -> None:
    result = run(tmp_path, *STUCK, "trainer.max_epochs=9", "callbacks.early_stopping.enabled=true",
                 "callbacks.early_stopping.patience=2")  # fmt: skip
    assert (result["status"], result["epochs"]) == ("finished", 3)


def test_early_stopping_without_validation_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"early_stopping needs validation images"):
        run(tmp_path, "callbacks.early_stopping.enabled=true", "data.val_size=0")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(tmp_path: Path, precision: str) -> None:
    run(tmp_path, "trainer.gradient_clip_val=1e-6", "optimizer.momentum=0", "optimizer.nesterov=false",
        f"trainer.precision={precision}",
        "optimizer.weight_decay=0", "optimizer.lr=1", "scheduler=none", "test=false", callbacks=WATCH)  # fmt: skip
    steps = [float((a - b).norm()) for a, b in zip(Watch.weights, Watch.weights[1:], strict=False)]
    assert 0 < max(steps) <= 1.1e-6


# -------------------------------------------------------------------------------------------- debug=


def test_debug_fast_dev_run_runs_one_batch_and_saves_no_checkpoint(tmp_path: Path) -> None:
    result = command(tmp_path / "run", "debug=fast_dev_run")
    assert (result["status"], result["steps"]) == ("finished", 1)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_debug_limit_is_a_complete_run_on_a_few_batches(tmp_path: Path) -> None:
    result = command(tmp_path / "run", "debug=limit")
    assert (result["epochs"], result["steps"]) == (1, 4)  # the typed one epoch takes precedence
    assert result["metrics"].keys() >= {"train/loss", "val/loss", "test/loss"}


def test_debug_overfit_overfits_one_batch(tmp_path: Path) -> None:
    overfit = [*(f"model.features.conv{i}.out_channels=32" for i in range(1, 6)), "optimizer=adam",
               "optimizer.lr=0.003", "scheduler=none", "callbacks.checkpoint.enabled=false"]  # fmt: skip
    result = command(tmp_path / "run", "debug=overfit", *overfit, "trainer.max_epochs=100")
    assert result["steps"] == 100
    assert result["metrics"]["train/loss"] < 0.02


def test_overfitting_repeats_the_same_batches_every_epoch(tmp_path: Path) -> None:
    run(tmp_path, *STUCK, "trainer.overfit_batches=2", "trainer.max_epochs=3", callbacks=WATCH)
    assert Watch.batches == Watch.batches[:2] * 3
    assert Watch.batches[0] != Watch.batches[1]


def test_debug_profiler_writes_its_table(tmp_path: Path) -> None:
    command(tmp_path / "run", "debug=profiler", "test=false")
    (table,) = (tmp_path / "run").glob("*profile*.txt")
    assert "run_training_batch" in table.read_text()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_as_an_eager_one(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "test=false")
    compiled = run(tmp_path / "compiled", "test=false", "compile=true")
    assert compiled["metrics"] == pytest.approx(plain["metrics"], rel=1e-4)
    assert (
        checkpoint(tmp_path / "compiled")["state_dict"].keys()
        == checkpoint(tmp_path / "plain")["state_dict"].keys()
    )
    assert not same(checkpoint(tmp_path / "plain")["config"], checkpoint(tmp_path / "compiled")["config"])
