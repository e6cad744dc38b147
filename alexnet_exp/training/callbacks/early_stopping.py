"""Ending a run that no longer improves."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from alexnet_exp.errors import UserError
from alexnet_exp.training.lightning_internals import epochs_begun, inside_epoch, validates_by_schedule


class EarlyStopping(callbacks.EarlyStopping):
    """End a run at the end of an epoch in which a metric was measured, `patience` epochs after the best value.

    Lightning's, but for what it counts, which are validations there: however many an epoch has (or how many epochs
    have none), patience is in epochs. A metric of training has its value at the end of an epoch.

    How long it has waited and for what is the checkpoint's; patience is the settings' own. A run that had stopped
    trains on where it is given more of it, and so does a new run (ckpt=), whose wait starts anew.

    Args:
        monitor: Metric that decides.
        threshold: A value at which the run ends, at the end of the epoch that reaches it; None: none does.
        options: Of Lightning's.
    """

    starts_anew = False  # set where a new run goes on from the checkpoint of another
    patience: int  # Lightning's
    best_score: Tensor  # likewise

    def __init__(self, monitor: str, threshold: float | None = None, **options: Any) -> None:
        super().__init__(monitor, **options)
        self.threshold = threshold
        self._of_validation = monitor.startswith("val/")
        self.best_epoch: int | None = None  # that the best value is from; the first is 1
        self._measured = False  # in this epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._of_validation or _is_no_training(trainer):
            return
        self._check_measured(trainer)
        if validates_by_schedule(trainer):
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_no_training(trainer) or inside_epoch(trainer):
            return
        if not self._of_validation:
            self._check_measured(trainer)
            self._look(trainer)
        if not self._measured:
            return
        assert self.best_epoch is not None
        self._measured = False
        self.wait_count = epochs_begun(trainer) - self.best_epoch
        if self.wait_count >= max(1, self.patience) or self._is_reached():
            trainer.should_stop = True  # on every rank: all have the same values
            self.stopped_epoch = trainer.current_epoch
            reasons = EarlyStoppingReason
            self.stopping_reason = (
                reasons.STOPPING_THRESHOLD if self._is_reached() else reasons.PATIENCE_EXHAUSTED
            )

    def _is_reached(self) -> bool:
        """Return whether the best value is the threshold or better."""
        if self.threshold is None:
            return False
        return not self.monitor_op(torch.tensor(self.threshold), self.best_score.cpu())

    def _check_measured(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor} is not measured in this run; it has {known}."
            )

    def _look(self, trainer: Trainer) -> None:
        current = trainer.callback_metrics[self.monitor].squeeze()
        self._measured = True
        if (
            self.best_epoch is None
        ):  # the first value, or of a checkpoint that knows how long it has waited alone
            self.best_epoch = epochs_begun(trainer) - 1 - self.wait_count
        if self.monitor_op(current - self.min_delta, self.best_score.to(current.device)):
            self.best_score, self.best_epoch = current, epochs_begun(trainer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.best_epoch is None:
            return state
        return state | {"best_epoch": self.best_epoch, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_epoch = state_dict.get("best_epoch")
        self._measured = state_dict.get("measured", False)
        if not has_stopped(self):
            return
        if self.starts_anew:
            self.wait_count, self.best_epoch = 0, None
        if self.starts_anew or (self.wait_count < patience and not self._is_reached()):
            self.stopping_reason, self.stopped_epoch = EarlyStoppingReason.NOT_STOPPED, 0


def _is_no_training(trainer: Trainer) -> bool:
    return trainer.state.fn != "fit" or trainer.sanity_checking or bool(trainer.fast_dev_run)


def has_stopped(callback: callbacks.EarlyStopping) -> bool:
    """Return whether a callback has asked for the end; `stopped_epoch` is 0 before it has, and in the first epoch."""
    return bool(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED)
