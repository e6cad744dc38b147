"""A run of `Trainer` that takes turns with somebody else's steps, so that both meet the same machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark_subject import Subject
from alexnet_exp.runs.benchmark_workers import Workers
from alexnet_exp.runs.fit import Fit
from alexnet_exp.runs.results import close_loggers
from alexnet_exp.runs.timing import summary, waiting

Around = Callable[[], AbstractContextManager[object]]


class _Enough(Exception):
    """Ends the run: there are figures enough."""


class Turns(Callback):
    """After every turn of training steps, let the other side take as many; time both.

    A turn lasts from the end of one batch to the end of a later one, so it holds everything that `Trainer` does for a
    step. Both begin with a step that is not timed: it finds caches and memory as the other side left them. Turns in
    which an epoch ended hold more than steps, and are not counted.

    Args:
        other: Takes so many steps.
        steps: In a turn.
        repeats: Turns of each side that are timed.
        wait: For the device.
        around: What the other side's turn happens in; it is not timed.
    """

    def __init__(
        self,
        other: Callable[[int], object],
        steps: int,
        repeats: int,
        wait: Callable[[], None],
        around: Around = contextlib.nullcontext,
    ) -> None:
        self.other, self.steps, self.repeats, self.wait, self.around = other, steps, repeats, wait, around
        self.workers = Workers()  # of `Trainer`
        self.ours: list[float] = []
        self.others: list[float] = []
        self._taken, self._epoch, self._start = -1, -1, 0.0  # the first turn warms up

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.workers.go()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._taken += 1
        if self._taken == 0:
            self.wait()
            self._start = time.perf_counter()
        if self._taken < self.steps:
            return
        self.wait()
        ours, others = time.perf_counter() - self._start, self._others_turn()
        if self._epoch == trainer.current_epoch:
            self.ours.append(ours)
            self.others.append(others)
        if len(self.ours) == self.repeats:
            raise _Enough
        self._taken, self._epoch = -1, trainer.current_epoch

    def _others_turn(self) -> float:
        self.workers.stop()
        try:
            with self.around():
                self.other(1)
                self.wait()
                start = time.perf_counter()
                self.other(self.steps)
                self.wait()
                return time.perf_counter() - start
        finally:
            self.workers.go()


def take_turns(
    fit: Fit, other: Callable[[int], object], subject: Subject, around: Around = contextlib.nullcontext
) -> dict[str, dict[str, float]]:
    """Train with `Trainer`, every other turn being the other side's.

    Args:
        fit: The run; it is used up.
        other: Takes so many steps.
        subject: Says how many steps a turn has, and how many turns there are.
        around: See `Turns`.

    Returns:
        `summary` of the seconds of one step: 'ours' and 'theirs'.

    Raises:
        UserError: If an epoch is too short for a turn.
    """
    batches = len(fit.data.sources["train"]) // fit.data.batch_size
    steps = min(subject.options["steps"], batches // 2 - 1)
    if steps < 1:
        raise UserError(f"An epoch of {batches} batches is too short to be measured: lower data.batch_size.")
    turns = Turns(other, steps, subject.repeats, waiting(subject.device), around)
    # One row in every turn: more often than in a run, never less.
    fit.trainer.log_every_n_steps = min(fit.trainer.log_every_n_steps, steps)
    fit.trainer.callbacks.append(turns)
    try:
        with contextlib.suppress(_Enough):
            fit.trainer.fit(fit.classifier, datamodule=fit.data)
    finally:
        close_loggers(fit.trainer.loggers, None, 0)
    return {"ours": summary(turns.ours, steps), "theirs": summary(turns.others, steps)}
