"""Checkpoints written by a thread, as on CUDA: complete at any moment, in order, errors raised."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp.errors import UserError
from alexnet_exp.training.checkpoint import write
from alexnet_exp.training.checkpoint.write import AtomicCheckpointIO
from tests.training.small_runs import assert_same_end, checkpoint, resume, run, train_until


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return an event; no file is written before it is set."""
    go, save = threading.Event(), torch.save

    def wait(*arguments: Any) -> None:
        assert go.wait(30)
        save(*arguments)

    monkeypatch.setattr(torch, "save", wait)
    yield go
    go.set()


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_the_previous_file_stays_until_a_save_is_written(tmp_path: Path, held: threading.Event) -> None:
    io, path, weight = AtomicCheckpointIO(on_thread=True), tmp_path / "last.ckpt", torch.zeros(3)
    held.set()
    io.save_checkpoint({"weight": weight}, path)
    io.wait()
    held.clear()
    weight += 1
    io.save_checkpoint({"weight": weight, "nested": [{"also": (weight,)}]}, path)
    weight += 1  # the next step of training
    assert read(path)["weight"].tolist() == [0, 0, 0]  # what would be left after a kill
    held.set()
    io.wait()
    assert read(path)["weight"].tolist() == read(path)["nested"][0]["also"][0].tolist() == [1, 1, 1]
    assert read(tmp_path / "last-1.ckpt")["weight"].tolist() == [0, 0, 0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last-1.ckpt", "last.ckpt"]


def test_actions_after_a_save_wait_for_it_on_the_thread(tmp_path: Path, held: threading.Event) -> None:
    io, path, seen = AtomicCheckpointIO(on_thread=True), tmp_path / "last.ckpt", list[bool]()
    io.save_checkpoint({"step": 1}, path)
    io.after_save(lambda: seen.append(path.exists()))
    assert seen == []
    held.set()
    with pytest.raises(UserError, match="no config"):  # not a run's checkpoint, but reading waits too
        io.load_checkpoint(path)
    assert seen == [True]
    io.after_save(lambda: seen.append(True))  # nothing is being written: runs immediately
    assert seen == [True, True]
    io.teardown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


def test_an_error_in_the_thread_is_raised_at_the_next_save(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    io, path, seen = AtomicCheckpointIO(on_thread=True), tmp_path / "last.ckpt", list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for ask in (lambda: io.save_checkpoint({}, path), io.wait):
            io.save_checkpoint({"step": 1}, path)
            io.after_save(lambda: seen.append("linked"))
            with pytest.raises(UserError, match="No space left on device"):
                ask()
        io.save_checkpoint({"step": 1}, path)
        io.teardown()  # as in a failed run: its own error counts
    assert "No space left" in caplog.text
    assert seen == [] and not list(tmp_path.iterdir())
    io.save_checkpoint({"step": 2}, path)
    io.wait()
    assert read(path)["step"] == 2


def test_the_copy_has_everything_in_the_checkpoint() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    given = {"state_dict": model.state_dict(), "step": 3, "loops": {"a": [1, (2, None)]}}
    copied = write._in_main_memory(given)
    assert copied["state_dict"]._metadata == given["state_dict"]._metadata  # version numbers of the layers
    assert list(copied["state_dict"]) == list(given["state_dict"]) and copied["loops"] == given["loops"]
    for name, tensor in given["state_dict"].items():
        assert torch.equal(copied["state_dict"][name], tensor)
        assert copied["state_dict"][name].data_ptr() != tensor.data_ptr()


def test_without_cuda_checkpoints_are_written_synchronously(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"weight": torch.ones(1)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").exists() and io._thread is None


def test_runs_resume_identically_with_and_without_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=2"]
    run(tmp_path / "whole", *settings)
    started = AtomicCheckpointIO.__init__
    monkeypatch.setattr(
        AtomicCheckpointIO, "__init__", lambda self, keep_last: started(self, keep_last, True)
    )
    train_until(tmp_path / "parts", 11, *settings)
    assert checkpoint(tmp_path / "parts")["global_step"] == 10
    resume(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
