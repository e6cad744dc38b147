"""hydra/launcher=slurm on a real one-node SLURM that these tests start."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from alexnet_exp.cli import main
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb.logger import find_run_id
from tests.processes import catches
from tests.sweeps.slurm_node import one_node, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
SETTINGS = [
    "trainer=cpu", "data=digits", "model=alexnet_cifar", "trainer.max_epochs=4", "logger.wandb.mode=offline",
]  # fmt: skip
LAUNCHER = [
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.time=10", "hydra.launcher.partition=main",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with one_node(tmp_path_factory.mktemp("slurm")) as environment:
        yield {
            **environment,
            "OMP_NUM_THREADS": "1",
            "ALEXNET_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        }


def sweep(cluster: dict[str, str], *typed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alexnet_exp.cli", "train", "-m", *LAUNCHER, *typed]
    return subprocess.Popen(command, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def scontrol(cluster: dict[str, str], *words: str) -> None:
    subprocess.run(["scontrol", *words], env=cluster, check=True, timeout=30)


def array_of(directory: Path) -> str:
    return json.loads((directory / "sweep.json").read_text())["arrays"][-1]


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def start_requeued(cluster: dict[str, str], job: str) -> None:
    """Start a requeued job now; SLURM would hold it for two minutes."""

    def is_held() -> bool:
        command = ["squeue", "-h", "-r", "-j", job, "-o", "%T"]
        return (
            "PENDING"
            in subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout
        )

    wait_until(is_held)
    time.sleep(2)  # a start in the same second as the requeue fails with "Job credential revoked"
    scontrol(cluster, "update", f"JobId={job}", "StartTime=now")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(RunDirectory(directory).last_checkpoint, weights_only=True)["state_dict"]


def has_trained(directory: Path, epochs: int) -> bool:
    rows = directory / "metrics.csv"
    return rows.exists() and f"\n{epochs}," in rows.read_text()


def test_a_requeued_job_ends_with_the_weights_of_an_uninterrupted_one(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory, alone = tmp_path / "sweep", tmp_path / "alone"
    watching = sweep(cluster, *SETTINGS, "seed=1,2", f"hydra.sweep.dir={directory}")
    wait_until(lambda: has_trained(directory / "0", 1))
    job = f"{array_of(directory)}_0"
    scontrol(cluster, "requeue", job)
    start_requeued(cluster, job)
    printed, _ = watching.communicate(timeout=240)
    assert watching.returncode == 0, printed
    assert "job 0 finished" in printed
    said = (directory / "0" / "output.log").read_text()
    assert "stopped by SIGTERM after step" in said and "Traceback" not in said
    assert {"summary.csv", "compare.html"} <= {file.name for file in directory.iterdir()}

    assert main(["train", *SETTINGS, "seed=1", f"hydra.run.dir={alone}"]) == 0
    disturbed, undisturbed = weights(directory / "0"), weights(alone)
    assert disturbed.keys() == undisturbed.keys()
    assert all(torch.equal(disturbed[name], undisturbed[name]) for name in disturbed)
    wandb_files = {file.name for file in (directory / "0" / "wandb").glob("*/run-*.wandb")}
    assert len(list((directory / "0" / "wandb").glob("*run-*-*"))) == 2  # two parts ...
    assert wandb_files == {f"run-{find_run_id(directory / '0')}.wandb"}  # ... of one run


def test_two_ranks_save_at_the_signal_before_the_time_limit_and_are_requeued(
    cluster: dict[str, str], tmp_path: Path
):
    directory = tmp_path / "sweep"
    settings = [
        *SETTINGS,
        "trainer=ddp_cpu",
        f"hydra.sweep.dir={directory}",
        "hydra.launcher.wait=false",
    ]
    submitting = sweep(cluster, *settings)
    printed, _ = submitting.communicate(timeout=60)
    assert submitting.returncode == 0, printed
    wait_until(lambda: has_trained(directory / "0", 1))
    job = f"{array_of(directory)}_0"
    # As SLURM itself does.
    subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True, timeout=30)
    start_requeued(cluster, job)
    again = sweep(
        cluster,
        *[s for s in settings if "wait" not in s and "sweep.dir" not in s],
        f"sweep.resume={directory}",
    )
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    assert "SLURM job array" not in printed  # it was still queued: nothing is submitted twice
    said = (directory / "0" / "output.log").read_text()
    assert "stopped by SIGUSR1 after step" in said and "SLURM requeues this job." in said
    result = RunDirectory(directory / "0").result()
    assert result is not None and (result["status"], result["epochs"]) == ("finished", 4)


def test_a_job_that_is_signalled_while_it_starts_is_requeued(cluster: dict[str, str], tmp_path: Path):
    directory = tmp_path / "sweep"
    settings = [*SETTINGS, "trainer.max_epochs=1", f"hydra.sweep.dir={directory}"]
    watching = sweep(cluster, *settings)

    def said() -> str:
        return (directory / "0" / "output.log").read_text()

    signs = [
        # Settings are composed; torch is imported.
        lambda: any(catches(pid, signal.SIGUSR1) for pid in _processes_of(directory / "0")),
        lambda: said().count("run directory: ") == 2,
    ]
    for sign in signs:
        wait_until(sign)
        job = f"{array_of(directory)}_0"
        subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True, timeout=30)
        start_requeued(cluster, job)
    printed, _ = watching.communicate(timeout=240)
    assert watching.returncode == 0, printed
    assert said().count("SLURM requeues this job.") == 2 and "Traceback" not in said()
    result = RunDirectory(directory / "0").result()
    assert result is not None and (result["status"], result["epochs"]) == ("finished", 1)


def test_a_terminal_starts_its_own_ranks_and_other_task_counts_must_match(
    cluster: dict[str, str], tmp_path: Path
):
    small = [*SETTINGS, "trainer=ddp_cpu", "trainer.max_epochs=1", "data.train_subset=200"]

    def train(folder: str, *command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "alexnet_exp.cli", "train", *small, f"resume={tmp_path / folder}"]
        return subprocess.run(
            [*command, *words], env=cluster, capture_output=True, text=True, timeout=120, check=False
        )

    def devices(folder: str) -> int:
        return (RunDirectory(tmp_path / folder).result() or {})["devices"]

    refused = train("refused", "srun", "--ntasks-per-node=1", "--job-name=train")
    assert refused.returncode == 1 and "SLURM has started 1" in refused.stderr
    assert not (tmp_path / "refused").exists()
    assert train("terminal", "srun", "--ntasks-per-node=1", "--job-name=bash").returncode == 0
    assert devices("terminal") == 2

    allocated = ("salloc", "--ntasks-per-node=2", "--job-name=interactive")
    refused = train("step", *allocated, "srun")
    assert refused.returncode == 1
    assert "2 processes in a SLURM job named interactive" in refused.stderr
    named = train("step", *allocated, "env", "SLURM_JOB_NAME=train", "srun")
    assert named.returncode == 0, named.stderr
    assert devices("step") == 2


def _processes_of(run: Path) -> list[int]:
    """Return the processes that train in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if f"resume={run}" in words and "alexnet_exp.cli" in words and "srun" not in words[0]:
                found.append(int(process.name))
    return found
