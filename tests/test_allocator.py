"""Freed memory is kept: counted in page faults, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_COUNT = """
import resource, sys
{before}
import torch

def faults(turns):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        torch.empty(2**24).zero_()  # 64 MiB: 16,384 pages, or 32 large ones and some
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
{around}:
    print(faults(5))
"""
_KEEP = "from alexnet_exp.allocator import keep_freed_memory, usual_limits; keep_freed_memory()"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="The C library is GNU's on Linux alone.")


def _faults(before: str, around: str = "if True", **environment: str) -> int:
    script = _COUNT.format(before=before, around=around)
    # The same for all: the two differ in alignment too, and small pages are not the matter here.
    env = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1", **environment}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_not_cleared_again() -> None:
    given_back = _faults(before="")
    assert given_back > 5 * 32  # every page, every time
    # None as a rule; a block may still find its place in the first of the five turns.
    assert _faults(before=_KEEP) < given_back / 3


def test_usual_limits_give_memory_back_and_use_small_pages() -> None:
    assert _faults(before=_KEEP, around="with usual_limits()") > 4 * 2**14 * 0.9  # the first time it is there


def test_limits_that_the_user_has_set_are_left_alone() -> None:
    assert _faults(before=_KEEP, MALLOC_MMAP_THRESHOLD_="131072") > 5 * 32
