"""Two processes on CPU against one: the same weights, the same counts, one set of files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import nn

from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.fit import assemble, fit_to_data, prepare_data
from alexnet_exp.tracking.run_directory import RunDirectory
from tests.runs.test_secrets import URL, leaks
from tests.tracking.read_wandb import read_wandb
from tests.training.small_runs import SMALL, checkpoint, resume, rows, run, settings

ROOT = Path(__file__).parents[2]
# 193 = 6 * 32 + 1 images: in the last batch one of two ranks has none. 51 and 61 leave ranks unequal shares.
UNEVEN = [
    "data.train_subset=193",
    "data.val_size=51",
    "data.test_subset=61",
    "augment=flip_crop",
    "init=published",  # lsuv diverges at this rate
    "optimizer.lr=0.5",
    "scheduler=none",
    "trainer.log_every_n_steps=3",
]


class FailOnRank(Callback):
    """Raise on one rank, in the middle of the first epoch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and batch_idx == 2:
            raise RuntimeError("the third batch is bad luck")


class FailOnStart(Callback):
    """Fail on the second rank before it has joined."""

    def __init__(self) -> None:
        if os.environ["LOCAL_RANK"] == "1":
            raise RuntimeError("the second rank has no luck")


class NoteRate(Callback):
    """Write the learning rate that this rank trained with to a file."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        Path(trainer.default_root_dir, f"rate-{trainer.global_rank}").write_text(str(rate))


def children() -> set[int]:
    """Return the ids of this process's children."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = path.read_text().split(" ", 1)
        except OSError:
            continue  # it has exited
        if rest.rpartition(")")[2].split()[1] == str(os.getpid()):
            found.add(int(pid))
    return found


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint(run_dir)["state_dict"]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(autouse=True)
def tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other rank, a new process, import the callbacks of this file."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_two_ranks_learn_count_and_write_as_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "one", *UNEVEN)
    capfd.readouterr()
    environment, before = dict(os.environ), children()
    client = {"_target_": "tests.runs.test_secrets.Client", "url": URL}  # fails on a rank with another url
    two = run(tmp_path / "two", *UNEVEN, "trainer=ddp_cpu", callbacks={"client": client})
    printed = capfd.readouterr()

    assert (one["devices"], two["devices"]) == (1, 2)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert difference(a, b) < 1e-5
    run(tmp_path / "still", *UNEVEN, "optimizer.lr=1e-9", "test=false")
    assert difference(a, weights(tmp_path / "still")) > 1e-2
    exact = {
        "epoch",
        "step",
        "lr",
        "train/top1",
        "val/top1",
        "test/top1",
        "train/top5",
        "val/top5",
        "test/top5",
    }
    assert len(rows(tmp_path / "two")) == len(rows(tmp_path / "one"))
    for ours, theirs in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert {k: v for k, v in ours.items() if k in exact} == {
            k: v for k, v in theirs.items() if k in exact
        }

    files = [
        {path.relative_to(run_dir) for path in run_dir.rglob("*")}
        for run_dir in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]
    assert leaks(tmp_path) == []
    shown = tmp_path / "two"
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [
        "train",
        "val",
        "test",
    ]  # the summary of the splits, once
    assert re.fullmatch(r"accuracy: +[\d.]+ % of \d+ test images \(95 % interval .+", lines[4])
    assert [lines[0], *lines[5:]] == [
        f"run directory: {shown}", f"report:        {shown / 'report.html'}", f"run directory: {shown}"
    ]  # fmt: skip
    assert printed.err == ""
    assert children() == before
    changed = {k for k in environment | os.environ if environment.get(k) != os.environ.get(k)}
    assert changed <= {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"}  # Lightning's record of the latest seed
    assert not torch.distributed.is_initialized()


def test_two_ranks_thaw_frozen_layers_as_one_and_resume_there(tmp_path: Path) -> None:
    settings = [*UNEVEN, "optimizer.lr=0.1", "test=false", "freeze=[features]", "freeze_epochs=1"]
    run(tmp_path / "one", *settings, "trainer.max_epochs=2")
    run(tmp_path / "two", *settings, "trainer.max_epochs=2", "trainer=ddp_cpu")
    # Gradients of thawed layers that the ranks did not average would make each train on its own images only.
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    run(tmp_path / "parts", *settings, "trainer.max_epochs=1", "trainer=ddp_cpu")
    parts = weights(tmp_path / "parts")
    assert difference(weights(tmp_path / "two"), parts) > 1e-3
    resume(tmp_path / "parts", "trainer.max_epochs=2")
    assert difference(weights(tmp_path / "two"), weights(tmp_path / "parts")) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_on_one_rank_stops_both(tmp_path: Path, rank: int) -> None:
    before, started = children(), time.monotonic()
    failing = {"luck": {"_target_": "tests.runs.test_ddp.FailOnRank", "rank": rank}}
    with pytest.raises((RuntimeError, UserError), match="the third batch is bad luck"):
        run(tmp_path, "trainer=ddp_cpu", callbacks=failing)
    assert time.monotonic() - started < 60
    result = RunDirectory(tmp_path).result()
    assert result is not None and result["status"] == "failed"
    assert "the third batch is bad luck" in result["error"]
    assert "Traceback" in (tmp_path / "train.log").read_text()
    assert children() == before


def test_an_unreadable_checkpoint_stops_both_ranks(tmp_path: Path) -> None:
    before = children()
    (tmp_path / "torn.ckpt").write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"torn\.ckpt cannot be read"):
        run(tmp_path / "run", "trainer=ddp_cpu", f"ckpt={tmp_path / 'torn.ckpt'}")
    result = RunDirectory(tmp_path / "run").result()
    assert result is not None and result["status"] == "failed"
    assert children() == before


def test_sigterm_stops_both_ranks_at_the_same_saved_step(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *SMALL, "trainer=ddp_cpu", "trainer.max_epochs=100000",
               f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 143
    result = RunDirectory(tmp_path / "run").result()
    assert result is not None and result["status"] == "interrupted"
    assert torch.load(last, weights_only=True)["global_step"] == result["steps"]


def test_a_rank_that_fails_before_it_joins_stops_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *SMALL, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path / 'run'}",
               "+callbacks.luck._target_=tests.runs.test_ddp.FailOnStart"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "the second rank has no luck" in done.stderr
    result = RunDirectory(tmp_path / "run").result()
    assert result is not None and result["status"] == "failed"
    assert "the second rank has no luck" in result["error"]


def test_both_ranks_of_a_sweep_job_use_its_settings(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "-m", *SMALL, "trainer=ddp_cpu", "test=false", "scheduler=none",
               "optimizer.lr=0.1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (job,) = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    # Ranks with different learning rates would end up with the weights of neither.
    run(tmp_path / "alone", "test=false", "scheduler=none", "optimizer.lr=0.1")
    assert difference(weights(tmp_path / "alone"), weights(job)) < 1e-4
    run(tmp_path / "other", "test=false", "scheduler=none")
    assert difference(weights(tmp_path / "other"), weights(job)) > 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["hydra/sweeper=optuna", "hydra.sweeper.sampler=grid"]])
def test_each_sweep_job_has_its_settings_on_all_ranks_and_one_wandb_run(
    tmp_path: Path, how: list[str]
) -> None:
    command = [sys.executable, "train.py", "-m", *SMALL, "trainer=ddp_cpu", "test=false", "scheduler=none",
               "logger=wandb", "logger.wandb.mode=offline", "optimizer.lr=0.01,0.03,0.1", *how,
               "+callbacks.note._target_=tests.runs.test_ddp.NoteRate", f"hydra.sweep.dir={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    jobs = sorted(path.parent for path in tmp_path.glob("*/config.yaml"))
    assert [job.name for job in jobs] == ["0", "1", "2"]
    rates = [yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["lr"] for job in jobs]
    assert sorted(rates) == [0.01, 0.03, 0.1]
    for job, rate in zip(jobs, rates, strict=True):
        assert [float((job / f"rate-{rank}").read_text()) for rank in (0, 1)] == [rate, rate]
        (folder,) = (job / "wandb").glob("offline-run-*")
        assert read_wandb(folder).config["optimizer"]["lr"] == rate


@pytest.mark.parametrize(
    "network",
    [
        [
            "model.features.conv1.then=[batch_norm,relu,max_pool]",
            "model.features.conv3.then=[relu,batch_norm]",
        ],
        ["model=resnet18_cifar"],
    ],
)
def test_synchronised_batch_norm_replaces_every_batch_norm(tmp_path: Path, network: list[str]) -> None:
    base = [s for s in SMALL if not s.startswith("model.") or network[0] != "model=resnet18_cifar"]
    config, typed = settings(*network, "trainer=ddp_cpu", "trainer.sync_batchnorm=true", base=base)
    data = prepare_data(config)
    fit_to_data(config, data, typed)
    fit = assemble(config, data, tmp_path, [], Console(quiet=True))
    before = {name for name, module in fit.classifier.named_modules() if isinstance(module, nn.BatchNorm2d)}
    names = list(fit.classifier.state_dict())
    converted = fit.trainer.strategy._layer_sync.apply(fit.classifier)
    after = {name for name, module in converted.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    assert after == before != set()
    assert list(converted.state_dict()) == names  # checkpoints fit both


def test_synchronised_batch_norm_needs_gpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm=true needs GPUs"):
        run(tmp_path / "run", "trainer=ddp_cpu", "trainer.sync_batchnorm=true")
    assert not (tmp_path / "run").exists()
