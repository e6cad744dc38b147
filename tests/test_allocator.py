"""Freed memory is kept: page faults are counted in subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_COUNT = """
import ctypes, resource
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults(turns):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        block = libc.malloc(2**26)  # 64 MiB: 16,384 pages, or 32 large ones and some
        libc.memset(block, 0, 2**26)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
{around}:
    print(faults(5))
"""
_KEEP = "from alexnet_exp.startup import keep_freed_memory, usual_limits; keep_freed_memory()"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="The C library is GNU's on Linux alone.")


def _faults(before: str, around: str = "if True", **environment: str) -> int:
    script = _COUNT.format(before=before, around=around)
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_not_cleared_again() -> None:
    given_back = _faults(before="")
    assert given_back > 5 * 32  # every page, every time
    assert _faults(before=_KEEP) < given_back / 3


def test_usual_limits_return_freed_memory() -> None:
    assert _faults(before=_KEEP, around="with usual_limits()") > 4 * 32  # the first block is still mapped


def test_huge_pages_are_disabled_only_where_they_are_not_the_default() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    unasked = setting.exists() and "[always]" in setting.read_text()
    get = "prctl(42, 0, 0, 0, 0)"  # PR_GET_THP_DISABLE
    script = f"import ctypes; {_KEEP}; libc = ctypes.CDLL(None)\n"
    script += f"print(libc.{get})\nwith usual_limits(): print(libc.{get})\nprint(libc.{get})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(int(not unasked)), "0"]


@pytest.mark.parametrize("limits", [{"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": ""}])
def test_limits_that_the_user_has_set_are_left_alone(limits: dict[str, str]) -> None:
    assert _faults(before=_KEEP, **limits) > 5 * 32
