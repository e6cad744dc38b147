"""Torch's private names that we use, 2.11 to 2.15; tests/test_torch_internals.py fails for each that changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

# As in torch's own optimizers: one fused kernel for all parameters instead of one launch per parameter.
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_mul_, foreach_lerp_, foreach_copy_ = torch._foreach_mul_, torch._foreach_lerp_, torch._foreach_copy_

# The mutable state of ReduceLROnPlateau; its other attributes are settings.
PLATEAU_STATE = frozenset(
    ("optimizer", "best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
)


def set_rates(scheduler: LambdaLR, rates: Sequence[float]) -> None:
    """Set the rate of every parameter group, and what `get_last_lr` and checkpoints report until the next step."""
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def unscale_before_step(optimizer: Optimizer) -> None:
    """Make GradScaler unscale for an optimizer that was built as fused (which unscales by itself) but no longer is."""
    optimizer._step_supports_amp_scaling = False


def shared_store() -> Any:
    """Return the key-value store of the default process group, shared by all ranks."""
    import torch.distributed

    return torch.distributed.distributed_c10d._get_default_store()


def compile_for_any_batch(x: Tensor) -> None:
    """Let a compiled function take any size of dimension 0; `mark_dynamic` would refuse a size that never varies."""
    torch._dynamo.maybe_mark_dynamic(x, 0)


def worker_processes(batches: Any) -> list[Any]:
    """Return the worker processes of a DataLoader iterator; empty without workers."""
    return list(getattr(batches, "_workers", []))


def end_workers(loader: DataLoader) -> None:
    """Shut down the workers of a loader; the next pass starts new ones.

    The garbage collector would do so at an arbitrary moment, blocking up to five seconds per worker.
    """
    batches, loader._iterator = loader._iterator, None
    if batches is not None and loader.num_workers:
        batches._shutdown_workers()
