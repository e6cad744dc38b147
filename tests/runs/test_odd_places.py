"""Runs on odd machines and in odd folders: they work, or fail with one clear line.

Each is a new process, since home, locale and terminal are read when Python starts.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.makers import write_folder
from tests.training.small_runs import NARROW

ROOT = Path(__file__).parents[2]
ODD = "größe 猫, a=b 'c' [d]"
NO_HOME = {"HOME": "/dev/null/home"}  # not even root can create it
NO_TERMINAL = {"TERM": "dumb"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SHORT = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "callbacks.model_summary.enabled=false",
]
DIGITS = ["model=alexnet_cifar", *NARROW, "data=digits", *SHORT]


def obey_permissions() -> None:
    """Drop root's right to write everywhere (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) in this process."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def start(cwd: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run train.py with only the given environment variables, and those that Python needs."""
    needed = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *typed],
        cwd=cwd,
        env={**needed, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=obey_permissions if os.name == "posix" else None,
        timeout=300,
        check=False,
    )


def only_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one-line error of a refused run."""
    said = done.stderr.decode("utf-8", "backslashreplace")
    assert done.returncode == 1, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def finished(run_dir: Path, done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr
    assert json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert (run_dir / "report.html").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Return a read-only folder."""
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o555)
    probe = subprocess.run(["touch", str(folder / "x")], preexec_fn=obey_permissions, capture_output=True)
    if probe.returncode == 0:
        pytest.skip("this user can write everywhere, and cannot give that up")
    yield folder
    folder.chmod(0o755)


def test_everything_odd_at_once(tmp_path: Path, read_only: Path) -> None:
    """Images in a read-only folder, no home, no terminal, ASCII, and a run directory that no shell likes."""
    pets, cwd = read_only / "pets", tmp_path / ODD
    read_only.chmod(0o755)
    write_folder(
        pets, {f"{split}/{name}": 4 for split in ("train", "val") for name in ("Kätzchen", "<script>")}
    )
    for folder, _, _ in os.walk(read_only):
        os.chmod(folder, 0o555)
    cwd.mkdir()
    done = start(cwd, "model=alexnet_cifar", *NARROW, "data=folder", f"data.root={pets}", "data.batch_size=4",
                 "data.num_workers=1", f"paths.data_dir={read_only}", f"hydra.run.dir={cwd / ODD}", *SHORT,
                 **NO_HOME, **NO_TERMINAL, **ASCII)  # fmt: skip
    finished(cwd / ODD, done)
    assert (cwd / ODD / "wandb").is_dir()
    result = json.loads((cwd / ODD / "result.json").read_text(encoding="utf-8"))
    assert result["classes"] == ["<script>", "Kätzchen"]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [NO_HOME, NO_TERMINAL, ASCII], ids=["no home", "dumb", "ascii"])
def test_one_oddity_at_a_time(tmp_path: Path, environment: dict[str, str]) -> None:
    home = {"HOME": str(tmp_path)}
    finished(
        tmp_path / "run",
        start(tmp_path, *DIGITS, f"hydra.run.dir={tmp_path / 'run'}", **{**home, **environment}),
    )


@pytest.mark.slow
def test_a_closed_standard_output_does_not_stop_a_run(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *DIGITS,
        "logger=csv",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(shell, cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    finished(tmp_path / "run", done)


def test_a_read_only_run_folder_is_a_one_line_error(tmp_path: Path, read_only: Path) -> None:
    said = only_line(start(tmp_path, *DIGITS, f"paths.output_dir={read_only}"))
    assert "cannot be written (Permission denied): set hydra.run.dir=DIR or paths.output_dir=DIR." in said


def test_a_read_only_current_folder_is_a_one_line_error(read_only: Path) -> None:
    assert "paths.output_dir=DIR" in only_line(start(read_only, *DIGITS))


def test_a_run_directory_that_is_a_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in only_line(start(tmp_path, *DIGITS, f"hydra.run.dir={tmp_path / 'file'}"))
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unreadable_data_folder_is_a_one_line_error(tmp_path: Path, read_only: Path) -> None:
    read_only.chmod(0)
    said = only_line(start(tmp_path, "data=folder", f"data.root={read_only}", *SHORT, "logger=none"))
    assert str(read_only) in said
