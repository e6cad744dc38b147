"""The checkpoints of a run: last.ckpt after every epoch, best.ckpt by a monitored metric."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.training.callbacks.bad_step import check_weights
from alexnet_exp.training.checkpoint.write import _BEST, LAST, AtomicCheckpointIO, link
from alexnet_exp.training.ending import run_ends
from alexnet_exp.training.launch.signals import Stopped, agreed, due
from alexnet_exp.training.lightning_internals import stay_inside_epoch, validates_now


class StopUnsaved(Callback):
    """Stop a run without checkpoints on a signal."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (number := due(trainer.global_step, trainer)) is not None:
            raise Stopped(number)


# A Checkpoint, not just a Callback: Lightning calls those last, after the module's own on_train_epoch_end, which
# reports the metrics that are judged here and steps the plateau schedule. By then the other callbacks are up to date,
# too.
class BestAndLast(Checkpoint):
    """Write last.ckpt after every epoch, and keep the best checkpoint by one metric as best.ckpt.

    Every validation counts, including one inside an epoch: if it is the best so far, both files are written.

    Args:
        directory: Directory of the two files.
        monitor: Metric that decides: a val/ metric at each validation, any other at the end of each epoch. Without
            validation, best.ckpt is last.ckpt.
        mode: 'max' or 'min'.
        every_n_steps: Also write last.ckpt after this many optimizer steps.
        every_n_minutes: Also write it when this much time has passed since the last save.
    """

    def __init__(
        self,
        directory: str | Path,
        monitor: str,
        mode: str = "max",
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._of_validation = monitor.startswith("val/")
        self.monitor, self.sign = monitor, 1.0 if mode == "max" else -1.0
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._saved_seconds = 0.0  # time of the last save, monotonic clock
        self.best: dict[str, float] | None = None  # value, epoch, step
        self._seen_step = 0
        self._stop: int | None = None  # the signal to stop for
        self._wanted = False  # a save inside an epoch is postponed until after this batch's validation
        self._better = False  # a new best has not been saved yet

    @property
    def last_path(self) -> Path:
        return self.directory / LAST

    @property
    def best_path(self) -> Path:
        return self.directory / "best.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # gradient accumulation: no new optimizer step
        self._seen_step = step
        self._stop = due(step, trainer)
        if self._stop is None and not self._is_time(step, trainer):
            return
        if trainer.is_last_batch or run_ends(trainer) or trainer.fast_dev_run:
            return  # on_train_epoch_end saves
        # A run resumed from a checkpoint of before the validation would skip that validation: save after it.
        self._wanted = validates_now(trainer)
        if not self._wanted:
            self._save_inside_epoch(trainer, pl_module)

    def _is_time(self, step: int, trainer: Trainer) -> bool:
        # Clocks differ between ranks, but all must save at the same step, so rank 0 decides.
        by_clock = self.every_n_minutes is not None and agreed(
            "save", time.monotonic() - self._saved_seconds >= 60 * self.every_n_minutes, step, trainer
        )
        return bool(by_clock) or (self.every_n_steps is not None and step % self.every_n_steps == 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if self._of_validation and (value := pl_module.measured(self.monitor)) is not None:
            self._judge(value, trainer, pl_module)
        if (self._wanted or self._better) and not (trainer.is_last_batch or run_ends(trainer)):
            self._save_inside_epoch(trainer, pl_module)

    def _save_inside_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wanted = False
        # Ahead of the check of the weights: only this one can name the step and its images.
        pl_module.check_finite()
        self._save(trainer)
        if self._stop is not None:
            _io(trainer).wait()  # the job may be requeued immediately
            raise Stopped(self._stop, trainer.global_step)

    def _save(self, trainer: Trainer) -> None:
        # The loss is computed before the update, so it is still finite when the weights have become NaN.
        check_weights(trainer)
        # weights_only=False saves optimizer, loops and callbacks, too; how the file is read is another matter
        # (safe_load.py).
        trainer.save_checkpoint(self.last_path, weights_only=False)
        self._saved_seconds = time.monotonic()
        if self._better and trainer.is_global_zero:
            _io(trainer).after_save(partial(link, self.last_path, self.best_path))
        self._better = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step, self._saved_seconds = trainer.global_step, time.monotonic()
        if self.best is not None and trainer.is_global_zero:
            if self.best["step"] == trainer.global_step and self.last_path.exists():
                link(self.last_path, self.best_path)  # the run was killed between save and link
            elif not self.best_path.exists():
                self.best = None  # the file is lost: the next validation becomes the best
        # Saving is collective, and only rank 0 is guaranteed to see the files.
        self.best = trainer.strategy.broadcast(self.best)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _io(trainer).wait()  # the test reads the files

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._judge_epoch(trainer, pl_module)
        self._save(trainer)
        self._stop = self._stop or due(trainer.global_step, trainer)
        if self._stop is not None:
            _io(trainer).wait()
            raise Stopped(self._stop, trainer.global_step)

    def _judge_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = pl_module.measured(self.monitor)
        if value is None:
            if "val/loss" in pl_module.reported:
                known = ", ".join(sorted(pl_module.reported))
                raise UserError(
                    f"invalid callbacks.checkpoint.monitor={self.monitor}: expected a measured metric ({known})."
                )
            self._better = True  # no validation: the last is the best
        elif not self._of_validation:  # a val/ metric was already judged in on_validation_end
            self._judge(value, trainer, pl_module)

    def _judge(self, value: float, trainer: Trainer, pl_module: LightningModule) -> None:
        if not math.isfinite(value):
            return  # no comparison with NaN is true, so a NaN would stay the best forever
        if self.best is None or self.sign * value > self.sign * self.best["value"]:
            self.best = {"value": value, "epoch": pl_module.epochs_done, "step": trainer.global_step}
            self._better = True

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                checkpoint["num_rows"] = logger.num_rows
        stay_inside_epoch(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best) if self.best else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A new run (ckpt=) starts its own best; only a run resumed in place inherits it.
        in_place = self.best_path.exists() or self.last_path.exists()
        best = state_dict["best"] if in_place else None
        self.best = {key: kind(best[key]) for key, kind in _BEST.items()} if best else None


def _io(trainer: Trainer) -> AtomicCheckpointIO:
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, AtomicCheckpointIO)
    return io
