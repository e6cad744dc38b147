"""Memory of the processor: what one training step frees is kept for the next.

A step on a CPU asks for hundreds of megabytes and gives them back. The C library returns blocks of that size to the
system at once, and the system clears every page again when it is next touched: an eighth to a third of a step
(benchmarks/README.md has the figures). Kept, and in large pages, they cost that once.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Source: malloc.h of the GNU C library, prctl.h of Linux
_PR_SET_THP_DISABLE = 41
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = (2**31 - 1, 2**30)  # bytes: never trimmed; an array of more than 1 GiB is still given back
_USUAL = (2**26, 2**25)  # the highest that the library sets by itself, which it does in the first step
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep freed memory in this process, and let torch ask for large pages; call before torch is imported.

    Does nothing where the C library is another than GNU's, or the user has set its limits in the environment.
    """
    # Torch asks for it when it first allocates. It also aligns to pages: at smaller alignments the GNU C library up to
    # 2.37 leaves a splinter behind each block, which keeps blocks from being joined again.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _set(_KEPT)


@contextmanager
def usual_limits() -> Iterator[None]:
    """Give freed memory back for a while and use small pages, as programs do that set nothing."""
    _set(_USUAL, large_pages=False)
    try:
        yield
    finally:
        _set(_KEPT)


def _set(limits: tuple[int, int], large_pages: bool = True) -> None:
    if sys.platform != "linux" or any(name in os.environ for name in _USERS_OWN):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, limits[0])
        libc.mallopt(_M_MMAP_THRESHOLD, limits[1])
        libc.prctl(_PR_SET_THP_DISABLE, int(not large_pages), 0, 0, 0)
