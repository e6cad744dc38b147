"""`Trainer`, with all that a run switches on, against a hand-written loop of the same step on the same batches.

    python benchmarks/overhead.py [settings of train] [repeats=7 steps=20 ...]

Both take turns, so that they meet the same machine.
"""

from __future__ import annotations

from script import run

# isort: split

import contextlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark.loop import as_the_run
from alexnet_exp.runs.benchmark.subject import Subject, title
from alexnet_exp.runs.benchmark.timing import Row, rows, summary, waiting
from alexnet_exp.runs.benchmark.workers import RunLoader, Workers
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.runs.train.results import close_loggers

_SMALL = ("model=alexnet_cifar", "data=cifar10", "data.batch_size=8")


def measure_overhead(subject: Subject) -> list[Row]:
    """Time the run's own step both ways, and that of a small batch, which shows microseconds best.

    Returns:
        Two rows for each; the first holds `overhead_microseconds` a step and `overhead`, the part of a step.
    """
    return [*_measure(subject), *_measure(_small(subject))]


def _small(subject: Subject) -> Subject:
    """Return the same logging and callbacks around the smallest network."""
    kept = [o for o in subject.overrides if o.startswith(("logger", "callbacks", "trainer", "paths"))]
    small = Subject(subject.options, kept, subject.device, subject.scratch, subject.notes)
    return small.with_overrides(*_SMALL)


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


if __name__ == "__main__":
    sys.exit(run(measure_overhead))
