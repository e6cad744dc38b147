"""Many processes at once: one decodes for all, and each run gets its own directory."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alexnet_exp import cli
from alexnet_exp.data.cache import Cache
from alexnet_exp.data.datasets.folder import scan
from tests.data.makers import write_folder
from tests.forked import Forked
from tests.training.small_runs import SMALL

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
PROCESSES = 20


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_folder(
        tmp_path / "pets", {"train/cat": 12, "train/dog": 12, "val/cat": 2, "val/dog": 2}, size=(40, 40)
    )
    return tmp_path / "pets"


@pytest.fixture
def decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file to which each decoding process adds a line."""
    decoded, file = Cache._decoded, tmp_path / "decoders"

    def noting(self: Cache, source: object, *rest: object) -> Generator[Tensor]:
        with open(file, "a") as notes:
            notes.write(f"{os.getpid()}\n")
        return decoded(self, source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "_decoded", noting)
    return file


def use(pets: Path, kept: Path, expected: int) -> int:
    """Open a data set through the cache, as a run does; return 0 if its pixels are correct."""
    sources = Cache("disk", str(kept), 3, 16, num_workers=0).keep(scan(str(pets)))
    total = sum(int(source.images.sum(dtype=torch.int64)) for source in sources.values())  # type: ignore[union-attr]
    return int(total != expected)


def checksum(pets: Path) -> int:
    sources = Cache("ram", None, 3, 16, num_workers=0).keep(scan(str(pets)))
    return sum(int(source.images.sum(dtype=torch.int64)) for source in sources.values())  # type: ignore[union-attr]


def all_succeed(children: Iterable[Forked]) -> bool:
    return all(child.wait() == 0 for child in children)


def test_one_of_twenty_simultaneous_processes_decodes(pets: Path, decoders: Path, tmp_path: Path) -> None:
    expected = checksum(pets)
    decoders.unlink()
    children = [
        Forked(use, pets, tmp_path / "kept", expected, output=tmp_path / f"{i}.txt") for i in range(PROCESSES)
    ]
    assert all_succeed(children), [child.printed() for child in children]
    assert len(decoders.read_text().split()) == 2  # the training images once, the others once
    assert sorted(file.name for file in (tmp_path / "kept").glob("*/*")) == 2 * ["images.npy"] + 2 * [
        "lock"
    ] + 2 * ["manifest.json"]


def test_another_process_decodes_if_the_first_is_killed(
    pets: Path, decoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checksum(pets)
    decoders.unlink()
    noting, dead = Cache._decoded, tmp_path / "dead"

    def dies(self: Cache, source: object, *rest: object) -> Generator[Tensor]:
        batches = noting(self, source, *rest)  # type: ignore[arg-type]
        if not dead.exists():
            dead.touch()
            next(batches)
            os.kill(os.getpid(), signal.SIGKILL)
        yield from batches

    monkeypatch.setattr(Cache, "_decoded", dies)
    children = [
        Forked(use, pets, tmp_path / "kept", expected, output=tmp_path / f"{i}.txt") for i in range(5)
    ]
    assert sorted(child.wait() for child in children) == [-signal.SIGKILL, 0, 0, 0, 0]
    assert not list((tmp_path / "kept").glob("*/*.tmp"))


def test_simultaneous_runs_have_their_own_directories(tmp_path: Path) -> None:
    typed = [
        "train",
        *SMALL,
        "trainer.limit_train_batches=2",
        "test=false",
        f"paths.output_dir={tmp_path / 'out'}",
    ]
    children = [Forked(cli.main, typed, output=tmp_path / f"{i}.txt") for i in range(3)]
    assert all_succeed(children), [child.printed() for child in children]
    runs = list((tmp_path / "out" / "runs").iterdir())
    assert len(runs) == 3 and all((run / "result.json").exists() for run in runs)


def test_only_one_of_several_simultaneous_runs_gets_a_shared_directory(tmp_path: Path) -> None:
    typed = [
        "train",
        *SMALL,
        "trainer.limit_train_batches=2",
        "test=false",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    children = [Forked(cli.main, typed, output=tmp_path / f"{i}.txt") for i in range(3)]
    assert sorted(child.wait() for child in children) == [0, 1, 1]
    refused = [child.printed() for child in children if child.wait() == 1]
    assert all("that is still running." in said or "holds a run already" in said for said in refused), refused
