"""Training steps on one fixed batch, in every combination asked for; and the same with real data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from alexnet_exp.errors import is_out_of_memory
from alexnet_exp.runs.benchmark_loop import as_the_run, variant
from alexnet_exp.runs.benchmark_memory import (
    LARGEST,
    RoomOnProcessor,
    largest_batch,
    matmul_peak,
    peak_memory,
    release,
)
from alexnet_exp.runs.benchmark_subject import Subject, title
from alexnet_exp.runs.benchmark_workers import RunLoader
from alexnet_exp.runs.fit import Fit
from alexnet_exp.runs.timing import Row, alternate, rows


class Variant(NamedTuple):
    """One way to compute the same step."""

    precision: str
    layout: str
    compiled: bool

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}" + (" compiled" if self.compiled else "")


class _Ready(NamedTuple):
    run: Callable[[], object]
    memory: int | None  # bytes at the peak of the first step


def measure_steps(subject: Subject) -> list[Row]:
    """Time the training step of every network, batch size, precision, layout and compilation that `step` names.

    Returns:
        For every network and batch size one row per variant, with images and operations per second, the share of the
        machine's matrix peak, and the memory at the peak; then the run's own step on one batch and on real data.
    """
    chosen = subject.options["step"]
    variants = [
        Variant(*parts)
        for parts in itertools.product(*(_list(chosen[k]) for k in ("precision", "layout", "compile")))
    ]
    peaks = {p: matmul_peak(p, subject.device) for p in dict.fromkeys(v.precision for v in variants)}
    made = []
    for name in _list(chosen["model"]):
        one = subject if name is None else subject.with_overrides(f"model={name}")
        fit = one.fit()
        what = title(fit, one.overrides).rpartition(", batch")[0]
        for size in _list(chosen["batch_size"]):
            if size == "auto":
                group = [row for v in variants for row in _largest(fit, v, what, subject)]
            else:
                group = _compare(fit, variants, size or fit.data.batch_size, what, subject)
            made += [_with_work(row, fit) for row in group]
        release()
    # Once more: other work on the machine may have been in the way the first time.
    peaks = {
        precision: max(peak, matmul_peak(precision, subject.device)) for precision, peak in peaks.items()
    }
    return [_with_share(row, peaks) for row in made] + measure_wait(subject)


def _compare(fit: Fit, variants: list[Variant], size: int, what: str, subject: Subject) -> list[Row]:
    """Time the variants turn by turn; those that do not fit into memory say so."""
    ready: dict[Variant, _Ready] = {}
    failed = []
    for v in variants:
        try:
            ready[v] = _prepare(fit, v, size, subject.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed.append(v)
        release()
    what = f"step: {what}, batch {size}"
    times = alternate({str(v): r.run for v, r in ready.items()}, subject.repeats, subject.device, warmup=1)
    made = rows(what, times, images=size, reference=next(iter(times), None))
    by_name = {str(v): v for v in ready}
    for row in made:
        v = by_name[row["case"]]
        row |= {**v._asdict(), "batch_size": size, "peak_memory": ready[v].memory}
    return made + [{"what": what, "case": str(v), **v._asdict(), "batch_size": size, "error": "out of memory"}
                   for v in failed]  # fmt: skip


def _largest(fit: Fit, v: Variant, what: str, subject: Subject) -> list[Row]:
    """Find the largest batch that fits, and time it alone: two of them would not fit together."""
    room = RoomOnProcessor()

    def try_batch(size: int) -> None:
        if subject.device == "cpu":
            room.check(size)
        room.learn(size, _prepare(fit, v, size, subject.device).memory)

    size = largest_batch(try_batch, LARGEST[subject.device])
    what = f"step: {what}, the largest batch that fits"
    if not size:
        return [{"what": what, "case": str(v), **v._asdict(), "batch_size": 1, "error": "out of memory"}]
    ready = _prepare(fit, v, size, subject.device)
    times = alternate({f"{v}, {size}": ready.run}, subject.repeats, subject.device, warmup=1)
    made = rows(what, times, images=size)
    made[0] |= {
        **v._asdict(),
        "batch_size": size,
        "peak_memory": ready.memory,
        "limited": size == LARGEST[subject.device],
    }
    del ready
    release()
    return made


def _prepare(fit: Fit, v: Variant, size: int, device: str) -> _Ready:
    """Make a variant's step and take one, so that it is compiled and known to fit."""
    side = fit.config["data"]["image_size"]
    with peak_memory(device) as peak:
        images = torch.randn(size, fit.data.channels, side, side, device=device)
        labels = torch.randint(0, len(fit.data.classes), (size,), device=device)
        run = partial(variant(fit, *v), images, labels)
        run()
    return _Ready(run, peak[0] if peak else None)


def _with_work(row: Row, fit: Fit) -> Row:
    """Add operations a second: two for a multiply-add, three passes of equal cost (forward, and backward twice)."""
    work = 3 * 2 * sum(layer.multiply_adds for layer in fit.layers)
    return row if "error" in row else {**row, "flops_per_second": work * row["images_per_second"]}


def _with_share(row: Row, peaks: dict[str, float]) -> Row:
    peak = peaks[row["precision"]]
    return (
        row if "error" in row else {**row, "matmul_peak": peak, "peak_share": row["flops_per_second"] / peak}
    )


def measure_wait(subject: Subject) -> list[Row]:
    """Time the run's own step, written by hand, on one batch over and over and on batches from the loader."""
    fit = subject.fit()
    step, count = as_the_run(fit), subject.options["steps"]
    with RunLoader(fit) as loader:
        (fixed,) = loader.steps(1)

        def on_one() -> None:
            for _ in range(count):
                step(fixed.images, fixed.labels)

        def on_many() -> None:
            for batch in loader.steps(count):
                step(batch.images, batch.labels)

        cases = {"one fixed batch": on_one, "batches from the loader": on_many}
        times = alternate(cases, subject.repeats, subject.device, warmup=1, parts=count)
    what = f"wait for data: {title(fit, subject.overrides)}"
    made = rows(what, times, len(fixed.labels), "one fixed batch")
    wait = (
        1.0 - times["one fixed batch"]["median_seconds"] / times["batches from the loader"]["median_seconds"]
    )
    made[1]["input_share"] = max(0.0, wait)
    return made


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
