"""An exponential moving average of the weights, kept on the training device."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor

from alexnet_exp.torch_internals import foreach_copy_, foreach_lerp_
from alexnet_exp.training.lightning_internals import average_of, average_on


class MovingAverage(WeightAveraging):
    """Average weights and buffers exponentially; the average is validated, tested and saved as `state_dict`.

    Lightning's own callback copies the module before it is moved to its device, so every GPU step ends in copies to the
    CPU, and it syncs at every step to find out whether it is the first.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), so that the initial weights do not dominate the average
    of a short run. Source: `tf.train.ExponentialMovingAverage` of TensorFlow, `num_updates`.

    Args:
        decay: Decay per step, once warmed up.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._updated_step = 0  # optimizer steps at the latest update

    @property
    def state_key(self) -> str:
        # Lightning's key: runs can switch between its callback and this one.
        return EMAWeightAveraging.__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Ahead of Lightning's setup, which copies the module to that device.
        average_on(self, trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._updated_step:
            return  # gradients are still being accumulated
        averaged: Any = average_of(self)
        average, current = _tensors(averaged.module), _tensors(pl_module)
        # The first update copies (decay 0). Integer counters are not averaged; the latest value is kept.
        steps = self._updated_step
        update(average, current, min(self.decay, (1 + steps) / (10 + steps)) if steps else 0.0)
        averaged.n_averaged += 1  # on the device, never read here: no sync
        self._updated_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._updated_step}  # same key as in Lightning

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._updated_step = state_dict["latest_update_step"]


@torch.no_grad()
def update(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """Move each average towards its current value, in place: decay * average + (1 - decay) * current.

    Args:
        average: Any dtypes; integer tensors are copied.
        current: Same shapes and device.
        decay: In [0, 1]; 0 copies.
    """
    pairs = list(zip(average, current, strict=True))
    moved = [(old, new.to(old.dtype)) for old, new in pairs if decay and old.is_floating_point()]
    copied = [(old, new) for old, new in pairs if not (decay and old.is_floating_point())]
    if copied:
        foreach_copy_([old for old, _ in copied], [new for _, new in copied])
    if moved:
        foreach_lerp_([old for old, _ in moved], [new for _, new in moved], 1.0 - decay)


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    # With the buffers: batch norm's statistics belong to the weights that they were taken with.
    return list(chain(module.parameters(), module.buffers()))
