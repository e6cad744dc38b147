"""Early stopping, with patience in epochs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.log import log
from alexnet_exp.training.lightning_internals import epochs_begun, inside_epoch, validates_by_schedule


class EarlyStopping(callbacks.EarlyStopping):
    """Stop a run `patience` epochs after the best value of a metric, at the end of an epoch that measured it.

    Lightning's callback counts validations; this one counts epochs, whether an epoch has several validations or none.
    A training metric is evaluated at the end of the epoch.

    The best value and the wait so far come from the checkpoint, `patience` from the settings. So a run that has
    stopped continues if it is given more patience, and a new run (ckpt=) starts with a wait of zero.

    Args:
        monitor: Name of the metric.
        threshold: Value at which the run stops, at the end of the epoch that reaches it; None: no such value.
        options: Passed on to Lightning's callback.
    """

    starts_anew = False  # set if a new run starts from the checkpoint of another (ckpt=)
    patience: int  # set by Lightning
    stopping_reason: EarlyStoppingReason  # set by Lightning
    best_score: Tensor  # set by Lightning

    def __init__(self, monitor: str, threshold: float | None = None, **options: Any) -> None:
        super().__init__(monitor, **options)
        self.threshold = threshold
        self._of_validation = monitor.startswith("val/")
        self.best_epoch: int | None = None  # epoch of the best value, from 1
        self.best_value: Tensor | None = None  # best_score leaves out improvements below min_delta
        self._measured = False  # in this epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._of_validation or _not_training(trainer):
            return
        self._check_measured(trainer)
        if validates_by_schedule(trainer):
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _not_training(trainer) or inside_epoch(trainer):
            return
        if not self._of_validation:
            self._check_measured(trainer)
            self._look(trainer)
        if not self._measured:
            return
        assert self.best_epoch is not None
        self._measured = False
        self.wait_count = epochs_begun(trainer) - self.best_epoch
        # With patience=0 the epoch of the best value itself, whose wait is 0, must not stop the run.
        if self.wait_count >= max(1, self.patience) or self._is_reached():
            trainer.should_stop = True  # metrics are reduced, so all ranks agree
            self.stopped_epoch = trainer.current_epoch
            reasons = EarlyStoppingReason
            if self.stopping_reason == reasons.NOT_STOPPED:  # trainer.min_epochs may delay the end
                self._tell(epochs_begun(trainer))
            self.stopping_reason = (
                reasons.STOPPING_THRESHOLD if self._is_reached() else reasons.PATIENCE_EXHAUSTED
            )

    def _tell(self, epoch: int) -> None:
        if self._is_reached():
            log.info("Early stopping in epoch %d: %s has reached %g.", epoch, self.monitor, self.threshold)
        else:
            log.info(
                "Early stopping in epoch %d: %s has not improved for %d epochs (best: epoch %d).",
                epoch, self.monitor, self.wait_count, self.best_epoch,
            )  # fmt: skip

    def _is_reached(self) -> bool:
        """Return whether the best value is the threshold or better."""
        if self.threshold is None:
            return False
        best = self.best_score if self.best_value is None else self.best_value
        return not self.monitor_op(torch.tensor(self.threshold), best.cpu())

    def _check_measured(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor} is not measured in this run: choose one of {known}."
            )

    def _look(self, trainer: Trainer) -> None:
        current = trainer.callback_metrics[self.monitor].squeeze()
        self._measured = True
        if self.best_epoch is None:  # the first value, or an older checkpoint, which only has wait_count
            self.best_epoch = epochs_begun(trainer) - 1 - self.wait_count
        if self.best_value is None or self.monitor_op(current.cpu(), self.best_value):
            self.best_value = current.cpu()
        # A restored best value is on CPU.
        if self.monitor_op(current - self.min_delta, self.best_score.to(current.device)):
            self.best_score, self.best_epoch = current, epochs_begun(trainer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.best_epoch is None:
            return state
        return state | {
            "best_epoch": self.best_epoch, "best_value": self.best_value, "measured": self._measured,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience  # Lightning has restored that of the checkpoint
        self.best_epoch, self.best_value = state_dict.get("best_epoch"), state_dict.get("best_value")
        self._measured = state_dict.get("measured", False)
        if not has_stopped(self):
            return
        if self.starts_anew:
            self.wait_count, self.best_epoch = 0, None
        if self.starts_anew or (self.wait_count < patience and not self._is_reached()):
            self.stopping_reason, self.stopped_epoch = EarlyStoppingReason.NOT_STOPPED, 0


def _not_training(trainer: Trainer) -> bool:
    return trainer.state.fn != "fit" or trainer.sanity_checking or bool(trainer.fast_dev_run)


def has_stopped(callback: callbacks.EarlyStopping) -> bool:
    """Return whether the callback has stopped the run; `stopped_epoch` is also 0 after the first epoch."""
    return bool(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED)
