"""Checkpoint files on disks that fill up, lose bytes or tear writes: the previous checkpoint is used."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.checkpoint.safe_load import load_safely
from alexnet_exp.training.checkpoint.write import AtomicCheckpointIO, link
from tests.training.small_runs import DROPOUT, checkpoint, resume, rows, run, same, train_until

SETTINGS = [*DROPOUT, "test=false", "scheduler=none"]  # 7 steps an epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of three epochs."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(directory, *SETTINGS, "trainer.max_epochs=3")
    return directory


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, stopped after two."""
    directory = tmp_path_factory.mktemp("two") / "run"
    train_until(directory, 14, *SETTINGS, "trainer.max_epochs=3")
    return directory


@pytest.fixture
def stopped(two_epochs: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, with its hard link kept."""
    directory = tmp_path / "run"
    shutil.copytree(two_epochs, directory)
    kept, best = directory / "checkpoints" / "last.ckpt", directory / "checkpoints" / "best.ckpt"
    if (two_epochs / "checkpoints" / "best.ckpt").samefile(two_epochs / "checkpoints" / "last.ckpt"):
        best.unlink()
        best.hardlink_to(kept)
    return directory


def steps(directory: Path) -> dict[str, int]:
    """Return the step of each checkpoint of a run."""
    return {
        file.name: load_safely(file)["global_step"] for file in sorted((directory / "checkpoints").iterdir())
    }


def flip(file: Path, share: float) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * share)] ^= 1
    file.unlink()  # do not write through a hard link
    file.write_bytes(data)


def assert_same_end(one: Path, other: Path) -> None:
    a, b = checkpoint(one), checkpoint(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "train_sums", "loops"):
        assert same(a[key], b[key]), key
    assert same(checkpoint(one, "best")["state_dict"], checkpoint(other, "best")["state_dict"])
    assert rows(one) == rows(other)


# ------------------------------------------------------------------------------------------------ previous checkpoints


def test_the_previous_checkpoint_is_kept(whole: Path) -> None:
    found = steps(whole)
    found.pop("best.ckpt")
    assert found == {"last.ckpt": 21, "last-1.ckpt": 14}


def test_leftovers_of_a_killed_save_are_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.123.tmp").write_bytes(b"half of it")
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    (tmp_path / ".best.ckpt.123.tmp").write_bytes(b"half of it")
    link(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_without_hard_links_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(number: int) -> Callable[..., None]:
        def call(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    (tmp_path / "last.ckpt").write_bytes(b"new")
    (tmp_path / "best.ckpt").write_bytes(b"old")
    monkeypatch.setattr(os, "link", fail(errno.EPERM))
    monkeypatch.setattr(shutil, "copyfile", fail(errno.ENOSPC))
    with pytest.raises(
        UserError, match=r"best\.ckpt cannot be written \(No space left on device\); the previous best\.ckpt"
    ):
        link(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("keep_last", [1, 2, 4])
def test_keep_last_checkpoints_are_kept(tmp_path: Path, keep_last: int) -> None:
    writer, path = AtomicCheckpointIO(keep_last), tmp_path / "last.ckpt"
    for step in range(6):
        writer.save_checkpoint({"global_step": step}, path)
    names = ["last.ckpt", *(f"last-{number}.ckpt" for number in range(1, keep_last))]
    assert {file.name: torch.load(file)["global_step"] for file in tmp_path.iterdir()} == {
        name: 5 - number for number, name in enumerate(names)
    }
    AtomicCheckpointIO(1).save_checkpoint({}, path)  # a resumed run that keeps fewer
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1000])


def replace(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


HARMS: dict[
    str, tuple[Callable[[Path], None], str]
] = {  # what happened to last.ckpt: how it is made, message
    "one bit changed": (lambda file: flip(file, 0.5), r"last\.ckpt cannot be read: it is damaged"),
    "its end is missing": (cut, r"last\.ckpt cannot be read: it is damaged"),
    "nothing in it": (lambda file: replace(file, ""), r"last\.ckpt cannot be read"),
    "another file": (lambda file: replace(file, "no checkpoint"), r"last\.ckpt cannot be read"),
    "gone": (lambda file: file.unlink(), "There is no checkpoint "),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(
    stopped: Path, whole: Path, harm: str
) -> None:
    do, message = HARMS[harm]
    do(stopped / "checkpoints" / "last.ckpt")
    result = resume(stopped)
    assert result is not None and (result["status"], result["steps"]) == ("finished", 21)
    said = (stopped / "train.log").read_text()
    assert f"Using the previous checkpoint instead: {stopped}/checkpoints/last-1.ckpt (step 7)." in said
    assert re.search(message, said)
    assert_same_end(whole, stopped)


def test_a_damaged_file_that_is_also_the_best_is_replaced(stopped: Path, whole: Path) -> None:
    last, best = stopped / "checkpoints" / "last.ckpt", stopped / "checkpoints" / "best.ckpt"
    flip(last, 0.5)
    best.unlink()
    best.hardlink_to(last)
    resume(stopped)
    assert_same_end(whole, stopped)


def test_if_every_checkpoint_is_damaged_the_last_is_named(stopped: Path) -> None:
    for name in ("last.ckpt", "last-1.ckpt"):
        flip(stopped / "checkpoints" / name, 0.5)
    before = {file: file.read_bytes() for file in (stopped / "checkpoints").iterdir()}
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read: it is damaged") as caught:
        resume(stopped)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in (stopped / "checkpoints").iterdir()} == before


def test_a_new_run_from_a_damaged_checkpoint_uses_the_previous_one_and_changes_nothing(
    stopped: Path, whole: Path, tmp_path: Path
) -> None:
    flip(stopped / "checkpoints" / "last.ckpt", 0.5)
    before = {file: file.read_bytes() for file in (stopped / "checkpoints").iterdir()}
    result = run(tmp_path / "new", *SETTINGS, "trainer.max_epochs=3", f"ckpt={stopped}")
    assert result["steps"] == 21
    assert same(checkpoint(tmp_path / "new")["state_dict"], checkpoint(whole)["state_dict"])
    assert {file: file.read_bytes() for file in (stopped / "checkpoints").iterdir()} == before


def test_a_checkpoint_given_as_a_file_is_used_without_fallback(stopped: Path, tmp_path: Path) -> None:
    flip(stopped / "checkpoints" / "last.ckpt", 0.5)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        run(tmp_path / "new", *SETTINGS, f"ckpt={stopped / 'checkpoints' / 'last.ckpt'}")


# ------------------------------------------------------------------------------------------------ by the clock


def test_a_checkpoint_is_written_every_n_minutes(tmp_path: Path) -> None:
    settings = [*SETTINGS, "trainer.max_epochs=2"]
    train_until(tmp_path / "often", 10, *settings, "callbacks.checkpoint.every_n_minutes=1e-9")
    assert checkpoint(tmp_path / "often")["global_step"] == 10
    train_until(tmp_path / "seldom", 10, *settings, "callbacks.checkpoint.every_n_minutes=60")
    assert checkpoint(tmp_path / "seldom")["global_step"] == 7
    run(tmp_path / "whole", *settings)
    resume(tmp_path / "often", "callbacks.checkpoint.every_n_minutes=null")
    assert_same_end(tmp_path / "whole", tmp_path / "often")


# ------------------------------------------------------------------------------------------------ a full disk


class FillUp(Callback):
    """Limit the size of files after the first epoch, as a full disk does."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, most))


def run_until_full(directory: Path, num_bytes: int) -> str:
    """Train until the disk is full, and return the error message."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill: dict[str, Any] = {"_target_": f"{__name__}.FillUp", "num_bytes": num_bytes}
    try:
        with pytest.raises(UserError) as caught:
            run(directory, *SETTINGS, "trainer.max_epochs=3", callbacks={"fill": fill})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return str(caught.value)


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_the_previous_checkpoint(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run_until_full(tmp_path / "run", 20_000)  # enough for small files
    shown = "".join(capfd.readouterr())
    assert "\n" not in said
    assert "last.ckpt cannot be written (File too large); the previous last.ckpt is intact" in said
    assert f"continue with resume={tmp_path / 'run'}" in said
    assert "Traceback" not in shown and "Logging error" not in shown
    assert steps(tmp_path / "run") == {"best.ckpt": 7, "last.ckpt": 7}
    assert not list((tmp_path / "run").rglob("*.tmp"))
    result = RunDirectory(tmp_path / "run").result()
    assert result is not None and (result["status"], result["error"]) == ("failed", said)
    resume(tmp_path / "run")
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.slow  # in a new process: pytest itself could not write anything
def test_a_disk_without_a_single_free_byte_stops_the_run_with_one_line(tmp_path: Path, whole: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from tests.training.checkpoint.test_checkpoint_files import run_until_full; "
        "print('said', run_until_full(Path(sys.argv[1]), 0))"
    )
    # Its output goes to pipes, which have no size limit.
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written (File too large)" in done.stdout
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    assert steps(tmp_path / "run") == {"best.ckpt": 7, "last.ckpt": 7}
    resume(tmp_path / "run")
    assert_same_end(whole, tmp_path / "run")
