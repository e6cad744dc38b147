"""Endless training batches of a run, from worker processes that pause outside their turn."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Generic, Self, TypeVar

from alexnet_exp.data.loaders import Batch
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.training.lightning_internals import augment_as_in_training

T = TypeVar("T")


class Workers:
    """The worker processes of one side of a comparison; as a context manager, that side's turn.

    Outside their turn they would prefetch batches, which take cores from the other side and then cost nothing in their
    own turn.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._others: set[int] = set()

    def go(self) -> None:
        """Resume them; processes that start before the next `stop` belong to this side."""
        self._others = _running() - self._pids
        self._send(signal.SIGCONT)

    def stop(self) -> None:
        """Pause them."""
        self._pids = _running() - self._others
        self._send(signal.SIGSTOP)

    def free(self) -> None:
        """Resume them for good: a stopped process would not react to a shutdown."""
        self._send(signal.SIGCONT)
        self._pids = set()

    def __enter__(self) -> Workers:
        self.go()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _send(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has died; the loader reports why
                os.kill(pid, number)


def _running() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


class TurnLoader(Generic[T]):
    """Endless batches, whose workers pause outside their turn; as a context manager, shuts them down.

    Args:
        batches: Endless batches.
        close: Shuts down the workers.
    """

    def __init__(self, batches: Generator[T, None, None], close: Callable[[], object]) -> None:
        self._batches, self._close = batches, close
        self._workers = Workers()

    def steps(self, count: int) -> Iterator[T]:
        """Yield `count` batches; the workers run until the consumer is done with the last."""
        with self._workers:
            yield from itertools.islice(self._batches, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.free()
        self._batches.close()
        self._close()


class RunLoader(TurnLoader[Batch]):
    """The augmented training batches of a run.

    Args:
        fit: The run.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__(endless_batches(fit), fit.data.teardown)


def endless_batches(fit: Fit) -> Generator[Batch, None, None]:
    """Yield training batches as the network receives them: loaded, on the device, augmented.

    Smaller last batches are skipped, so that all steps do the same work.
    """
    augment_as_in_training(fit.trainer)
    data, device = fit.data, fit.trainer.strategy.root_device
    loader = data.loader("train", shuffle=True)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # Lightning's part; without it every epoch has the same order
        for batch in loader:
            # A data set may be smaller than a batch.
            if batch.size < min(data.batch_size, len(data.sources["train"])):
                continue
            yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
