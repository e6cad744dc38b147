"""Process setup before torch is imported: keep freed memory for the next training step, threads that sleep soon, UTF-8.

A training step on CPU allocates and frees hundreds of megabytes. glibc returns blocks of that size to the kernel right
away, and the kernel zeroes every page when it is touched again: 10 to 30 % of a step (figures in benchmarks/README.md).
Keeping the memory, in huge pages, pays that cost once.

The threads of a step wait for one another hundreds of times. GNU OpenMP, which torch's Linux wheels contain, lets them
spin for milliseconds before they sleep. If another process needs one of the cores, spinning threads keep it from the
thread that all others wait for, and a step takes several times as long.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Source: malloc.h of the GNU C library, prctl.h of Linux
_PR_SET_THP_DISABLE = 41
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = (2**31 - 1, 2**30)  # bytes: never trim; arrays over 1 GiB are still returned
_USUAL = (2**26, 2**25)  # the highest values of glibc's own dynamic thresholds, which the first step reaches
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Half a millisecond or less; 300,000 unless set. With a tenth of it a quiet machine that is slow to wake threads loses
# a fifth of its rate (docs/LOG.md). Source: libgomp/env.c of GCC
_SPIN_COUNT = "10000"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # the user's own choice
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def before_torch() -> None:
    """Set memory and threads of this process and of those that it starts; call before torch is imported."""
    from alexnet_exp.cores import limit_threads  # train.py imports this module ahead of everything else

    keep_freed_memory()
    spin_briefly()
    limit_threads()


def spin_briefly() -> None:
    """Let threads of GNU's OpenMP sleep soon where they wait for one another, unless the user has chosen how they wait.

    It reads its environment when torch loads it. Other implementations of OpenMP ignore this.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def keep_freed_memory() -> None:
    """Keep freed memory in this process, and let torch use huge pages; call before torch is imported.

    The limits stay unchanged without glibc, or if the user's environment sets them. Huge pages are enabled in torch
    either way (THP_MEM_ALLOC_ENABLE, unless it is set).
    """
    # Torch reads it at its first allocation. It also aligns blocks to pages: at smaller alignments glibc <= 2.37 leaves
    # a fragment behind each block, which keeps free blocks from being merged.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _set(_KEPT)


@contextmanager
def usual_limits() -> Iterator[None]:
    """Use the limits and pages of a process without any settings for a while, as a baseline for benchmarks."""
    _set(_USUAL, large_pages=_LARGE_PAGES.exists() and "[always]" in _LARGE_PAGES.read_text())
    give_back()
    try:
        yield
    finally:
        _set(_KEPT)


def give_back() -> None:
    """Return kept memory to the system, so that it no longer counts as used."""
    libc = _gnu()
    if libc is not None:
        libc.malloc_trim(0)


def _set(limits: tuple[int, int], large_pages: bool = True) -> None:
    libc = _gnu()
    if libc is None or any(name in os.environ for name in _USERS_OWN):
        return
    if not libc.mallopt(_M_MMAP_THRESHOLD, limits[1]):
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL[1])  # older glibc rejects more
    libc.mallopt(_M_TRIM_THRESHOLD, limits[0])
    libc.prctl(_PR_SET_THP_DISABLE, int(not large_pages), 0, 0, 0)


def _gnu() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def use_utf8() -> None:
    """Restart this process in Python's UTF-8 mode if the locale has another encoding (e.g. LC_ALL=C)."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
