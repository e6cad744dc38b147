"""Peak memory, the largest batch that fits, and the fastest that this machine multiplies matrices."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from alexnet_exp.allocator import give_back
from alexnet_exp.errors import is_out_of_memory
from alexnet_exp.runs.benchmark_loop import PRECISIONS
from alexnet_exp.runs.timing import waiting

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SHARE = (
    0.7  # of the free main memory that a batch may take; past it Linux ends processes instead of refusing
)
_MATRIX = {"cuda": 8_192, "cpu": 2_048}  # rows and columns
LARGEST = {"cuda": 16_384, "cpu": 1_024}  # images: more than anything here gains from


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Measure how much memory the body takes at most, on top of what is taken already.

    Yields:
        A list that holds the bytes afterwards; empty where the system does not tell (a processor outside Linux).
    """
    found: list[int] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
    elif _RESET.exists():
        give_back()  # memory that is kept would not be counted when it is taken again
        _RESET.write_text("5")  # Linux: the peak starts again from what is resident now
        before = _resident("VmRSS")
        yield found
        found.append(max(0, _resident("VmHWM") - before))
    else:
        yield found


def largest_batch(try_batch: Callable[[int], int | None], most: int) -> int:
    """Find the largest batch that fits: double until it does not, then halve the gap to a sixteenth.

    Args:
        try_batch: Takes a training step with so many images; returns the bytes it took, if known, and raises as torch
            does when memory runs out.
        most: Where to stop.

    Returns:
        Images; 0 if not even one fits.
    """
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
        out = True
    else:
        out = False
    release()  # outside of the handler: the error's traceback holds the tensors
    return not out


def release() -> None:
    """Give back the memory of what nobody refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class RoomOnProcessor:
    """Refuses a batch that would fill main memory, judged by what smaller ones took."""

    def __init__(self) -> None:
        self._per_image = 0.0

    def check(self, size: int) -> None:
        """Raise MemoryError if a batch of `size` is likely not to fit."""
        if size * self._per_image > _SHARE * free_memory():
            raise MemoryError(f"{size} images would fill main memory")

    def learn(self, size: int, num_bytes: int | None) -> None:
        """Remember what a batch took."""
        if num_bytes is not None:
            self._per_image = max(num_bytes / size, self._per_image if size < 16 else 0.0)


def free_memory() -> int:
    """Return the bytes of main memory that can still be had; a great many where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2**62
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def matmul_peak(precision: str, device: str) -> float:
    """Return the most operations a second of a large matrix product in the dtype of a precision."""
    size = _MATRIX[device]
    dtype = torch.bfloat16 if precision == "bf16-true" else PRECISIONS[precision] or torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait, least = waiting(device), float("inf")
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        least = min(least, time.perf_counter() - start)
    return 2.0 * size**3 / least


def _resident(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
