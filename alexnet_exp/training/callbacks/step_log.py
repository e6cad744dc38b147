"""Images per second of training, data loading included."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

WARM_UP_STEPS = 3


class Throughput:
    """Rates of training: one for each step, or, where steps end before the device is done, one for each interval.

    An accelerator works behind the steps that ask for the work, and the wait for it comes when something is read. So
    there an interval ends with that wait. Validation, logging, and what comes between epochs are left out.

    Args:
        wait: Waits for the device; None where a step has ended when it returns.
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.wait = wait
        self.rates = array("d")  # after the warm-up
        self._batches = self._images = 0
        self._seconds = 0.0  # of the steps since the last rate
        self._mark: float | None = None  # since when the clock runs

    @property
    def median(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None

    def go_on(self) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, once the device is done; a step that has ended is in its rate already."""
        if self._images:
            self._count()
        self._mark = None

    def step(self, images: int) -> None:
        """Note the end of a step of so many images."""
        self._batches += 1
        if self._batches <= WARM_UP_STEPS:
            if self.wait is not None:
                self.wait()
            return self.go_on()
        self._images += images
        if self.wait is None:
            self.end_interval()

    def end_interval(self) -> None:
        """Note a rate, if there was a step since the last one; waits for the device."""
        if self._images:
            self._count()
            self.rates.append(self._images / self._seconds)
            self._images, self._seconds = 0, 0.0

    def latest(self, steps: int) -> float | None:
        """Return the median over the last so many steps, or the rate of the last interval."""
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
    """Return what `Throughput` takes for a device that trains."""
    return None if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)


class StepLog(Callback):
    """Log loss, learning rate and throughput every `log_every_n_steps`; that waits for the device.

    Args:
        lr: Whether to log the learning rate of the first parameter group.
        throughput: Whether to measure images per second, data loading included.
    """

    def __init__(self, lr: bool = True, throughput: bool = True) -> None:
        self.lr, self.throughput = lr, throughput
        self._rate = Throughput()
        self._logged = 0  # optimizer step of the latest row
        self._interval = 1  # trainer.log_every_n_steps

    @property
    def images_per_second(self) -> float | None:
        """Return the median over all steps after the first three, or None before the fourth.

        On an accelerator it is the median over intervals of logging; see `Throughput`.
        """
        return self._rate.median

    def latest(self) -> float | None:
        """Return images per second over the last interval of logging."""
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
        # Several batches share a step where gradients are accumulated.
        if trainer.global_step > self._logged and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module)
            self._rate.go_on()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Epochs shorter than the interval would leave most of a short run unrecorded.
        if trainer.num_training_batches < trainer.log_every_n_steps and trainer.global_step > self._logged:
            self._log(trainer, pl_module)
        self._rate.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rate.median is None:  # shorter than an interval
            self._rate.end_interval()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = trainer.global_step
        self._rate.end_interval()
        pl_module.check_finite()
        loss = trainer.strategy.reduce(pl_module.step_loss, reduce_op="mean")
        row = {"train/loss_step": float(loss)}
        if self.lr:
            row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        rate = self.latest()
        if self.throughput and rate is not None:
            row["images_per_second"] = rate
        pl_module.log_row(row)
