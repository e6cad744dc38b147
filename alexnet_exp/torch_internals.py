"""What is used of torch's private parts, 2.11 to 2.15; tests/test_torch_internals.py fails for each that changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

# Torch's own optimizers step by these: one kernel for all parameters of a network, where a loop starts one for each.
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_mul_, foreach_lerp_ = torch._foreach_mul_, torch._foreach_lerp_

# What a ReduceLROnPlateau changes while it runs; its other attributes are settings.
PLATEAU_STATE = frozenset(
    ("optimizer", "best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
)


def set_rates(scheduler: LambdaLR, rates: Sequence[float]) -> None:
    """Set the learning rate of every parameter group; `get_last_lr` and checkpoints give these until the next step."""
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def unscale_before_step(optimizer: Optimizer) -> None:
    """Have the gradient scaler unscale for an optimizer that is no longer fused: it was marked so when it was built."""
    optimizer._step_supports_amp_scaling = False


def shared_store() -> Any:
    """Return the key-value store of the default process group, which all ranks of a run reach."""
    import torch.distributed

    return torch.distributed.distributed_c10d._get_default_store()


def worker_processes(batches: Any) -> list[Any]:
    """Return the processes behind an iterator over a DataLoader; none without workers."""
    return list(getattr(batches, "_workers", []))


def end_workers(loader: DataLoader) -> None:
    """End the workers of a loader; another pass starts new ones.

    Left to the garbage collector they end in the middle of anything else, up to five seconds each.
    """
    batches, loader._iterator = loader._iterator, None
    if batches is not None and loader.num_workers:
        batches._shutdown_workers()
