"""Images per second of training, data loading included."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable

import torch

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
