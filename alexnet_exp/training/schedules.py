"""Learning-rate schedules from conf/scheduler; the trainer gives the number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from alexnet_exp.errors import UserError


@dataclass
class RunLength:
    """How long a run is: optimizer steps in all, and in an epoch."""

    total_steps: int
    steps_per_epoch: int


def build_schedule(optimizer: Optimizer, config: Mapping[str, Any], length: RunLength) -> dict[str, Any] | None:
    """Make Lightning's description of a schedule.

    Args:
        optimizer: Whose rates to schedule; every group keeps its ratio to the first.
        config: Keys of conf/scheduler; `name` says which.
        length: From the trainer.

    Returns:
        The dictionary that `configure_optimizers` returns under 'lr_scheduler'; None for a constant rate.

    Raises:
        UserError: For an unknown name.
    """
    options = dict(config)
    name = options.pop("name", "none")
    if name == "none":
        return None
    if name == "step":
        return _by_epoch(StepLR(optimizer, options["every_epochs"], options["gamma"]))
    if name == "multistep":
        return _by_epoch(MultiStepLR(optimizer, list(options["epochs"]), options["gamma"]))
    if name == "plateau":
        monitor = options.pop("monitor")
        # Lightning would step it after the epoch's checkpoint is written, and a resumed run would miss that
        # step: the classifier steps it itself, ahead of the checkpoint.
        return {**_by_epoch(ReduceLROnPlateau(optimizer, **options)), "monitor": monitor, "frequency": 2**31}
    if name == "cosine":
        return _by_step(LambdaLR(optimizer, _cosine(length, **options)))
    if name == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return _by_step(OneCycleLR(optimizer, rates, total_steps=length.total_steps, **options))
    raise UserError(
        f"scheduler.name={name!r} is not known: none, step, multistep, plateau, cosine or onecycle."
    )


def _by_epoch(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "epoch", "name": "lr"}


def _by_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "name": "lr"}


def _cosine(length: RunLength, warmup_epochs: float = 0.0, final_factor: float = 0.0) -> Any:
    warmup = min(round(warmup_epochs * length.steps_per_epoch), length.total_steps // 2)
    decay = max(length.total_steps - warmup, 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # the first step already learns
        progress = min((step - warmup) / decay, 1.0)
        return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
