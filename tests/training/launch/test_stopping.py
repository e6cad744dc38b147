"""A signal stops a run after the current step, which is saved; the run resumes exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp import torch_internals
from alexnet_exp.runs.train import results
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.launch import signals as stopping
from alexnet_exp.training.launch.signals import (
    Stopped,
    agreed,
    hold_early,
    requeue,
    signals_held,
    stopping_on_signals,
    training_loop,
)
from tests.processes import catches
from tests.training.small_runs import DROPOUT, checkpoint, resume, rows, run, same

SETTINGS = [*DROPOUT, "trainer.max_epochs=3", "test=false"]  # 7 steps an epoch


class Send(Callback):
    """Send this process a signal, as a batch system does, before the step that follows `step` steps."""

    def __init__(self, step: int, number: int, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, i: int
    ) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def stopped_at(folder: Path, step: int, number: int, *overrides: str, times: int = 1) -> Stopped:
    send = {"_target_": f"{__name__}.Send", "step": step, "number": int(number), "times": times}
    with pytest.raises(Stopped) as caught:
        run(folder, *SETTINGS, *overrides, callbacks={"send": send})
    return caught.value


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: str, code: int):
    stop = stopped_at(tmp_path, 3, getattr(signal, number))
    assert (stop.exit_code, stop.saved_step) == (code, 4)
    assert checkpoint(tmp_path)["global_step"] == 4
    result = RunDirectory(tmp_path).result()
    assert result is not None
    assert (result["status"], result["error"]) == ("interrupted", f"stopped by {number}")
    assert (tmp_path / "report.html").exists()
    assert "To resume: python train.py resume=" in (tmp_path / "train.log").read_text()


def test_a_signal_during_an_import_is_deferred():
    done = []
    with stopping_on_signals():
        with pytest.raises(Stopped) as caught, signals_held():  # noqa: PT012 (the block raises at its end)
            os.kill(os.getpid(), signal.SIGUSR1)
            done.append("import")
        assert done == ["import"]
        assert caught.value.number == signal.SIGUSR1


def test_a_signal_before_the_run_stops_it_when_it_starts():
    before = signal.getsignal(signal.SIGUSR1)
    hold_early()
    os.kill(os.getpid(), signal.SIGUSR1)  # would kill the process
    with pytest.raises(Stopped) as caught, stopping_on_signals(), signals_held():
        pass
    signal.signal(signal.SIGUSR1, before)
    assert caught.value.number == signal.SIGUSR1


@pytest.mark.parametrize(
    ("step", "overrides", "saved"),
    [
        (9, [], 10),
        (6, [], 7),  # the last step of an epoch: the epoch's own checkpoint counts
        (20, [], 21),  # the last step of the run
        (2, ["trainer.accumulate_grad_batches=2"], 3),
        (9, ["trainer.val_check_interval=3"], 10),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, step: int, overrides: list[str], saved: int
):
    run(tmp_path / "whole", *SETTINGS, *overrides)
    stop = stopped_at(tmp_path / "parts", step, signal.SIGTERM, *overrides)
    assert stop.saved_step == saved
    result = resume(tmp_path / "parts")
    assert result is not None and result["status"] == "finished"
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "train_sums"):
        assert same(whole[key], parts[key]), key
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_a_second_ctrl_c_exits_immediately(tmp_path: Path):
    send = {"_target_": f"{__name__}.Send", "step": 3, "number": int(signal.SIGINT), "times": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *SETTINGS, callbacks={"send": send})
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_ctrl_c_after_another_signal_exits_immediately():
    with pytest.raises(KeyboardInterrupt), stopping_on_signals(), training_loop():  # noqa: PT012 (the second raises)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_later_signals_do_not_interrupt_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    write = results.make_report

    def disturbed(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # the job's time limit
        os.kill(os.getpid(), signal.SIGUSR1)
        write(*given)

    def requeued() -> bool:
        asked.append("SLURM")
        return True

    monkeypatch.setattr(results, "make_report", disturbed)
    monkeypatch.setattr("alexnet_exp.runs.train.command.requeue", requeued)
    stop = stopped_at(tmp_path, 3, signal.SIGUSR1)
    assert (stop.number, stop.saved_step) == (signal.SIGUSR1, 4)
    result = RunDirectory(tmp_path).result()
    assert result is not None and result["error"] == "stopped by SIGUSR1"
    assert (tmp_path / "report.html").exists()
    assert asked == ["SLURM"]


def test_a_signal_after_the_last_step_stops_the_run_before_its_test():
    done = []
    with pytest.raises(Stopped) as caught, stopping_on_signals():  # noqa: PT012 (the loop raises at its end)
        with training_loop():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the epoch ends")
        done.append("test")
    assert caught.value.number == signal.SIGTERM
    assert done == ["the epoch ends"]


def test_a_run_without_checkpoints_also_stops(tmp_path: Path):
    stop = stopped_at(tmp_path, 3, signal.SIGTERM, "callbacks.checkpoint.enabled=false")
    assert stop.saved_step is None


def test_outside_the_training_loop_a_signal_stops_the_run_immediately():
    def wait() -> None:
        with stopping_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Stopped):
        wait()


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopping._state.requested is None


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}, "7_1"),
    ],
)
def test_slurm_requeues_the_job(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], job: str):
    asked: list[list[str]] = []

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stopping.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(stopping.subprocess, "run", answer)
    assert requeue()
    assert asked == [["/bin/scontrol", "requeue", job]]


@pytest.mark.parametrize(("failures", "queued"), [(2, True), (3, False)])
def test_requeueing_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int, queued: bool
):
    answers = iter([subprocess.TimeoutExpired("scontrol", 20), OSError("no memory"), None][-failures:])

    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        failure = next(answers, "taken")
        if isinstance(failure, Exception):
            raise failure
        return subprocess.CompletedProcess(command, failure is None, "", "error: try again\n")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(stopping.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(stopping.subprocess, "run", answer)
    monkeypatch.setattr(stopping, "_PAUSE_SECONDS", 0.0)
    assert requeue() == queued
    assert caplog.text.count("SLURM did not requeue job 7") == failures
    assert "try again" in caplog.text


def test_nothing_is_requeued_without_slurm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not requeue()


def test_every_rank_follows_rank_0_at_the_same_step(monkeypatch: pytest.MonkeyPatch):
    class Store(dict[str, bytes]):
        def check(self, keys: list[str]) -> bool:
            return all(key in self for key in keys)

        def set(self, key: str, value: str) -> None:
            self[key] = value.encode()

        def get(self, key: str) -> bytes:  # type: ignore[override]
            return self[key]

    shared = Store()
    monkeypatch.setattr(torch_internals, "shared_store", lambda: shared)
    first, second = (SimpleNamespace(world_size=2, is_global_zero=zero) for zero in (True, False))
    wanted_at, done = {3, 4, 8, 9}, {"first": [], "second": []}
    for step in range(1, 15):  # within a step, rank 0 comes first
        if agreed("save", step in wanted_at, step, first):
            done["first"].append(step)
        if agreed("save", step == 1, step, second):  # requests of other ranks do not count
            done["second"].append(step)
    assert done == {"first": [5, 10], "second": [5, 10]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the handler in /proc")
def test_a_job_signalled_before_its_run_starts_is_requeued(tmp_path: Path):
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    settings = ["data=digits", "trainer=cpu", "logger=none", f"resume={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "alexnet_exp.cli", "train", *settings]
    job = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not catches(job.pid, signal.SIGUSR1):
        assert job.poll() is None
        time.sleep(0.002)
    assert not (tmp_path / "run").exists()
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 143, said
    assert "SLURM requeues this job." in said
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
