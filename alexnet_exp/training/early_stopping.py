"""Ending a run that no longer improves."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but for what a run that goes on takes from its checkpoint: how long it has waited, and for what.

    Patience is the settings' own. A run that had stopped trains on where it is given more of it, and so does a new run
    (ckpt=), whose wait starts anew.
    """

    starts_anew = False  # set where a new run goes on from the checkpoint of another
    patience: int  # Lightning's

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
