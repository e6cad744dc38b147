"""What Lightning 2.6 leaves undone when it resumes from a checkpoint."""

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
from alexnet_exp.training.optim.schedules import RunLength

log = logging.getLogger(__name__)

# What a value of another type or shape raises where it is restored or first used.
_MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError, MisconfigurationException
)  # fmt: skip
_USES = re.compile(
    r"[\\/](torch[\\/](optim|amp|utils[\\/]_foreach_utils)|lightning[\\/]pytorch|alexnet_exp[\\/]training)\b"
)


@contextlib.contextmanager
def resuming(path: Any, has_settled: Callable[[], bool]) -> Iterator[None]:
    """Turn what a malformed checkpoint raises while it is restored and first used into one sentence.

    Lightning and the optimizers take what they find, so a value of another kind may fail as late as the end of the
    first epoch. An error whose last line of code is the user's, or of a layer, is not the checkpoint's.

    Args:
        path: The checkpoint; None of a run that starts from none.
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
        if (
            path is None
            or is_of_a_setting(frames)
            or isinstance(error, torch.OutOfMemoryError)
            or not (restores or (_USES.search(frames[-1].filename) and not has_settled()))
        ):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{path} cannot be resumed from: {reason}; weights={path} takes its weights alone."
        ) from error


def complete_restart(trainer: Trainer, kept: Kept, changed: Changes) -> None:
    """Bring counters, loader and rates to where the checkpoint was written; to be called as training starts.

    Args:
        trainer: With what Lightning has restored.
        kept: What the settings say of optimizer and schedule.
        changed: How they differ from those of the checkpoint.
    """
    complete_loops(trainer)
    kept.apply(trainer, changed)
    if any(has_stopped(callback) for callback in trainer.early_stopping_callbacks):
        log.info("This run has stopped early; more of callbacks.early_stopping.patience lets it train on.")
        trainer.should_stop = True  # before the test, which is all that is left to do


def begin_epoch_again(checkpoint: dict[str, Any]) -> None:
    """Send a checkpoint from the middle of an epoch back to its start: its place in other images means nothing.

    Args:
        checkpoint: Changed in place, before Lightning restores it.
    """
    if rewind_epoch(checkpoint):
        log.info("The unfinished epoch begins again: its batches have other images now.")
        checkpoint["train_sums"] = torch.zeros_like(checkpoint["train_sums"])


class Changes(NamedTuple):
    """How the settings differ from those of the checkpoint that training goes on from.

    Args:
        schedule: It was another kind, and its state says nothing to this one.
        rates: Something else that decides rates, momentum or decay.
        run_length: Of the checkpoint's run, as `Kept.run_length`; None where it is not known.
    """

    schedule: bool = False
    rates: bool = False
    run_length: list[float] | None = None


def changes(checkpoint: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare the settings of a checkpoint with those of now, as checkpoints hold them."""
    if not now:  # a module that was made without settings
        return Changes()
    before = checkpoint.get("config", {})
    schedule, rates = (_chosen(before, keys) != _chosen(now, keys) for keys in (_SCHEDULE, _RATES))
    length = checkpoint.get("run_length")
    known = isinstance(length, list) and all(isinstance(number, int | float) for number in length)
    return Changes(schedule, rates, length if known else None)


_SCHEDULE = (("scheduler", "name"), ("scheduler", "monitor"), ("scheduler", "mode"))
_RATES = (("optimizer",), ("scheduler",), ("data", "batch_size"), ("trainer", "accumulate_grad_batches"))


def _chosen(config: Any, keys: Sequence[tuple[str, ...]]) -> list[Any]:
    found = []
    for path in keys:
        value = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        found.append(value)
    return found


class Kept:
    """What the settings say of optimizer and schedule, to hold against what a checkpoint brings.

    Lightning takes rates, momentum, decay and the constants of the schedule from the checkpoint. In a run that goes on
    in place they are the same, and what a callback of the user's has changed stays; a new run (ckpt=) has settings of
    its own, and more epochs stretch a schedule.

    Args:
        optimizer: As built, with its schedule.
        scheduler: The schedule, if there is one.
        length: Of the run, which the schedule may go by.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any | None, length: RunLength) -> None:
        # The state that the checkpoint brings may not be that of a fused optimizer.
        groups = optimizer.param_groups
        self.groups = [{k: v for k, v in g.items() if k not in ("params", "fused")} for g in groups]
        self.run_length = [length.total_steps, length.steps_per_epoch]
        self.constants = {}
        if isinstance(scheduler, ReduceLROnPlateau):
            self.constants = {
                name: value for name, value in vars(scheduler).items() if name not in PLATEAU_STATE
            }

    def apply(self, trainer: Trainer, changed: Changes) -> None:
        """Put the settings back; to be called as training starts.

        Args:
            trainer: With optimizer, schedule and counters as the checkpoint left them.
            changed: Against the checkpoint; where the schedule is another, it stands at its beginning.
        """
        configs = trainer.lr_scheduler_configs
        scheduler = configs[0].scheduler if configs else None
        groups = trainer.optimizers[0].param_groups
        if any(not group.get("fused", True) for group in groups):
            unscale_before_step(trainer.optimizers[0])
        # In place, a callback of the user's may have added groups.
        for group, own in zip(groups, self.groups, strict=changed.rates):
            if not changed.rates:
                group.update({key: value for key, value in own.items() if key not in group})
                continue
            first, rate = group.get("initial_lr"), group["lr"]
            group.update(own)
            # As far down as it was; a layer that stood still has no such share.
            if isinstance(scheduler, ReduceLROnPlateau) and first and not changed.schedule:
                group["lr"] = rate if first == own["initial_lr"] else own["initial_lr"] * (rate / first)
        if isinstance(scheduler, ReduceLROnPlateau):
            vars(scheduler).update(self.constants)
        if isinstance(scheduler, LambdaLR):
            if changed.schedule:
                by_step = configs[0].interval == "step"
                scheduler.last_epoch = trainer.global_step if by_step else epochs_ended(trainer)
            # Otherwise the rates of the checkpoint are those of the schedule, or a callback has changed them.
            if changed.rates or changed.run_length != self.run_length:
                _recompute(scheduler)


def _recompute(scheduler: LambdaLR) -> None:
    scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    factors = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    # As get_lr, which is for step() alone.
    set_rates(scheduler, [base * factor(scheduler.last_epoch) for base, factor in factors])
