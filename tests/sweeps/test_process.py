from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexnet_exp.sweeps import job as job_module
from alexnet_exp.sweeps.job import FILE_NAME, Job, end_orphan, identity, is_gone, remember

SAVES = (
    "import pathlib, signal, sys, time\n"
    "def save(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save)\n"
)
STUBBORN = "import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
WAIT = "pathlib.Path('ready').touch()\ntime.sleep(60)\n"

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start processes in tmp_path; kill those that are left at the end."""
    processes = []

    def begin(script: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", script + WAIT], cwd=tmp_path, start_new_session=True
        )
        processes.append(process)
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_process_is_identified_by_its_start_time():
    here = identity(os.getpid())
    assert here is not None
    assert is_gone(here) is False
    assert is_gone([*here[:2], "another time"]) is True


def test_a_process_that_has_ended_is_gone(start: Start):
    process = start(SAVES)
    known = identity(process.pid)
    process.kill()
    while process.poll() is None:
        time.sleep(0.01)
    assert known is not None
    assert is_gone(known) is True
    assert identity(process.pid) is None


def test_the_state_of_a_process_on_another_machine_is_unknown():
    assert is_gone(["elsewhere", str(os.getpid()), "1"]) is None


def test_an_orphan_can_save_before_it_ends(tmp_path: Path, start: Start):
    process = start(SAVES)
    remember(tmp_path, process.pid)
    assert end_orphan(tmp_path) is True
    assert process.wait(5) == 143
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / FILE_NAME).exists()


def test_an_orphan_that_does_not_end_is_killed(tmp_path: Path, start: Start):
    process = start(STUBBORN)
    remember(tmp_path, process.pid)
    assert end_orphan(tmp_path, seconds=0.2) is True
    assert process.wait(5) == -signal.SIGKILL


def test_a_process_with_a_reused_pid_is_left_alone(tmp_path: Path, start: Start):
    process = start(SAVES)
    known = identity(process.pid)
    assert known is not None
    (tmp_path / FILE_NAME).write_text(json.dumps([*known[:2], "another time"]))
    assert end_orphan(tmp_path) is False
    assert process.poll() is None


def test_an_orphan_on_another_machine_keeps_its_record(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text(json.dumps(["elsewhere", str(os.getpid()), "1"]))
    assert end_orphan(tmp_path) is False
    assert (tmp_path / FILE_NAME).exists()


def test_without_a_record_there_is_no_orphan(tmp_path: Path):
    assert end_orphan(tmp_path) is False
    (tmp_path / FILE_NAME).write_text("half a li")
    assert end_orphan(tmp_path) is False


def test_a_job_starts_only_after_its_orphan_has_ended(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_module, "PROGRAM", [sys.executable, "-S", "-c", "print('began')"])
    orphan = start(SAVES)
    remember(tmp_path, orphan.pid)
    job = Job(0, [], tmp_path)
    job.start(os.environ)
    assert (tmp_path / "saved").exists()
    assert job.process is not None
    job.process.wait(20)
    assert job.poll()
    assert not (tmp_path / FILE_NAME).exists()
