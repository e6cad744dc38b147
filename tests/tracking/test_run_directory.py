"""The lock of a run directory, on file systems that have locks and on others."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp import files
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory, is_held


def make_flock_fail(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)


def test_a_locked_directory_is_in_use_by_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_flock_fail(errno.EWOULDBLOCK, monkeypatch)
    with (
        pytest.raises(UserError, match="is in use by a run that is still running"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


def test_a_lock_file_deleted_by_its_last_owner_does_not_count_as_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files.fcntl, "flock", lambda file, operation: os.unlink(tmp_path / ".lock"))
    with (
        pytest.raises(UserError, match="is in use by a run that is still running"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_only_causes_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    make_flock_fail(number, monkeypatch)
    with RunDirectory(tmp_path).lock():
        (tmp_path / "config.yaml").write_text("seed: 0")
    (record,) = caplog.records
    assert f"{tmp_path}: the file system has no locks ({os.strerror(number)})" in record.getMessage()


def test_any_other_locking_error_is_reported_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_flock_fail(errno.EIO, monkeypatch)
    with (
        pytest.raises(UserError, match=r"cannot be written \(Input/output error\)"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


@pytest.mark.parametrize(
    ("holds", "say"), [("note.txt", "set hydra.run.dir=DIR or"), ("config.yaml", "make it writable")]
)
def test_an_unwritable_run_to_resume_does_not_suggest_another_directory(
    tmp_path: Path, holds: str, say: str
) -> None:
    (tmp_path / holds).write_text("")
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(UserError, match=rf"{tmp_path} cannot be written .*: {say}"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


LOOK = """
import sys
from pathlib import Path
from alexnet_exp.tracking.run_directory import is_held
print("looking", flush=True)
while True:
    is_held(Path(sys.argv[1]))
"""


def test_checking_a_lock_never_blocks_a_starting_run(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()  # left by a killed run
    lookers = [
        subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for looker in lookers:
            assert looker.stdout is not None and looker.stdout.readline() == b"looking\n"
        for _ in range(300):
            with RunDirectory(tmp_path).lock():
                assert is_held(tmp_path)
                with pytest.raises(UserError, match="still running"), RunDirectory(tmp_path).lock():
                    pass
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()
    assert not is_held(tmp_path)
