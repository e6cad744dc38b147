"""Ending a run that no longer improves."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from alexnet_exp.errors import UserError


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but for when it looks, and for what a run that goes on takes from its checkpoint.

    It looks once at each new value: after a validation, or at the end of an epoch for a metric of training. The last
    epoch may end without a validation (trainer.max_steps).

    How long it has waited and for what is the checkpoint's; patience is the settings' own. A run that had stopped
    trains on where it is given more of it, and so does a new run (ckpt=), whose wait starts anew.

    Args:
        monitor: Metric that decides.
        options: Of Lightning's.
    """

    starts_anew = False  # set where a new run goes on from the checkpoint of another
    patience: int  # Lightning's

    def __init__(self, monitor: str, **options: Any) -> None:
        super().__init__(monitor, check_on_train_epoch_end=not monitor.startswith("val/"), **options)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics and not trainer.fast_dev_run:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor} is not measured in this run; it has {known}."
            )
        super()._run_early_stopping_check(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        if not has_stopped(self):
            return
        if self.starts_anew:
            self.wait_count = 0
        if self.starts_anew or self.wait_count < patience:
            self.stopping_reason, self.stopped_epoch = EarlyStoppingReason.NOT_STOPPED, 0


def has_stopped(callback: callbacks.EarlyStopping) -> bool:
    """Return whether a callback has asked for the end; `stopped_epoch` is 0 before it has, and in the first epoch."""
    return bool(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED)
