"""`Trainer`, with all callbacks and loggers of a run, against a hand-written loop with the same step and batches.

    python benchmarks/overhead.py [settings of train] [repeats=7 steps=20 ...]

They alternate, so that both see the same state of the machine.
"""

from __future__ import annotations

from script import run

# isort: split

import contextlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark.loop import RunLoader, Workers, as_the_run
from alexnet_exp.runs.benchmark.subject import Subject, title
from alexnet_exp.runs.benchmark.timing import Row, rows, summary, waiting
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.runs.train.results import close_loggers

_SMALL = ("model=alexnet_cifar", "data=cifar10", "data.batch_size=8")


def measure_overhead(subject: Subject) -> list[Row]:
    """Time the step of the run, and of a small network and batch, for which the overhead is easiest to see.

    Returns:
        Two rows each; the first contains `overhead_microseconds` per step and `overhead`, its share of a step.
    """
    return [*_measure(subject), *_measure(_small(subject))]


def _small(subject: Subject) -> Subject:
    """Return a run with the smallest network, and the same logging and callbacks."""
    kept = [o for o in subject.overrides if o.startswith(("logger", "callbacks", "trainer", "paths"))]
    return replace(subject, overrides=kept).with_overrides(*_SMALL)


def _measure(subject: Subject) -> list[Row]:
    fit = subject.fit(tracked=True)
    step = as_the_run(fit)
    with RunLoader(fit) as loader:

        def by_hand(steps: int) -> None:
            for batch in loader.steps(steps):
                step(batch.images, batch.labels)

        by_hand(1)
        times = take_turns(fit, by_hand, subject)
    named = {"Trainer": times["ours"], "by hand": times["theirs"]}
    what = f"overhead: {title(fit, subject.overrides)}"
    made = rows(what, named, fit.data.batch_size, "by hand")
    ours, theirs = (named[k]["median_seconds"] for k in ("Trainer", "by hand"))
    made[0] |= {"overhead_microseconds": 1e6 * (ours - theirs), "overhead": ours / theirs - 1.0}
    return made


Around = Callable[[], AbstractContextManager[object]]


class _Enough(Exception):
    """Ends the run when all repeats are measured."""


class Turns(Callback):
    """Alternate between turns of `Trainer` and equally many steps of the other side; time both.

    A turn lasts from the end of one batch to the end of a later one, so it includes everything that `Trainer` does for
    a step. Each side starts its turn with an untimed step, which finds the caches and memory that the other side left
    behind. Turns that contain the end of an epoch are discarded.

    Args:
        other: Takes the given number of steps.
        steps: Steps per turn.
        repeats: Timed turns per side.
        wait: Synchronises the device.
        around: Context manager for the other side's turn; not timed.
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
        self._taken, self._epoch, self._start = -1, -1, 0.0  # epoch -1: the first turn is discarded as warmup

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
    """Train with `Trainer`, alternating with the other side.

    Args:
        fit: The run; cannot be used again.
        other: Takes the given number of steps.
        subject: Number of steps and repeats.
        around: See `Turns`.

    Returns:
        `summary` per step, as 'ours' and 'theirs'.

    Raises:
        UserError: An epoch is too short for a turn.
    """
    batches = len(fit.data.sources["train"]) // fit.data.batch_size
    steps = min(subject.options.steps, batches // 2 - 1)
    if steps < 1:
        raise UserError(f"An epoch of {batches} batches is too short to measure: lower data.batch_size.")
    turns = Turns(other, steps, subject.repeats, waiting(subject.device), around)
    # At least one logged row per turn, so that the cost of logging is never missed.
    fit.trainer.log_every_n_steps = min(fit.trainer.log_every_n_steps, steps)
    fit.trainer.callbacks.append(turns)
    try:
        with contextlib.suppress(_Enough):
            fit.trainer.fit(fit.classifier, datamodule=fit.data)
    finally:
        close_loggers(fit.trainer.loggers, None, 0)
    return {"ours": summary(turns.ours, steps), "theirs": summary(turns.others, steps)}


if __name__ == "__main__":
    sys.exit(run(measure_overhead))
