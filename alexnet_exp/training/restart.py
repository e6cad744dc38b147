"""What Lightning 2.6 leaves undone when it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def complete_restart(trainer: Trainer) -> None:
    """Bring counters and loader to where the checkpoint was written; to be called as training starts."""
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:  # in a run counted in steps, Lightning would end the finished epoch again
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        _Loop.restarting.fset(loop, False)
    # The augmentation draws by epoch, and a run counted in steps would have the number of the one before.
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    # The loader was made to count the steps, before the checkpoint was read, and stands at the start.
    loop._load_combined_loader_states()
    stopped = (c.stopped_epoch and c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)
    if any(stopped):  # before the test, which is all that is left to do
        trainer.should_stop = True


class Changes(NamedTuple):
    """How the settings differ from those of the checkpoint that training goes on from.

    Args:
        schedule: It was another kind, and its state says nothing to this one.
        rates: Something else that decides rates, momentum or decay.
    """

    schedule: bool = False
    rates: bool = False


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare two configurations, as checkpoints hold them."""
    if not now:  # a module that was made without settings
        return Changes()
    return Changes(*(_chosen(before, keys) != _chosen(now, keys) for keys in (_SCHEDULE, _RATES)))


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
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any | None) -> None:
        # The state that the checkpoint brings may not be that of a fused optimizer.
        groups = optimizer.param_groups
        self.groups = [{k: v for k, v in g.items() if k not in ("params", "fused")} for g in groups]
        self.constants = {}
        if isinstance(scheduler, ReduceLROnPlateau):
            names = ("factor", "patience", "min_lrs")
            self.constants = {name: getattr(scheduler, name) for name in names}

    def apply(self, trainer: Trainer, changed: Changes) -> None:
        """Put the settings back; to be called as training starts.

        Args:
            trainer: With optimizer, schedule and counters as the checkpoint left them.
            changed: Against the checkpoint; where the schedule is another, it stands at its beginning.
        """
        configs = trainer.lr_scheduler_configs
        scheduler = configs[0].scheduler if configs else None
        for group, own in zip(trainer.optimizers[0].param_groups, self.groups, strict=True):
            if not changed.rates:
                break
            first, rate = group.get("initial_lr"), group["lr"]
            group.update(own)
            # As far down as it was; a layer that stood still has no such share.
            if isinstance(scheduler, ReduceLROnPlateau) and first and not changed.schedule:
                group["lr"] = rate if first == own["initial_lr"] else own["initial_lr"] * (rate / first)
        if isinstance(scheduler, ReduceLROnPlateau):
            vars(scheduler).update(self.constants)
        if isinstance(scheduler, LambdaLR):
            if changed.schedule:
                done = trainer.fit_loop.epoch_progress.current.processed
                scheduler.last_epoch = trainer.global_step if configs[0].interval == "step" else done
            _recompute(scheduler)


def _recompute(scheduler: LambdaLR) -> None:
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)  # as get_lr, which is for step() alone
    scheduler._last_lr = [group["lr"] for group in groups]
