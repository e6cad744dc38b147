"""Checkpoints that are whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from alexnet_exp.errors import UserError
from alexnet_exp.training.reading import read_checkpoint
from alexnet_exp.training.stopping import Stopped, due

FORMAT = 1


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reader and writer of checkpoint files, made safe."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class BestAndLast(Checkpoint):
    """Write last.ckpt after every epoch, and keep the best by one metric as best.ckpt.

    Args:
        directory: Where the two files go.
        monitor: Metric that decides; where it is not measured (no validation), the best is the last.
        mode: 'max' or 'min'.
        every_n_steps: Write last.ckpt after so many optimizer steps, too.
    """

    def __init__(
        self, directory: str | Path, monitor: str, mode: str = "max", every_n_steps: int | None = None
    ) -> None:
        self.directory = Path(directory)
        self.monitor, self.sign = monitor, 1.0 if mode == "max" else -1.0
        self.every_n_steps = every_n_steps
        self.best: dict[str, float] | None = None  # value, epoch, step
        self._seen_step = 0
        self._stop: int | None = None  # the signal that asked for the end
        self._wanted = False  # a save inside an epoch that waits for the validation after this batch

    @property
    def last_path(self) -> Path:
        return self.directory / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.directory / "best.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # several batches share a step where gradients are accumulated
        self._seen_step = step
        self._stop = due(step, trainer)
        if self._stop is None and (not self.every_n_steps or step % self.every_n_steps):
            return
        if trainer.is_last_batch or step == trainer.max_steps or trainer.fast_dev_run:
            return  # the epoch ends here and saves
        # A checkpoint from before a validation would resume after it.
        loop = trainer.fit_loop
        self._wanted = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._wanted:
            self._save_inside_epoch(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted:
            self._save_inside_epoch(trainer, pl_module)

    def _save_inside_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wanted = False
        pl_module.check_finite()
        trainer.save_checkpoint(self.last_path)
        if self._stop is not None:
            raise Stopped(self._stop, trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        killed_between = self.best is not None and self.best["step"] == trainer.global_step
        if killed_between and self.last_path.exists() and trainer.is_global_zero:
            _link(self.last_path, self.best_path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        better = self._is_better(trainer, pl_module)
        trainer.save_checkpoint(self.last_path)
        if better and trainer.is_global_zero:
            _link(self.last_path, self.best_path)
        self._stop = self._stop or due(trainer.global_step, trainer)
        if self._stop is not None:
            raise Stopped(self._stop, trainer.global_step)

    def _is_better(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        value = pl_module.measured(self.monitor)
        if value is None:
            if "val/loss" in pl_module.reported:
                known = ", ".join(sorted(pl_module.reported))
                raise UserError(
                    f"callbacks.checkpoint.monitor={self.monitor} is not measured; there are {known}."
                )
            return True  # no validation: best is last
        if not math.isfinite(value):
            return False  # nothing compares with NaN: it would stay the best for ever
        if self.best is not None and self.sign * value <= self.sign * self.best["value"]:
            return False
        self.best = {"value": value, "epoch": pl_module.epochs_done, "step": trainer.global_step}
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best) if self.best else None, "directory": str(self.directory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A new run has no best.ckpt yet: its best counts from its own first epoch.
        in_place = self.best_path.exists() or state_dict["directory"] == str(self.directory)
        self.best = state_dict["best"] if in_place else None


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` at once; copies where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
