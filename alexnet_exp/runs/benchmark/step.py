"""Time training steps on a fixed batch in all requested combinations, and with the run's data.

Also measured, as references: peak matrix multiplication speed, peak memory, and the largest batch that fits.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from alexnet_exp.errors import is_out_of_memory
from alexnet_exp.memory import free_memory
from alexnet_exp.runs.benchmark.loop import PRECISIONS, RunLoader, as_the_run, variant
from alexnet_exp.runs.benchmark.settings import as_list
from alexnet_exp.runs.benchmark.subject import Subject, title
from alexnet_exp.runs.benchmark.timing import Row, alternate, rows, waiting
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.startup import give_back

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Of free main memory, for one batch: Linux does not refuse memory that it does not have, but kills processes.
_SHARE = 0.7
_MATRIX = {"cuda": 8_192, "cpu": 2_048}  # rows and columns
_LARGEST = {"cuda": 16_384, "cpu": 1_024}  # images; beyond this nothing here gets faster


class Variant(NamedTuple):
    """One way of computing the step."""

    precision: str
    layout: str
    compiled: bool

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}" + (" compiled" if self.compiled else "")


class _Ready(NamedTuple):
    run: Callable[[], object]
    memory: int | None  # peak of the first step in bytes


def measure_step(subject: Subject) -> list[Row]:
    """Time the training step for every combination of network, batch size, precision, layout and compilation in `step`.

    Returns:
        For every network and batch size one row per variant, with images and FLOPs per second, the share of the
        machine's peak, and peak memory; then the run's own step on one batch and on real data.
    """
    chosen = subject.options.step
    variants = [
        Variant(*parts)
        for parts in itertools.product(*map(as_list, (chosen.precision, chosen.layout, chosen.compile)))
    ]
    peaks = {v.precision: matmul_peak(v.precision, subject.device) for v in variants}
    made = []
    for name in as_list(chosen.model):
        one = subject if name is None else subject.with_overrides(f"model={name}")
        fit = one.fit()
        what = title(fit, one.overrides).rpartition(", batch")[0]
        # Two FLOPs per multiply-add; the backward pass, for weights and for inputs, costs twice the forward pass.
        operations = 2 * 3 * sum(layer.multiply_adds for layer in fit.layers)
        for size in as_list(chosen.batch_size):
            if size == "auto":
                group = [_largest(fit, v, what, subject) for v in variants]
            else:
                group = _compare(fit, variants, size or fit.data.batch_size, what, subject)
            for row in group:
                if "error" not in row:
                    row["flops_per_second"] = operations * row["images_per_second"]
            made += group
        release()
    # Measured again, in case other processes slowed down the first measurement.
    peaks = {p: max(peak, matmul_peak(p, subject.device)) for p, peak in peaks.items()}
    for row in made:
        if "error" not in row:
            peak = peaks[row["precision"]]
            row |= {"matmul_peak": peak, "peak_share": row["flops_per_second"] / peak}
    return made + measure_wait(subject)


def _compare(fit: Fit, variants: list[Variant], size: int, what: str, subject: Subject) -> list[Row]:
    """Time the variants in alternation; those that do not fit in memory get a row that says so."""
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
    # Every variant stays in memory, so that they can take turns.
    times = alternate({str(v): r.run for v, r in ready.items()}, subject.repeats, subject.device, warmup=1)
    made = rows(what, times, images=size, reference=next(iter(times), None))
    for row, (v, r) in zip(made, ready.items(), strict=True):
        row |= {**v._asdict(), "batch_size": size, "peak_memory": r.memory}
    return made + [_out_of_memory(what, v, size) for v in failed]


def _largest(fit: Fit, v: Variant, what: str, subject: Subject) -> Row:
    """Find and time the largest batch that fits; alone, since two such variants would not fit in memory together."""
    room = RoomInMemory()

    def try_batch(size: int) -> None:
        if subject.device == "cpu":
            room.check(size)
        room.learn(size, _prepare(fit, v, size, subject.device).memory)

    size = largest_batch(try_batch, _LARGEST[subject.device])
    what = f"step: {what}, the largest batch that fits"
    if not size:
        return _out_of_memory(what, v, 1)
    ready = _prepare(fit, v, size, subject.device)
    times = alternate({f"{v}, {size}": ready.run}, subject.repeats, subject.device, warmup=1)
    (row,) = rows(what, times, images=size)
    limited = size == _LARGEST[subject.device]
    row |= {**v._asdict(), "batch_size": size, "peak_memory": ready.memory, "limited": limited}
    del ready  # before the next variant looks for its largest batch
    release()
    return row


def _out_of_memory(what: str, v: Variant, size: int) -> Row:
    return {"what": what, "case": str(v), **v._asdict(), "batch_size": size, "error": "out of memory"}


def _prepare(fit: Fit, v: Variant, size: int, device: str) -> _Ready:
    """Build a variant and run it once, so that it is compiled and known to fit."""
    side = fit.settings.data.image_size
    with peak_memory(device) as peak:
        images = torch.randn(size, fit.data.channels, side, side, device=device)
        labels = torch.randint(0, len(fit.data.classes), (size,), device=device)
        run = partial(variant(fit, *v), images, labels)
        run()
    return _Ready(run, peak[0] if peak else None)


def measure_wait(subject: Subject) -> list[Row]:
    """Time the hand-written equivalent of the run's step on one fixed batch, and on batches from the loader."""
    fit = subject.fit()
    step, count = as_the_run(fit), subject.options.steps
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
    made[1]["input_share"] = max(0.0, 1.0 - made[1]["ratio"])  # of a step spent waiting
    return made


# ------------------------------------------------------------------------------------------------ the machine's limits


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Measure the peak memory of the body, on top of what is already in use.

    Yields:
        A list that contains the bytes afterwards; empty if the system does not report them (CPU outside Linux).
    """
    found: list[int] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
    elif _RESET.exists():
        give_back()  # memory cached by the allocator would not count when reused
        _RESET.write_text("5")  # resets VmHWM to the current VmRSS
        before = _resident("VmRSS")
        yield found
        found.append(max(0, _resident("VmHWM") - before))
    else:
        yield found


def largest_batch(try_batch: Callable[[int], int | None], most: int) -> int:
    """Find the largest batch that fits: double until it fails, then bisect to within a sixteenth.

    Args:
        try_batch: Runs a training step with this many images, and raises torch's errors when memory runs out.
        most: Upper limit.

    Returns:
        Number of images; 0 if not even one fits.
    """
    # Bisected to a sixteenth only: every attempt costs a compilation or a step near the memory limit.
    fits, fails, size = 0, most + 1, 1
    while fails - fits > max(1, fits // 16):
        if _fits(try_batch, size):
            fits = size
        else:
            fails = size
        size = min(2 * fits, most) if fails > most and fits else (fits + fails) // 2
    return fits


def _fits(try_batch: Callable[[int], int | None], size: int) -> bool:
    try:
        try_batch(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    release()  # outside of the handler: the error's traceback holds the tensors
    return fits


def release() -> None:
    """Free the memory of unreferenced objects."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class RoomInMemory:
    """Refuse a batch that would fill main memory, judging by smaller ones."""

    def __init__(self) -> None:
        self._per_image = 0.0

    def check(self, size: int) -> None:
        """Raise MemoryError if a batch of `size` probably does not fit."""
        if size * self._per_image > _SHARE * free_memory():
            raise MemoryError(f"{size} images would fill main memory")

    def learn(self, size: int, num_bytes: int | None) -> None:
        """Record the memory of a batch."""
        if num_bytes is not None:
            # Small batches are dominated by fixed costs: keep the largest estimate until there is a better one.
            self._per_image = max(num_bytes / size, self._per_image if size < 16 else 0.0)


def matmul_peak(precision: str, device: str) -> float:
    """Return the FLOPs per second of a large matrix product in the dtype of a precision, best of seven."""
    size = _MATRIX[device]
    dtype = PRECISIONS[precision] or torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait, best = waiting(device), float("inf")
    # The first products include warming up; the minimum leaves that out.
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _resident(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024  # "VmRSS:    5216 kB"
