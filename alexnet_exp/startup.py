"""What is set before torch is imported: memory that is kept, threads that wait without spinning.

A step on a CPU asks for hundreds of megabytes and gives them back. The C library returns blocks of that size to the
system at once, and the system clears every page again when it is next touched: a tenth to three tenths of a step
(benchmarks/README.md has the figures). Kept, and in large pages, they cost that once.

The threads of a step wait for one another hundreds of times. GNU's OpenMP, which torch's Linux wheels carry, lets them
spin for milliseconds before they sleep. Where another process needs one of the cores, spinning threads keep it from the
one that everybody waits for, and a step takes several times as long.
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
_KEPT = (2**31 - 1, 2**30)  # bytes: never trimmed; an array of more than 1 GiB is still given back
_USUAL = (2**26, 2**25)  # the highest that the library sets by itself, which it does in the first step
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SPIN_COUNT = "1000"  # some 10 us; 300,000 unless set. Source: libgomp/env.c of GCC
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
    """Keep freed memory in this process, and let torch ask for large pages; call before torch is imported.

    Limits stay as they are where the C library is another than GNU's, or where the user has set them in the
    environment; torch is told of large pages everywhere (THP_MEM_ALLOC_ENABLE, unless that is set).
    """
    # Torch asks for it when it first allocates. It also aligns to pages: at smaller alignments the GNU C library up to
    # 2.37 leaves a splinter behind each block, which keeps blocks from being joined again.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _set(_KEPT)


@contextmanager
def usual_limits() -> Iterator[None]:
    """Give freed memory back for a while and have the pages that programs get that set nothing."""
    _set(_USUAL, large_pages=_LARGE_PAGES.exists() and "[always]" in _LARGE_PAGES.read_text())
    give_back()
    try:
        yield
    finally:
        _set(_KEPT)


def give_back() -> None:
    """Return what is kept to the system, so that it no longer counts as taken."""
    libc = _gnu()
    if libc is not None:
        libc.malloc_trim(0)


def _set(limits: tuple[int, int], large_pages: bool = True) -> None:
    libc = _gnu()
    if libc is None or any(name in os.environ for name in _USERS_OWN):
        return
    if not libc.mallopt(_M_MMAP_THRESHOLD, limits[1]):
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL[1])  # older versions take no more
    libc.mallopt(_M_TRIM_THRESHOLD, limits[0])
    libc.prctl(_PR_SET_THP_DISABLE, int(not large_pages), 0, 0, 0)


def _gnu() -> ctypes.CDLL | None:
    """Return the C library if it is GNU's."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, where its locale has another encoding (LC_ALL=C, say)."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
