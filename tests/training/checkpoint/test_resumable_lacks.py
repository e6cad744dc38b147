"""Checkpoints whose state differs because of a callback, another optimizer or an older version."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning

from alexnet_exp.runs.train.command import train
from alexnet_exp.training.checkpoint.resume import Kept, changes
from alexnet_exp.training.optim.schedules import RunLength
from tests.training.small_runs import checkpoint, run, same, settings


class Thaw(BaseFinetuning):
    """Unfreeze the first layer in the second epoch, as a new parameter group."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.get_submodule("model.features.conv1"))

    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        layer = pl_module.get_submodule("model.features.conv1")
        if epoch == 1:
            self.unfreeze_and_add_param_group(layer, optimizer, lr=0.01)
        if epoch >= 1:
            self.make_trainable(layer)


def test_a_run_whose_callback_adds_parameter_groups_resumes_exactly(tmp_path: Path) -> None:
    thaw: dict[str, Any] = {"thaw": {"_target_": f"{__name__}.Thaw"}}
    stop = {"stop": {"_target_": "tests.training.small_runs.StopAfter", "steps": 5}}
    typed = ["test=false", "trainer.max_epochs=3", "trainer.limit_train_batches=2", "scheduler=none"]
    run(tmp_path / "whole", *typed, callbacks=thaw)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", *typed, callbacks=thaw | stop)
    assert checkpoint(tmp_path / "parts")["global_step"] == 4
    config, typed = settings(*typed, f"resume={tmp_path / 'parts'}")
    config["callbacks"] |= thaw
    train(config, typed, tmp_path / "parts", "python train.py")
    one, other = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert len(one["optimizer_states"][0]["param_groups"]) == 2
    assert all(same(one[key], other[key]) for key in ("state_dict", "optimizer_states"))


def test_a_malformed_run_length_counts_as_unknown() -> None:
    for length in (torch.zeros(2), [torch.zeros(2)], "x", None):
        assert changes({"run_length": length}, {"optimizer": {}}).run_length is None
    assert changes({"run_length": [20, 10]}, {"optimizer": {}}).run_length == [20, 10]


def test_gradient_scaling_works_with_the_state_of_a_non_fused_optimizer() -> None:
    weight = torch.ones(2, requires_grad=True)
    plain = torch.optim.SGD([weight], lr=0.5, momentum=0.5)
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5, fused=True)
    kept = Kept(optimizer, None, RunLength(10, 5))
    optimizer.load_state_dict(plain.state_dict())  # as of a run that clipped gradients
    trainer: Any = SimpleNamespace(lr_scheduler_configs=[], optimizers=[optimizer])
    kept.apply(trainer, changes({}, {}))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    assert weight.tolist() == [0.5, 0.5]
