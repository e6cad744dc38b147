"""Edge cases of a run: divergence at the end of an epoch, monitored metrics, invalid starting points."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from alexnet_exp.config.checks import check_config
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import read_metrics
from tests.training.small_runs import checkpoint, resume, run, settings


def test_nan_weights_from_the_last_step_of_an_epoch_are_not_saved(tmp_path: Path) -> None:
    short = ("trainer.limit_train_batches=1", "trainer.max_epochs=2", "scheduler=none", "test=false")
    run(tmp_path, *short)
    good = checkpoint(tmp_path)["state_dict"]
    with pytest.raises(UserError, match="not finite"):
        run(tmp_path / "bad", *short, "optimizer.lr=1e30", f"weights={tmp_path}")
    assert not (tmp_path / "bad" / "checkpoints" / "best.ckpt").exists()
    assert all(math.isfinite(float(v.double().abs().max())) for v in good.values() if v.numel())


@pytest.mark.parametrize(
    "typed",
    [
        ["callbacks.checkpoint.monitor=val/loss"],
        ["callbacks.early_stopping.enabled=true", "callbacks.early_stopping.monitor=val/top1"],
        ["scheduler=plateau", "scheduler.monitor=val/top1"],
    ],
)
def test_monitor_with_the_wrong_mode_is_refused(typed: list[str]) -> None:
    with pytest.raises(UserError, match=r"keeps the worst: set \S+\.mode="):
        check_config(settings(*typed)[0])


def test_early_stopping_without_validation_batches_is_refused() -> None:
    typed = ("callbacks.early_stopping.enabled=true", "trainer.limit_val_batches=0")
    with pytest.raises(UserError, match=r"needs validation images, and trainer\.limit_val_batches=0"):
        check_config(settings(*typed)[0])


def test_ckpt_that_has_reached_max_epochs_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "first", "test=false")
    with pytest.raises(UserError, match=r"already trained 1 epochs: set trainer\.max_epochs=N"):
        run(tmp_path / "second", f"ckpt={tmp_path / 'first'}")


def test_max_epochs_below_the_trained_epochs_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "first", "test=false", "trainer.max_epochs=4", "trainer.limit_train_batches=1")
    (tmp_path / "first" / "result.json").unlink()  # as if it was killed
    with pytest.raises(UserError, match=r"^Cannot resume from .*Trainer\(max_epochs=2\)"):
        resume(tmp_path / "first", "trainer.max_epochs=2")
    with pytest.raises(
        UserError, match=r"already trained 4 steps: set trainer\.max_steps=N to more than that\.$"
    ):
        run(tmp_path / "second", f"ckpt={tmp_path / 'first'}", "trainer.max_epochs=-1", "trainer.max_steps=4")


def test_a_resumed_run_does_not_need_the_weights_it_started_from(tmp_path: Path) -> None:
    run(tmp_path / "first", "test=false")
    run(tmp_path / "second", "test=false", f"weights={tmp_path / 'first'}")
    (tmp_path / "first" / "checkpoints" / "best.ckpt").unlink()
    result = resume(tmp_path / "second", "trainer.max_epochs=2")
    assert result is not None and result["epochs"] == 2


def test_figures_are_drawn_without_a_test(tmp_path: Path) -> None:
    run(tmp_path, "test=false")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"curves.png", "conv1_filters.png"} <= names


def test_epochs_shorter_than_log_every_n_steps_log_their_learning_rate(tmp_path: Path) -> None:
    run(tmp_path, "test=false")
    (row,) = [row for row in read_metrics(tmp_path / "metrics.csv") if "lr" in row]
    assert row["step"] == 7
    assert {"train/loss_step", "images_per_second"} <= set(row)


def test_validation_interval_longer_than_an_epoch_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^trainer\.val_check_interval: "):
        run(tmp_path, "trainer.val_check_interval=1000")


def test_tensorboard_can_be_switched_off(tmp_path: Path) -> None:
    run(tmp_path, "logger=tensorboard", "logger.tensorboard.enabled=false", "test=false")
    assert not (tmp_path / "tensorboard").exists()


def test_lock_is_released_after_the_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock():
        assert (tmp_path / ".lock").exists()
    with RunDirectory(tmp_path).lock():
        pass
    assert not (tmp_path / ".lock").exists()


def test_resuming_an_empty_directory_reports_a_new_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["test=false", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    run(tmp_path / "plain", *typed)
    assert "starting a new one" not in capsys.readouterr().out
    run(tmp_path / "new", *typed, f"resume={tmp_path / 'new'}")
    assert "(resume= found no run there: starting a new one)" in capsys.readouterr().out
