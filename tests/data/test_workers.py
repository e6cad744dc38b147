"""A signal to all processes of a run: workers leave handling it to the main process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_exp.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes two processes about ten seconds to decode: one file under many names."""
    root = tmp_path_factory.mktemp("photos")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)).save(
        root / "a.jpg"
    )
    for split, count in (("train", 400), ("val", 3)):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                os.link(root / "a.jpg", root / split / name / f"{number}.jpg")
    (root / "a.jpg").unlink()
    return root


def signalled(log: Path, begun: Callable[[], object], number: int, *command: str) -> tuple[int, str, float]:
    """Start a command in its own process group, signal the group once it has begun, and return exit code, output
    and the seconds that it took to exit."""
    with log.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "alexnet_exp.cli", *command],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not begun() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # let the workers start decoding
    os.killpg(running.pid, number)
    sent = time.monotonic()
    code = running.wait(60)
    return code, log.read_text(), time.monotonic() - sent


def decoding(folder: Path) -> Callable[[], object]:
    return lambda: list((folder / "cache").rglob("*.tmp"))


def train(photos: Path, folder: Path) -> list[str]:
    return [
        "train", "data=folder", f"data.root={photos}", "model=alexnet_cifar", "model.input_size=32", "trainer=cpu",
        "data.num_workers=2", "data.batch_size=12", "logger=csv", "augment=none",
        "callbacks.model_summary.enabled=false",
        f"hydra.run.dir={folder / 'run'}", f"paths.cache_dir={folder / 'cache'}",
    ]  # fmt: skip


SIGNALS = [pytest.param("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "expected"), SIGNALS)
def test_a_signal_to_all_while_decoding_a_folder_stops_the_run_with_one_line(
    photos: Path, tmp_path: Path, name: str, expected: int
) -> None:
    number = getattr(signal, name)
    code, said, seconds = signalled(tmp_path / "log", decoding(tmp_path), number, *train(photos, tmp_path))
    assert code == expected, said
    assert said.count(name) == 1 and "Traceback" not in said and "error" not in said
    result = RunDirectory(tmp_path / "run").result()
    assert result is not None and (result["status"], result["error"]) == ("interrupted", f"stopped by {name}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]
    assert seconds < 30


def test_a_signal_to_all_within_an_epoch_is_reported_once_and_the_step_is_saved(
    photos: Path, tmp_path: Path
) -> None:
    more = [
        "data.cache=off",
        "data.num_workers=4",
        "trainer.max_epochs=1000",
        "trainer.limit_train_batches=4",
    ]
    log = tmp_path / "log"
    code, said, _ = signalled(
        log, lambda: "epoch   1" in log.read_text(), signal.SIGINT, *train(photos, tmp_path), *more
    )
    assert code == 130, said
    assert said.count("finishing this step") == said.count("stopped by SIGINT") == 1
    assert "which is saved" in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "expected"), SIGNALS)
def test_a_signal_to_all_while_prepare_decodes_stops_it_with_one_line(
    photos: Path, tmp_path: Path, name: str, expected: int
) -> None:
    command = [
        "prepare",
        "cache=true",
        f"data.root={photos}",
        f"paths.cache_dir={tmp_path / 'cache'}",
        "num_workers=2",
    ]
    code, said, _ = signalled(tmp_path / "log", decoding(tmp_path), getattr(signal, name), *command)
    assert code == expected, said
    assert said in ("interrupted\n", "stopped by SIGTERM\n")
    assert not list((tmp_path / "cache").rglob("*.tmp"))
