"""The run's training batches without end, by worker processes that pause while it is not their side's turn."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator

from alexnet_exp.data.loaders import Batch
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.training.lightning_internals import augment_as_in_training


class Workers:
    """The processes that one side of a comparison has started; as a context, its turn.

    Out of turn they would fill their queues in the time of the other side: batches that cost nothing in their own
    turn, and cores taken from the other.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._others: set[int] = set()

    def go(self) -> None:
        """Let them work; processes that start before the next `stop` are theirs."""
        self._others = _running() - self._pids
        self._send(signal.SIGCONT)

    def stop(self) -> None:
        """Pause them."""
        self._pids = _running() - self._others
        self._send(signal.SIGSTOP)

    def free(self) -> None:
        """Let them go for good: a paused process cannot be asked to end."""
        self._send(signal.SIGCONT)
        self._pids = set()

    def __enter__(self) -> Workers:
        self.go()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _send(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has died: the loader says why
                os.kill(pid, number)


def _running() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


class RunLoader:
    """The run's training batches without end, as the network gets them; as a context, it ends its workers.

    Args:
        fit: The run.
    """

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self._batches = endless_batches(fit)
        self._workers = Workers()

    def steps(self, count: int) -> Iterator[Batch]:
        """Yield so many batches; the workers work until the last one is done with."""
        with self._workers:
            yield from itertools.islice(self._batches, count)

    def __enter__(self) -> RunLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.free()
        self._batches.close()
        self.fit.data.teardown()


def endless_batches(fit: Fit) -> Generator[Batch, None, None]:
    """Yield training batches as the network gets them: loaded, on the device, augmented.

    A smaller last batch is left out, so that every step is the same work.
    """
    augment_as_in_training(fit.trainer)
    data, device = fit.data, fit.trainer.strategy.root_device
    loader = data.loader("train", shuffle=True)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if batch.size < min(data.batch_size, len(data.sources["train"])):
                continue
            yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
