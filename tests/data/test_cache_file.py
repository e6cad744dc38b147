"""The file of decoded images: complete or absent, whatever happens to the process that builds it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alexnet_exp.data import cache as cache_file
from alexnet_exp.data.cache import CacheFile
from alexnet_exp.data.datasets.folder import scan
from alexnet_exp.data.sources import FileSource
from tests.data.makers import write_folder

IMAGES = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    write_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 3}, size=(9, 8))
    return scan(str(tmp_path / "pets"))["train"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def decoded() -> Generator[Tensor]:
    yield from IMAGES.split(3)


def never() -> Generator[Tensor]:
    raise AssertionError("the images are decoded again")
    yield


def built(place: Path, source: FileSource) -> CacheFile:
    file = CacheFile(place, source, 3, 8)
    file.build(decoded)
    return file


def test_a_built_file_is_opened_without_decoding_again(place: Path, source: FileSource):
    file = CacheFile(place, source, 3, 8)
    assert not file.is_whole()
    file.build(decoded)
    again = CacheFile(place, source, 3, 8)
    assert again.is_whole()
    again.build(never)
    assert torch.equal(again.open(), IMAGES)
    assert json.loads(again.manifest.read_text())["count"] == 7
    assert sorted(os.listdir(again.folder)) == ["images.npy", "lock", "manifest.json"]


# ------------------------------------------------------------------------------------------- which images


def test_the_file_depends_on_everything_that_determines_the_pixels(
    place: Path, source: FileSource, monkeypatch: pytest.MonkeyPatch
):
    def folder(files: FileSource = source, channels: int = 3, size: int = 8) -> Path:
        return CacheFile(place, files, channels, size).folder

    folders = [folder(), folder(channels=1), folder(size=9), folder(source.first(6))]
    folders.append(folder(source.subset(torch.tensor([1, 0, 2, 3, 4, 5, 6]))))
    os.utime(source.paths[2], ns=(0, 5))
    folders.append(folder())
    with open(source.paths[2], "ab") as file:
        file.write(b"\0")
    os.utime(source.paths[2], ns=(0, 5))
    folders.append(folder())
    os.rename(source.paths[6], os.path.dirname(source.paths[6]) + "/9.jpg")
    folders.append(folder(scan(source.root)["train"]))
    monkeypatch.setattr(cache_file, "VERSION", -1)
    folders.append(folder(scan(source.root)["train"]))
    assert len(set(folders)) == len(folders) == 9


def test_a_moved_folder_finds_its_cached_images(tmp_path: Path, place: Path, source: FileSource):
    file = built(place, source)
    (tmp_path / "elsewhere").mkdir()
    os.rename(source.root, tmp_path / "elsewhere" / "pets")
    moved = CacheFile(place, scan(str(tmp_path / "elsewhere" / "pets"))["train"], 3, 8)
    assert moved.folder == file.folder


# ------------------------------------------------------------------------------------------- damage


def cut(file: CacheFile) -> None:
    os.truncate(file.data, 100)


def change_a_pixel(file: CacheFile) -> None:
    data = bytearray(file.data.read_bytes())
    data[-1] ^= 1
    file.data.write_bytes(data)
    os.utime(file.data, ns=(0, 5))  # the write may fall within the file system's time resolution


def change_the_shape(file: CacheFile) -> None:
    manifest = json.loads(file.manifest.read_text())
    file.manifest.write_text(json.dumps({**manifest, "shape": [7, 3, 4, 16]}))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        change_a_pixel,
        change_the_shape,
        lambda file: file.manifest.unlink(),
        lambda file: file.data.unlink(),
        lambda file: file.manifest.write_text(""),
        lambda file: file.manifest.write_text("[1]"),
        lambda file: file.manifest.write_bytes(b"\xff\xfe"),
        lambda file: shutil.rmtree(file.folder),
    ],
)
def test_a_damaged_file_is_rebuilt(place: Path, source: FileSource, damage):
    file = built(place, source)
    damage(file)
    assert not file.is_whole()
    file.build(decoded)
    assert file.is_whole()
    assert torch.equal(file.open(), IMAGES)


def test_a_copy_is_as_good_as_the_original(tmp_path: Path, place: Path, source: FileSource):
    built(place, source)
    shutil.copytree(place, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = CacheFile(tmp_path / "copy", source, 3, 8)
    os.utime(copy.data, ns=(0, 5))
    assert copy.is_whole()
    assert torch.equal(copy.open(), IMAGES)


def test_a_copy_is_checksummed_only_once(place: Path, source: FileSource, monkeypatch: pytest.MonkeyPatch):
    file = built(place, source)
    os.utime(file.data, ns=(0, 5))
    assert file.is_whole()
    monkeypatch.setattr(cache_file, "_crc32", lambda path: pytest.fail("the file is read again"))
    assert file.is_whole()


def test_images_in_use_survive_a_rebuild(place: Path, source: FileSource):
    file = built(place, source)
    images = file.open()
    file.manifest.unlink()
    file.build(lambda: (255 - part for part in decoded()))
    assert torch.equal(images, IMAGES)
    assert torch.equal(file.open(), 255 - IMAGES)


def test_a_failed_build_leaves_nothing(place: Path, source: FileSource):
    def failing() -> Generator[Tensor]:
        yield IMAGES[:3]
        raise FloatingPointError("no more")

    file = CacheFile(place, source, 3, 8)
    with pytest.raises(FloatingPointError):
        file.build(failing)
    assert os.listdir(file.folder) == ["lock"]
    file.build(decoded)
    assert torch.equal(file.open(), IMAGES)


KILLED = """
import sys, time
from tests.data.test_cache_file import CacheFile, IMAGES, Path, scan
def slow():
    yield IMAGES[:3].repeat(1000, 1, 1, 1)
    print("half", flush=True)
    time.sleep(60)
CacheFile(Path(sys.argv[1]), scan(sys.argv[2])["train"], 3, 8).build(slow)
"""


def test_a_killed_build_is_ignored_and_cleaned_up(place: Path, source: FileSource):
    command = [sys.executable, "-c", KILLED, str(place), source.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        live = CacheFile(place, source.first(5), 3, 8)
        live.build(lambda: iter_of(IMAGES[:5]))
        half = CacheFile(place, source, 3, 8)
        part = half.folder / f".images.npy.{process.pid}.tmp"
        assert part.exists(), "another build must not touch one that goes on"
        process.send_signal(signal.SIGKILL)
    assert part.exists()
    assert not half.is_whole()
    CacheFile(place, source.first(4), 3, 8).build(lambda: iter_of(IMAGES[:4]))
    assert not part.exists()
    half.build(decoded)
    assert torch.equal(half.open(), IMAGES)


def iter_of(images: Tensor) -> Generator[Tensor]:
    yield images


def test_of_two_concurrent_builders_one_waits(
    place: Path, source: FileSource, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Generator[Tensor]:
        begun.set()
        assert go_on.wait(20)
        yield from decoded()

    first = threading.Thread(target=CacheFile(place, source, 3, 8).build, args=(slow,))
    second = threading.Thread(target=CacheFile(place, source, 3, 8).build, args=(never,))
    first.start()
    assert begun.wait(20)
    second.start()
    deadline = time.monotonic() + 20
    while "waiting for it" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(20)
    assert torch.equal(CacheFile(place, source, 3, 8).open(), IMAGES)
