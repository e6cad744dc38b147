"""Non-finite weights are never saved, even if the loss was finite."""

from __future__ import annotations

import math
import os
import signal
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from alexnet_exp.errors import UserError
from alexnet_exp.training.callbacks.bad_step import check_weights
from alexnet_exp.training.lightning_internals import average_of
from tests.training.small_runs import checkpoint, run

UNSEEN = ["data.val_size=0", "test=false", "trainer.max_epochs=2"]  # 7 steps an epoch


class Spoil(Callback):
    """Make one weight infinite after a step, as an overflowing update does.

    Args:
        step: The step.
        average: Change the moving average instead.
        number: A signal to send at the same time.
    """

    def __init__(self, step: int, average: bool, number: int | None) -> None:
        self.step, self.average, self.number = step, average, number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.step:
            return
        averages = [average_of(c) for c in trainer.callbacks if isinstance(c, WeightAveraging)]
        module = averages[0] if self.average else pl_module
        with torch.no_grad():
            first = next(module.parameters())
            first[(0,) * first.dim()] = math.inf
        if self.number is not None:
            os.kill(os.getpid(), self.number)


CASES = {  # step, settings, in the average, signal, step of the kept checkpoint
    "at the end of an epoch": (14, [], False, None, 7),
    "inside an epoch": (10, ["callbacks.checkpoint.every_n_steps=5"], False, None, 7),
    "in the moving average": (14, ["callbacks.ema.enabled=true"], True, None, 7),
    "where a signal ends the run": (9, [], False, int(signal.SIGTERM), 7),
}


@pytest.mark.parametrize("case", CASES)
def test_nan_weights_stop_the_run_and_keep_the_previous_checkpoint(tmp_path: Path, case: str) -> None:
    step, typed, average, number, kept = CASES[case]
    spoil = {"_target_": f"{__name__}.Spoil", "step": step, "average": average, "number": number}
    with pytest.raises(UserError) as caught:
        run(tmp_path, *UNSEEN, *typed, callbacks={"spoil": spoil})
    which = "averaged weights" if average else "weights"
    assert str(caught.value).startswith(
        f"The {which} are not finite after step {step} (epoch 1); training stopped"
    )
    left = checkpoint(tmp_path)
    assert left["global_step"] == kept
    tensors = chain(left["state_dict"].values(), left.get("current_model_state", {}).values())
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -0.0])
def test_only_non_finite_values_are_detected(value: float) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2).double())
    module.register_buffer("nothing", torch.zeros(0))
    module.register_buffer("mask", torch.full((2,), -math.inf))  # infinite by design
    module[1].running_var[1] = value
    trainer: Any = SimpleNamespace(lightning_module=module, callbacks=[], global_step=3, current_epoch=0)
    if math.isfinite(value):
        check_weights(trainer)
    else:
        with pytest.raises(UserError, match="The weights are not finite after step 3"):
            check_weights(trainer)
