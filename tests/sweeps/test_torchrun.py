"""torchrun starts the ranks of a run, and starts them again when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.devices import check_processes

TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "WORLD_SIZE": "2", "RANK": "0"}
STEP = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in {*TORCHRUN, *STEP, "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("environment", [TORCHRUN, STEP])
def test_processes_that_share_a_run_must_be_told_its_directory(
    processes: pytest.MonkeyPatch, environment: dict[str, str]
):
    for name, value in environment.items():
        processes.setenv(name, value)
    with pytest.raises(UserError, match="say resume=DIR"):
        check_processes(["seed=1"])
    with pytest.raises(UserError, match="leave -m out"):
        check_processes(["-m", "seed=1,2", "resume=here"])
    check_processes(["seed=1", "resume=here"])
    check_processes(["seed=1", "hydra.run.dir=here"])


def test_restarts_need_a_store_of_their_own(processes: pytest.MonkeyPatch):
    for name, value in {**TORCHRUN, "TORCHELASTIC_MAX_RESTARTS": "3"}.items():
        processes.setenv(name, value)
    check_processes(["resume=here"])
    processes.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_processes(["resume=here"])


def test_a_job_of_several_tasks_must_be_started_with_srun(processes: pytest.MonkeyPatch):
    processes.setenv("SLURM_PROCID", "0")
    processes.setenv("SLURM_NTASKS", "2")
    with pytest.raises(
        UserError, match="has 2 tasks, and this is a single process: start the command with srun"
    ):
        check_processes(["resume=here"])


def test_a_process_of_its_own_may_do_as_it_likes(processes: pytest.MonkeyPatch):
    check_processes(["-m", "seed=1,2"])
    processes.setenv("SLURM_PROCID", "0")
    processes.setenv("SLURM_NTASKS", "1")
    check_processes(["-m", "seed=1,2"])


@pytest.mark.slow
def test_a_run_of_two_ranks_survives_the_death_of_one(tmp_path: Path):
    settings = [
        "trainer=ddp_cpu",
        "data=digits",
        "data.train_subset=512",
        "trainer.max_epochs=4",
        "logger=none",
    ]
    restarted, alone = tmp_path / "restarted", tmp_path / "alone"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=1",
    ]
    command = [*torchrun, "-m", "alexnet_exp.cli", "train", *settings, f"resume={restarted}"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not RunDirectory(restarted).last_checkpoint.exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ranks = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    printed, _ = running.communicate(timeout=180)
    assert running.returncode == 0, printed
    assert printed.count("run directory: ") >= 3  # begun twice, ended once

    assert main(["train", *settings, f"hydra.run.dir={alone}"]) == 0
    one, other = (
        torch.load(RunDirectory(run).last_checkpoint, weights_only=True)["state_dict"]
        for run in (restarted, alone)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
