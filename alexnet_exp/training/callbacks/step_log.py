"""Training throughput in images per second, data loading included, and the per-step rows of metrics.csv."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.training.optim.build import base_rate

# The first steps choose convolution algorithms, fill the allocator's cache and compile.
WARM_UP_STEPS = 3


class Throughput:
    """Images per second: one rate per step on CPU, one per logging interval on an accelerator.

    An accelerator runs asynchronously, so a rate is only measured at the end of an interval, where logging has to sync
    anyway. Validation, logging and the time between epochs are excluded.

    Args:
        wait: Synchronises the device; None for synchronous devices (CPU).
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.wait = wait
        self.rates = array("d")  # after the warm-up
        self._batches = self._images = 0
        self._seconds = 0.0  # of the steps since the last rate
        self._mark: float | None = None  # when the clock was started; None while paused

    @property
    def median(self) -> float | None:
        # A mean would be moved by one interval in which the machine was suspended or busy.
        return statistics.median(self.rates) if self.rates else None

    def go_on(self) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock; syncs if steps have not been counted yet."""
        if self._images:
            self._count()
        self._mark = None

    def step(self, images: int) -> None:
        """Record the end of a step.

        Args:
            images: Images in the step.
        """
        self._batches += 1
        # Waits after each of them, or their work would run into the first interval that counts.
        if self._batches <= WARM_UP_STEPS:
            if self.wait is not None:
                self.wait()
            return self.go_on()
        self._images += images
        if self.wait is None:
            self.end_interval()

    def end_interval(self) -> None:
        """Record a rate if there were steps since the last one; waits for the device."""
        if self._images:
            self._count()
            self.rates.append(self._images / self._seconds)
            self._images, self._seconds = 0, 0.0

    def latest(self, steps: int) -> float | None:
        """Return the median over the last `steps` steps (CPU), or the rate of the last interval."""
        last = self.rates[-steps if self.wait is None else -1 :]
        return statistics.median(last) if last else None

    def _count(self) -> None:
        if self._mark is None:
            return
        if self.wait is not None:
            self.wait()
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now


def waiting_for(device: torch.device) -> Callable[[], object] | None:
    """Return the `wait` argument of `Throughput` for a training device."""
    return None if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)


class StepLog(Callback):
    """Log loss, learning rate and throughput every `log_every_n_steps` steps; each time waits for the device.

    Args:
        lr: Whether to log the learning rate: that of `base_rate`.
        throughput: Whether to measure images per second, data loading included.
    """

    def __init__(self, lr: bool = True, throughput: bool = True) -> None:
        self.lr, self.throughput = lr, throughput
        self._rate = Throughput()
        self._logged = 0  # optimizer step of the last row
        self._interval = 1  # trainer.log_every_n_steps

    @property
    def images_per_second(self) -> float | None:
        """Median over all steps after the three warm-up steps (on an accelerator: over logging intervals), or None."""
        return self._rate.median

    def latest(self) -> float | None:
        """Return images per second over the last logging interval."""
        return self._rate.latest(self._interval)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged, self._interval = trainer.global_step, trainer.log_every_n_steps
        self._rate.wait = waiting_for(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate.go_on()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._rate.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate.go_on()  # validation inside an epoch is not training time

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rate.step(batch.global_size)
        # With gradient accumulation, several batches share one step.
        if trainer.global_step > self._logged and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module)
            self._rate.go_on()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Otherwise a run with epochs shorter than the interval would log almost nothing.
        if trainer.num_training_batches < trainer.log_every_n_steps and trainer.global_step > self._logged:
            self._log(trainer, pl_module)
        self._rate.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rate.median is None:  # the run is shorter than one interval
            self._rate.end_interval()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = trainer.global_step
        self._rate.end_interval()
        pl_module.check_finite()
        # Ranks scale their losses such that the mean over ranks is that of the global batch (`training_step`).
        loss = trainer.strategy.reduce(pl_module.step_loss, reduce_op="mean")
        row = {"train/loss_step": float(loss)}
        if self.lr:
            row["lr"] = base_rate(trainer.optimizers[0])
        rate = self.latest()
        if self.throughput and rate is not None:
            row["images_per_second"] = rate
        pl_module.log_row(row)
