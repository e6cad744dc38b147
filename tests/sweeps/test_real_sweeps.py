"""Sweeps of real training runs, killed midway and resumed."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from alexnet_exp.cli import main
from alexnet_exp.sweeps.job import FILE_NAME, is_gone
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells jobs that their sweep was killed"),
]
SETTINGS = ["model=alexnet_cifar", "data=digits", "trainer=cpu", "logger=none"]
ROOT = Path(__file__).parents[2]


def sweep(*typed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", "-m", *SETTINGS, *typed]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_until(true: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(running: subprocess.Popen[str], directory: Path) -> None:
    """Kill only the sweep, and wait for its jobs to end by themselves."""
    jobs = [json.loads(path.read_text()) for path in directory.glob(f"*/{FILE_NAME}")]
    assert jobs
    running.send_signal(signal.SIGKILL)
    running.communicate()
    wait_until(lambda: all(map(is_gone, jobs)))


def finish(*typed: str) -> str:
    """Run a sweep to its end, and return what it printed."""
    running = sweep(*typed)
    printed, _ = running.communicate(timeout=300)
    assert running.returncode == 0, printed
    return printed


def epochs(directory: Path) -> int:
    """Return how many epochs a run has validated."""
    rows = read_metrics(directory / "metrics.csv") if (directory / "metrics.csv").exists() else []
    return sum("val/top1" in row for row in rows)


def test_a_resumed_sweep_trains_nothing_twice(tmp_path: Path):
    directory, typed = tmp_path / "sweep", ["seed=1,2", "trainer.max_epochs=4", "test=false"]
    one_by_one = ["hydra.launcher.max_parallel=1", "hydra.launcher.threads=1"]
    running = sweep(*typed, *one_by_one, f"hydra.sweep.dir={directory}")
    wait_until(lambda: epochs(directory / "1") >= 1)
    before = (directory / "0" / "result.json").read_bytes()
    kill(running, directory)
    log = (directory / "1" / "train.log").read_text()
    (saved,) = re.findall(r"stopped by SIGTERM after step (\d+), which is saved", log)
    assert RunDirectory(directory / "1").result()["steps"] == int(saved)  # type: ignore[index]

    printed = finish(*typed, *one_by_one, f"sweep.resume={directory}")
    assert "2 jobs, 1 already finished" in printed
    assert (directory / "0" / "result.json").read_bytes() == before
    assert main(["train", *SETTINGS, *typed[1:], "seed=2", f"hydra.run.dir={tmp_path / 'alone'}"]) == 0
    one, other = (
        torch.load(RunDirectory(run).last_checkpoint, weights_only=True)["state_dict"]
        for run in (directory / "1", tmp_path / "alone")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_search_resumes_prunes_and_prints_a_command_that_reproduces_the_best_trial(tmp_path: Path):
    directory = tmp_path / "sweep"
    typed = [
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.launcher.max_parallel=2",
        "hydra.launcher.threads=1", "hydra.sweeper.sampler=random", "trainer.max_epochs=5",
        "hydra.sweeper.metric=val/loss",  # has no ties
        "hydra.sweeper.pruner_arguments={n_startup_trials: 2}", "optimizer.lr=tag(log,interval(1e-5,0.1))",
    ]  # fmt: skip

    def states() -> Counter[str]:
        storage = JournalStorage(JournalFileBackend(str(directory / "study.log")))
        return Counter(
            trial.state.name for trial in optuna.load_study(study_name=None, storage=storage).trials
        )

    running = sweep(*typed, f"hydra.sweep.dir={directory}")
    wait_until(lambda: (directory / "2" / "metrics.csv").exists())
    kill(running, directory)
    assert states()["RUNNING"]
    printed = finish(*typed, f"sweep.resume={directory}")
    assert set(states()) == {"COMPLETE", "PRUNED"}
    assert states().total() == 6
    for row in map(read_metrics, directory.glob("*/metrics.csv")):
        validated = [r["epoch"] for r in row if "val/top1" in r]
        assert validated == list(range(1, len(validated) + 1))  # no epoch twice

    (command,) = re.findall(r"^command: +alexnet-exp train (.+)$", printed, re.MULTILINE)
    (best,) = re.findall(r"^best trial: +(\d+),", printed, re.MULTILINE)
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "train.py", *shlex.split(command), f"hydra.run.dir={again}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (RunDirectory(run).result() for run in (directory / best, again))
    assert first is not None and second is not None and first["metrics"] == second["metrics"]
