"""How threads wait is set before GNU's OpenMP is loaded: in commands, their children, and a process begun again."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_exp import cores, startup

TORCH = Path(importlib.util.find_spec("torch").origin).parent  # type: ignore[union-attr, arg-type]
LIBRARY = next((TORCH / "lib").glob("libgomp*.so*"), None)
LOAD = f"import ctypes; ctypes.CDLL({str(LIBRARY)!r})"
SET = "from alexnet_exp.startup import before_torch, use_utf8; before_torch()"

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="this torch has another OpenMP")


def spin_count(*command: str, **environment: str) -> int:
    """Return what OpenMP says that it has read when a command loads it."""
    plain = {name: value for name, value in os.environ.items() if name not in startup._WAITING}
    env = {**plain, "OMP_DISPLAY_ENV": "VERBOSE", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert found, done.stderr
    return int(found[1])


def test_openmp_as_it_comes_spins_for_milliseconds_and_ours_briefly() -> None:
    assert spin_count(sys.executable, "-c", LOAD) == 300_000  # what benchmarks/threads.py compares with
    assert spin_count(sys.executable, "-c", f"{SET}; {LOAD}") == 10_000


@pytest.mark.parametrize(
    ("own", "count"), [({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "passive"}, 0)]
)
def test_how_the_user_lets_threads_wait_stays(own: dict[str, str], count: int) -> None:
    assert spin_count(sys.executable, "-c", f"{SET}; {LOAD}", **own) == count


def test_a_process_that_begins_again_in_utf8_has_it_too() -> None:
    code = f"{SET}; use_utf8(); {LOAD}"
    other = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert spin_count(sys.executable, "-c", code, **other) == 10_000


def test_a_command_sets_it_before_torch_is_loaded() -> None:
    assert spin_count(sys.executable, "-m", "alexnet_exp.cli", "models", "alexnet_cifar") == 10_000


def test_ranks_and_jobs_inherit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in startup._WAITING:
        monkeypatch.delenv(name, raising=False)
    startup.before_torch()
    assert cores.environment()["GOMP_SPINCOUNT"] == "10000"


def test_the_tests_have_it() -> None:
    assert any(name in os.environ for name in startup._WAITING)
