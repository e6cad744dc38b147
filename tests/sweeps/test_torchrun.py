"""torchrun or SLURM starts the ranks of a run; torchrun restarts them when one dies."""

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
import torch

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.training.launch.external import (
    check_process_count,
    check_processes,
    is_first_rank,
    started_externally,
)
from tests.training.small_runs import run

TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "WORLD_SIZE": "2", "RANK": "0"}
STEP = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2"}
ALONE = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}  # a script without srun
TWO_MACHINES = {**TORCHRUN, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
# Inside an allocation of two tasks.
SHELL = {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "interactive"}
_RESTARTS = {"TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"}
_PLACES = {"LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "SLURM_STEP_NUM_NODES", "LOCAL_WORLD_SIZE"}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in {*TORCHRUN, *SHELL, *_RESTARTS, *_PLACES}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def trainer(devices: Any, nodes: int = 1) -> Any:
    return SimpleNamespace(accelerator="cpu", devices=devices, num_nodes=nodes)


@pytest.mark.parametrize(
    ("environment", "wanted", "message"),
    [
        (
            ALONE, trainer(2),
            "trainer.devices=2 with trainer.num_nodes=1 needs 2 processes, but SLURM has started 1: request --nodes=1 "
            r"--ntasks-per-node=2 and start the command with srun \(in a notebook or a terminal: set "
            r"SLURM_JOB_NAME=interactive\), or set trainer.devices=1.",
        ),
        ({"SLURM_NTASKS": "2"}, trainer(2), "SLURM has started 1"),  # the shell of salloc --job-name=mine
        (STEP, trainer(1), "needs 1 process, but SLURM has started 2"),
        (STEP, trainer("auto"), "trainer.devices=auto with trainer.num_nodes=1 needs 1 process"),
        (STEP, trainer(1, 3), "--nodes=3 --ntasks-per-node=1 and .* trainer.num_nodes=1 trainer.devices=2"),
        (TORCHRUN, trainer(2, 2), "torchrun has started 2: use --nnodes=2 --nproc-per-node=2"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "1"}, trainer(2), r"launcher \(WORLD_SIZE\) has started 1"),
        (
            TWO_MACHINES, trainer(8),
            "needs 8 processes, but torchrun has started 16 on 2 nodes: use --nnodes=1 "
            "--nproc-per-node=8, or set trainer.num_nodes=2 trainer.devices=8.",
        ),
        (TWO_MACHINES, trainer(4, 4), "needs 16 processes, but torchrun has started 16 on 2 nodes"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2"}, trainer(2), "set trainer.num_nodes=2 trainer.devices=1"),
        ({}, trainer(1, 2), "num_nodes=2 would wait for the other nodes forever"),
    ],
)  # fmt: skip
def test_a_launcher_must_start_one_process_per_device(
    processes: pytest.MonkeyPatch, environment: dict[str, str], wanted: Any, message: str
):
    for name, value in environment.items():
        processes.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_process_count(wanted)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (STEP, trainer(2)),
        (STEP, trainer(1, 2)),
        (ALONE, trainer("auto")),
        (TORCHRUN, trainer(2)),
        (TWO_MACHINES, trainer(8, 2)),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2"}, trainer(1, 2)),
        ({}, trainer(2)),
    ],
)
def test_as_many_processes_as_devices_are_accepted(
    processes: pytest.MonkeyPatch, environment: dict[str, str], wanted: Any
):
    for name, value in environment.items():
        processes.setenv(name, value)
    check_process_count(wanted)


def test_a_run_that_does_not_match_its_launcher_leaves_no_directory(
    processes: pytest.MonkeyPatch, tmp_path: Path
):
    processes.setenv("SLURM_PROCID", "0")
    with pytest.raises(UserError, match="SLURM has started 1"):
        run(tmp_path / "run", "trainer=ddp_cpu")
    assert not (tmp_path / "run").exists()


def test_a_shell_in_an_allocation_starts_its_ranks_like_any_other(processes: pytest.MonkeyPatch):
    for name, value in SHELL.items():
        processes.setenv(name, value)
    check_processes(["-m", "seed=1,2"])
    check_process_count(trainer(2))
    assert not started_externally()


def test_tasks_of_a_job_named_interactive_are_refused(processes: pytest.MonkeyPatch):
    for name, value in {**STEP, "SLURM_JOB_NAME": "interactive"}.items():
        processes.setenv(name, value)
    with pytest.raises(
        UserError, match=r"2 processes in a SLURM job named interactive.* SLURM_JOB_NAME=train srun"
    ):
        check_processes(["resume=here"])


@pytest.mark.parametrize("environment", [TORCHRUN, STEP])
def test_processes_that_share_a_run_need_its_directory(
    processes: pytest.MonkeyPatch, environment: dict[str, str]
):
    for name, value in environment.items():
        processes.setenv(name, value)
    with pytest.raises(UserError, match="set resume=DIR"):
        check_processes(["seed=1"])
    with pytest.raises(UserError, match="leave -m out"):
        check_processes(["-m", "seed=1,2", "resume=here"])
    check_processes(["seed=1", "resume=here"])
    check_processes(["seed=1", "hydra.run.dir=here"])


def test_restarts_need_their_own_store(processes: pytest.MonkeyPatch):
    for name, value in {**TORCHRUN, "TORCHELASTIC_MAX_RESTARTS": "3"}.items():
        processes.setenv(name, value)
    check_processes(["resume=here"])
    processes.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_processes(["resume=here"])


def test_tasks_that_lightning_would_reject_are_a_one_line_error(processes: pytest.MonkeyPatch):
    for name, value in STEP.items():
        processes.setenv(name, value)
    processes.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks=2: use --ntasks-per-node"):
        check_processes(["resume=here"])


def test_the_first_rank_is_torchruns_even_if_slurm_orders_the_machines_differently(
    processes: pytest.MonkeyPatch,
):
    for name, value in {**TORCHRUN, "LOCAL_RANK": "0", "SLURM_PROCID": "1"}.items():
        processes.setenv(name, value)
    assert is_first_rank()
    processes.setenv("RANK", "1")
    processes.setenv("SLURM_PROCID", "0")
    assert not is_first_rank()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_without_a_rank_is_refused(processes: pytest.MonkeyPatch, name: str):
    processes.setenv(name, "1")
    check_processes([])
    processes.setenv(name, "2")
    with pytest.raises(UserError, match=f"{name}=2 is set, but no rank"):
        check_processes(["resume=here"])
    processes.setenv("NODE_RANK", "1")
    check_processes(["resume=here"])


def test_torchrun_needs_no_srun(processes: pytest.MonkeyPatch):
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", **TORCHRUN}.items():
        processes.setenv(name, value)
    check_processes(["resume=here"])


def test_a_job_of_several_tasks_must_be_started_with_srun(processes: pytest.MonkeyPatch):
    processes.setenv("SLURM_PROCID", "0")
    processes.setenv("SLURM_NTASKS", "2")
    with pytest.raises(
        UserError, match="has 2 tasks, but only one process is running: start the command with srun"
    ):
        check_processes(["resume=here"])
    check_processes(["-m", "seed=1,2"])  # its jobs are not SLURM tasks
    processes.delenv("SLURM_PROCID")  # the shell of salloc --job-name=mine
    with pytest.raises(UserError, match="has 2 tasks"):
        check_processes(["resume=here"])


def test_an_unrelated_process_is_left_alone(processes: pytest.MonkeyPatch):
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
    assert printed.count("run directory: ") >= 3  # printed at both starts and at the end

    assert main(["train", *settings, f"hydra.run.dir={alone}"]) == 0
    one, other = (
        torch.load(RunDirectory(run).last_checkpoint, weights_only=True)["state_dict"]
        for run in (restarted, alone)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
