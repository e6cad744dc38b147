"""A long run leaks no memory, no open files and no processes."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp import cli
from tests.data.makers import write_folder
from tests.forked import Forked
from tests.training.small_runs import NARROW, run

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
EPOCHS = 200


class Probe(Callback):
    """Record memory and open files of this process after every epoch."""

    memory: ClassVar[list[int]] = []  # bytes
    files: ClassVar[list[int]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
def test_memory_and_open_files_are_flat_over_200_epochs(tmp_path: Path) -> None:
    Probe.memory.clear()
    Probe.files.clear()
    run(tmp_path, "data.train_subset=null", "data.val_size=180", f"trainer.max_epochs={EPOCHS}", "test=false",
        callbacks={"probe": {"_target_": f"{__name__}.Probe"}})  # fmt: skip
    assert len(Probe.memory) == EPOCHS
    before, after = (statistics.median(Probe.memory[end - 10 : end]) for end in (EPOCHS - 50, EPOCHS))
    growth = after / before - 1
    print(
        f"\n{before / 2**20:.1f} MiB after epoch {EPOCHS - 50}, {after / 2**20:.1f} MiB after epoch {EPOCHS} "
        f"({growth:+.2%}); open files {Probe.files[1]}, then {Probe.files[-1]}"
    )
    assert growth < 0.01
    assert max(Probe.files[1:]) == min(Probe.files[1:])


# ------------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    write_folder(root, {"train/cat": 12, "train/dog": 12, "val/cat": 2, "val/dog": 2}, size=(40, 40))
    return root


def started(pets: Path, tmp_path: Path, *overrides: str) -> Forked:
    """Start a training whose images are decoded by two worker processes."""
    typed = ["model=alexnet_cifar", *NARROW, "data=folder", f"data.root={pets}", "data.cache=off", "trainer=cpu",
             "data.num_workers=2", "data.batch_size=4", "trainer.log_every_n_steps=1", "trainer.max_epochs=500",
             "logger=csv", "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false",
             f"hydra.run.dir={tmp_path / 'run'}", *overrides]  # fmt: skip
    return Forked(cli.main, ["train", *typed], output=tmp_path / "output.txt")


def trains(tmp_path: Path) -> Callable[[], bool]:
    metrics = tmp_path / "run" / "metrics.csv"
    return lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3


def test_workers_exit_when_a_run_finishes(pets: Path, tmp_path: Path) -> None:
    child = started(pets, tmp_path, "trainer.max_epochs=1")
    assert child.wait() == 0, child.printed()
    assert child.survivors(1) == []


def test_workers_exit_when_a_run_fails(pets: Path, tmp_path: Path) -> None:
    child = started(pets, tmp_path, "optimizer.lr=1e5", "scheduler=none")
    assert child.wait() == 1, child.printed()
    assert child.printed().splitlines()[-1].startswith("error: The loss is not finite at step")
    assert child.survivors(1) == []


# Workers are not notified when the main process is killed: they check every five seconds.
SIGNALS = [
    (signal.SIGTERM, 143, 1),
    (signal.SIGUSR1, 143, 1),
    (signal.SIGINT, 130, 1),
    (signal.SIGKILL, -9, 15),
]


@pytest.mark.parametrize(("number", "code", "seconds"), SIGNALS, ids=[s[0].name for s in SIGNALS])
def test_workers_exit_when_a_run_is_stopped(
    pets: Path, tmp_path: Path, number: int, code: int, seconds: float
) -> None:
    child = started(pets, tmp_path)
    child.wait_until(trains(tmp_path))
    child.send(number)
    assert child.wait() == code, child.printed()
    assert child.survivors(seconds) == []


def test_workers_exit_when_ctrl_c_is_pressed_twice(pets: Path, tmp_path: Path) -> None:
    child = started(pets, tmp_path)
    child.wait_until(trains(tmp_path))
    child.send(signal.SIGINT)
    child.send(signal.SIGINT)
    assert child.wait() == 130, child.printed()
    assert child.survivors(1) == []
