"""The parts of an exact resume that Lightning 2.6 leaves undone."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from alexnet_exp.errors import UserError
from alexnet_exp.torch_internals import PLATEAU_STATE, set_rates, unscale_before_step
from alexnet_exp.training.callbacks.early_stopping import has_stopped
from alexnet_exp.training.lightning_internals import (
    complete_loops,
    epochs_ended,
    is_of_a_setting,
    is_restoring,
    rewind_epoch,
)
from alexnet_exp.training.optim.build import start_momentum
from alexnet_exp.training.optim.schedules import RunLength

log = logging.getLogger(__name__)

# What a value of the wrong type or shape raises when it is restored or first used.
_MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError, MisconfigurationException
)  # fmt: skip
# Where restored values are first used. The user's network or callback raises in a file of its own: that error is not
# the checkpoint's, however early it comes.
_USES = re.compile(
    r"[\\/](torch[\\/](optim|amp|utils[\\/]_foreach_utils)|lightning[\\/]pytorch|alexnet_exp[\\/]training)\b"
)


@contextlib.contextmanager
def resuming(path: Any, has_settled: Callable[[], bool]) -> Iterator[None]:
    """Turn the errors of a malformed checkpoint, as it is restored and first used, into one sentence.

    Lightning and the optimizers restore without checks, so a wrong value may fail as late as the end of the first
    epoch. An error raised in user code or in a layer is not blamed on the checkpoint.

    Args:
        path: The checkpoint, or None.
        has_settled: Returns whether the first epoch is over.

    Raises:
        UserError: Names the file and the error.
    """
    try:
        yield
    except UserError:
        raise
    except _MALFORMED as error:
        frames = traceback.extract_tb(error.__traceback__)
        restores = is_restoring(frames) or any(f.name == complete_restart.__name__ for f in frames)
        # An out-of-memory error is a RuntimeError, but of the machine, not of the file.
        if (
            path is None
            or is_of_a_setting(frames)
            or isinstance(error, torch.OutOfMemoryError)
            or not (restores or (_USES.search(frames[-1].filename) and not has_settled()))
        ):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"Cannot resume from {path}: {reason}; set weights={path} to load only its weights."
        ) from error


def complete_restart(trainer: Trainer, kept: Kept, changed: Changes) -> None:
    """Restore counters, loader position and learning rates; called in on_train_start.

    Args:
        trainer: After Lightning has restored its part.
        kept: Optimizer and schedule as the settings define them.
        changed: How the settings differ from the checkpoint's.
    """
    complete_loops(trainer)
    kept.apply(trainer, changed)
    start_momentum(trainer.optimizers[0])  # the checkpoint may be from a run with frozen layers
    if any(has_stopped(callback) for callback in trainer.early_stopping_callbacks):
        log.info(
            "This run has already stopped early; increase callbacks.early_stopping.patience to continue it."
        )
        trainer.should_stop = True  # only the test is left to do


def begin_epoch_again(checkpoint: dict[str, Any]) -> None:
    """Rewind a checkpoint from inside an epoch to its start, because the training images have changed.

    Args:
        checkpoint: Changed in place, before Lightning restores it.
    """
    if rewind_epoch(checkpoint):
        log.info("Restarting the unfinished epoch: the training images have changed.")
        # Sums of images that are about to be seen again would count twice in train/loss.
        checkpoint["train_sums"] = torch.zeros_like(checkpoint["train_sums"])


class Changes(NamedTuple):
    """How the settings differ from those of the checkpoint.

    Args:
        schedule: Whether the schedule is of a different kind, so that its saved state does not apply.
        rates: Whether any setting that determines rates, momentum or weight decay differs.
        run_length: Length of the checkpoint's run, as `Kept.run_length`; None if unknown.
    """

    schedule: bool = False
    rates: bool = False
    run_length: list[float] | None = None


def changes(checkpoint: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare the settings of a checkpoint with the current ones, both in the form stored in checkpoints."""
    if not now:  # the module was built without settings
        return Changes()
    before = checkpoint.get("config", {})
    schedule, rates = (_chosen(before, keys) != _chosen(now, keys) for keys in (_SCHEDULE, _RATES))
    length = checkpoint.get("run_length")
    known = isinstance(length, list) and all(isinstance(number, int | float) for number in length)
    return Changes(schedule, rates, length if known else None)


_SCHEDULE = (("scheduler", "name"), ("scheduler", "monitor"), ("scheduler", "mode"))
# Batch size and accumulation, because lr_scaling and optimizer.lr=auto follow the number of images in a step.
_RATES = (("optimizer",), ("scheduler",), ("data", "batch_size"), ("trainer", "accumulate_grad_batches"))


def _chosen(config: Any, keys: Sequence[tuple[str, ...]]) -> list[Any]:
    found = []
    for path in keys:
        value = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):  # a key that an older version did not have counts as null
            value = {k: v for k, v in value.items() if v is not None}
        found.append(value)
    return found


class Kept:
    """Optimizer and schedule constants from the settings, reapplied after Lightning has restored a checkpoint.

    Lightning restores rates, momentum, weight decay and schedule constants from the checkpoint. In a run resumed in
    place these are the same, and changes made by user callbacks must survive. A new run (ckpt=) has its own settings,
    and additional epochs stretch the schedule.

    Args:
        optimizer: As built, with its schedule attached.
        scheduler: The schedule, if any.
        length: Length of the run.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any | None, length: RunLength) -> None:
        # `fused` stays the checkpoint's: its state need not be in the form that fused optimizers expect.
        groups = optimizer.param_groups
        self.groups = [{k: v for k, v in g.items() if k not in ("params", "fused")} for g in groups]
        self.run_length = [length.total_steps, length.steps_per_epoch]
        self.constants = {}
        if isinstance(scheduler, ReduceLROnPlateau):
            self.constants = {
                name: value for name, value in vars(scheduler).items() if name not in PLATEAU_STATE
            }

    def apply(self, trainer: Trainer, changed: Changes) -> None:
        """Reapply the settings; called in on_train_start.

        Args:
            trainer: With optimizer, schedule and counters restored.
            changed: Differences from the checkpoint; a different kind of schedule was not restored.
        """
        configs = trainer.lr_scheduler_configs
        scheduler = configs[0].scheduler if configs else None
        groups = trainer.optimizers[0].param_groups
        if any(not group.get("fused", True) for group in groups):
            unscale_before_step(trainer.optimizers[0])
        # Not strict in place, where a user callback may have added groups.
        for group, own in zip(groups, self.groups, strict=changed.rates):
            if not changed.rates:
                # Only what the checkpoint's groups lack: options and names that a later version has added.
                group.update({key: value for key, value in own.items() if key not in group})
                continue
            first, rate = group.get("initial_lr"), group["lr"]
            group.update(own)
            # Keep the reduction plateau has reached so far; undefined for a layer whose initial rate is 0.
            if isinstance(scheduler, ReduceLROnPlateau) and first and not changed.schedule:
                group["lr"] = rate if first == own["initial_lr"] else own["initial_lr"] * (rate / first)
        if isinstance(scheduler, ReduceLROnPlateau):
            # torch's load_state_dict restores factor, patience and threshold along with the state.
            vars(scheduler).update(self.constants)
        if isinstance(scheduler, LambdaLR):
            if changed.schedule:
                by_step = configs[0].interval == "step"
                scheduler.last_epoch = trainer.global_step if by_step else epochs_ended(trainer)
            # Otherwise the restored rates are the schedule's own, or a callback has changed them on purpose.
            if changed.rates or changed.run_length != self.run_length:
                _recompute(scheduler)


def _recompute(scheduler: LambdaLR) -> None:
    scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    factors = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    # What get_lr would return, which may only be called from step().
    set_rates(scheduler, [base * factor(scheduler.last_epoch) for base, factor in factors])
