"""Atomic writes, and locks that end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from alexnet_exp.errors import UserError
from alexnet_exp.files import is_locked, leftovers, locked, replacing, text_file, write_atomically


@pytest.mark.parametrize("sync", [False, True])
def test_a_failed_write_leaves_the_previous_file_and_nothing_else(tmp_path: Path, sync: bool) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"before")

    def fail() -> None:
        with replacing(file, sync=sync) as temporary:
            temporary.write_bytes(b"half")
            assert leftovers(file) == [temporary] and file.read_bytes() == b"before"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    with replacing(file, sync=sync) as temporary:
        temporary.write_bytes(b"after")
    assert file.read_bytes() == b"after" and [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_leftovers_belong_to_one_file(tmp_path: Path) -> None:
    for name in (".[a].1.tmp", ".a.1.tmp", ".[a].tmp", "[a]"):
        (tmp_path / name).touch()
    assert [path.name for path in leftovers(tmp_path / "[a]")] == [".[a].1.tmp"]


def test_text_that_is_not_valid_utf_8_is_escaped(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "\udce9.png")
    with text_file(tmp_path / "b") as file:
        file.write("\udce9.png")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == r"\udce9.png"


def test_a_deleted_folder_is_not_recreated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_atomically(tmp_path / "gone" / "result.json", "{}")
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from alexnet_exp.files import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_even_by_sigkill_and_passes_to_a_waiting_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        with locked(lock) as mine:
            assert not mine and is_locked(lock)
        threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL)).start()
        with locked(lock, wait=True, remove=False) as mine:
            assert mine and process.wait(5) == -signal.SIGKILL
    assert not is_locked(lock)


def test_releasing_a_lock_with_remove_deletes_its_file(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", remove=True) as mine:
        assert mine
        with locked(tmp_path / "lock", remove=True) as another:
            assert not another
        assert is_locked(tmp_path / "lock"), "who did not get it must not remove it"
    assert list(tmp_path.iterdir()) == []
