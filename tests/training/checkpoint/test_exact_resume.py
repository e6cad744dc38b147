"""A resumed run ends exactly like an uninterrupted one: every bit of the weights, every row of metrics.csv."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import DROPOUT, assert_same_end, checkpoint, resume, rows, run, train_until

# Dropout, augmentation (data=digits shifts) and averaged weights are on in all of these.
HARD = [
    *DROPOUT,
    "test=false",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=2",
    "callbacks.ema.enabled=true",
    "callbacks.ema.decay=0.9",
]
PLATEAU = ["scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "scheduler.mode=max"]


BY_STEPS = ["scheduler=step", "scheduler.every_epochs=1", "trainer.max_steps=18", "trainer.max_epochs=-1"]
CASES = {  # settings, callbacks.checkpoint.every_n_steps, step at which the run stops, step of its checkpoint
    "epoch": (["scheduler=cosine"], None, 8, 7),
    "inside an epoch": (["scheduler=cosine"], 5, 13, 10),
    "layer-wise rates": (["optimizer=lars", "optimizer.trust=0.02"], 5, 13, 10),
    "adam": (
        ["optimizer=adam", "optimizer.bias_lr_factor=2", "scheduler=multistep", "scheduler.epochs=[1]"],
        5,
        13,
        10,
    ),
    # A frozen layer has no velocity.
    "the paper's updates": (["optimizer=sgd_paper", "+optimizer.layers.conv1.lr_factor=0.0"], 5, 13, 10),
    "plateau": ([*PLATEAU, "callbacks.early_stopping.enabled=true"], None, 16, 14),
    # The validation that plateau and the best checkpoint depend on was before the stop.
    "plateau inside an epoch": ([*PLATEAU, "trainer.val_check_interval=3"], 13, 13, 13),
    "accumulated gradients": (["scheduler=onecycle", "trainer.accumulate_grad_batches=2"], 3, 7, 6),
    "the same few batches in every epoch": (["trainer.overfit_batches=3"], 2, 5, 4),
    # Seven batches make three steps; the first validation has the step at which the epoch began.
    "validations inside a step": (
        ["scheduler=none", "trainer.accumulate_grad_batches=3", "trainer.val_check_interval=2"],
        None,
        4,
        3,
    ),
    "counted in steps": (BY_STEPS, None, 9, 7),
    "counted in steps, inside an epoch": (BY_STEPS, 4, 13, 12),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, case: str) -> None:
    overrides, every_n_steps, stop, saved = CASES[case]
    settings = [*HARD, *overrides, f"callbacks.checkpoint.every_n_steps={every_n_steps or 'null'}"]
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", stop, *settings)
    assert checkpoint(tmp_path / "parts")["global_step"] == saved
    result = resume(tmp_path / "parts")
    assert result is not None and result["status"] == "finished"
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_can_be_resumed_for_more_epochs(tmp_path: Path) -> None:
    settings = ["scheduler=none", "test=false", *DROPOUT]
    run(tmp_path / "whole", *settings, "trainer.max_epochs=4")
    run(tmp_path / "parts", *settings, "trainer.max_epochs=2")
    result = resume(tmp_path / "parts", "trainer.max_epochs=4")
    assert result is not None and (result["epochs"], result["steps"]) == (4, 28)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_stopped_before_its_first_checkpoint_restarts_in_place(tmp_path: Path) -> None:
    settings = ["trainer.log_every_n_steps=2", "test=false"]
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", 5, *settings)
    assert not (tmp_path / "parts" / "checkpoints").exists()
    resume(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_during_its_test_is_tested_when_it_is_resumed(tmp_path: Path) -> None:
    first = run(tmp_path, "test=true")
    before = rows(tmp_path)
    (tmp_path / "result.json").unlink()  # the last file to be written
    again = resume(tmp_path)
    assert again is not None and again["metrics"] == first["metrics"]
    assert rows(tmp_path) == before


def test_a_best_checkpoint_not_linked_before_a_kill_is_linked_on_resume(tmp_path: Path) -> None:
    settings = ["trainer.max_epochs=2", "optimizer.lr=1e-9", "test=false"]  # the first epoch stays the best
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", 8, *settings)
    (tmp_path / "parts" / "checkpoints" / "best.ckpt").unlink()
    resume(tmp_path / "parts")
    assert checkpoint(tmp_path / "parts", "best")["global_step"] == 7
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "test=false")
    before = (tmp_path / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert resume(tmp_path) is None
    assert "already finished" in capsys.readouterr().out
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", ["device", "host"])
def test_a_resumed_run_equals_an_uninterrupted_one_on_cuda(tmp_path: Path, resident: str) -> None:
    overrides, every_n_steps, stop, saved = CASES["inside an epoch"]
    settings = [*HARD, *overrides, f"callbacks.checkpoint.every_n_steps={every_n_steps}", f"data.resident={resident}",
                "trainer.accelerator=gpu", "trainer.devices=1", "trainer.deterministic=true"]  # fmt: skip
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", stop, *settings)
    assert checkpoint(tmp_path / "parts")["global_step"] == saved
    result = resume(tmp_path / "parts")
    assert result is not None and result["status"] == "finished" and result["deterministic"] is True
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
