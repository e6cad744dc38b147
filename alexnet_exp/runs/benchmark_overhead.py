"""`Trainer`, with all that a run switches on, against a hand-written loop of the same step on the same batches."""

from __future__ import annotations

from alexnet_exp.runs.benchmark_loop import as_the_run
from alexnet_exp.runs.benchmark_subject import Subject, title
from alexnet_exp.runs.benchmark_turns import take_turns
from alexnet_exp.runs.benchmark_workers import RunLoader
from alexnet_exp.runs.timing import Row, rows

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
