from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_exp.data.datasets import cifar10
from alexnet_exp.errors import UserError
from tests.data.makers import CIFAR10_CLASSES, fail_to_read, pack_cifar10, write_cifar10


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_come_in_file_order(tmp_path: Path, split: str):
    images, labels = write_cifar10(tmp_path)[split]
    source = cifar10.load(str(tmp_path), split, download=False)
    assert np.array_equal(source.images.numpy(), images)
    assert source.images.dtype == torch.uint8
    assert source.labels.tolist() == labels.tolist()
    assert source.labels.dtype == torch.int64
    assert source.classes == tuple(CIFAR10_CLASSES)
    assert source.name == f"cifar10 {split}"


def test_torchvision_reads_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import CIFAR10

    write_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    reference = CIFAR10(tmp_path, train=True)
    source = cifar10.load(str(tmp_path), "train", download=False)
    assert np.array_equal(source.images.permute(0, 2, 3, 1).numpy(), reference.data)
    assert source.labels.tolist() == reference.targets
    assert list(source.classes) == reference.classes


@pytest.mark.usefixtures("no_network")
def test_existing_data_is_not_modified(tmp_path: Path):
    write_cifar10(tmp_path)
    before = contents(tmp_path)
    cifar10.load(str(tmp_path), "train", download=True)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_network")
def test_an_archive_is_unpacked_once(tmp_path: Path):
    images, _ = write_cifar10(tmp_path)["test"]
    archive = pack_cifar10(tmp_path)
    assert np.array_equal(cifar10.load(str(tmp_path), "test", download=True).images.numpy(), images)
    archive.unlink()
    assert len(cifar10.load(str(tmp_path), "train", download=True)) == 100
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("no_network")
def test_an_archive_in_a_read_only_folder_is_read_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, _ = write_cifar10(tmp_path)["test"]
    pack_cifar10(tmp_path)

    def read_only(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", read_only)
    assert np.array_equal(cifar10.load(str(tmp_path), "test", download=True).images.numpy(), images)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.usefixtures("no_network")
def test_missing_data_offline_names_file_folder_and_url(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        cifar10.load(str(tmp_path), "test", download=True)
    message = str(caught.value)
    assert str(tmp_path / "cifar-10-batches-py" / "batches.meta") in message
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in message
    assert f" to {tmp_path}." in message
    assert "no network in this test" in message
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_when_downloads_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("a network call"))
    with pytest.raises(UserError, match="downloads are disabled"):
        cifar10.load(str(tmp_path), "test", download=False)


def test_a_downloaded_archive_is_kept_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, _ = write_cifar10(tmp_path / "server")["test"]
    archive = pack_cifar10(tmp_path / "server")
    write_cifar10(tmp_path / "server")
    import torchvision.datasets.utils as utils

    asked = []

    def copy(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(archive.read_bytes())

    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: io.BytesIO())
    monkeypatch.setattr(utils, "download_url", copy)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    assert np.array_equal(cifar10.load(str(data_dir), "test", download=True).images.numpy(), images)
    from torchvision.datasets import CIFAR10

    assert asked == [(CIFAR10.url, CIFAR10.tgz_md5)]
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]


def damage(path: Path, kind: str) -> None:
    entry = pickle.loads(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        entry |= {
            "too few labels": {"labels": entry["labels"][:-1]},
            "too few images": {"data": entry["data"][:-1]},
            "narrow images": {"data": entry["data"][:, :-1]},
            "float images": {"data": entry["data"].astype(np.float32)},
            "no labels": {"labels": None},
            "label 10": {"labels": [10, *entry["labels"][1:]]},
            "label -1": {"labels": [-1, *entry["labels"][1:]]},
        }[kind]
        path.write_bytes(pickle.dumps(entry, protocol=4))


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "empty",
        "too few labels",
        "too few images",
        "narrow images",
        "float images",
        "no labels",
        "label 10",
        "label -1",
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, kind: str):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damage(path, kind)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        cifar10.load(str(tmp_path), "train", download=False)


def test_a_damaged_archive_is_named(tmp_path: Path):
    write_cifar10(tmp_path)
    archive = pack_cifar10(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match=f"{archive} is damaged"):
        cifar10.load(str(tmp_path), "train", download=False)
    assert not (tmp_path / "cifar-10-batches-py").exists()


def test_code_in_a_batch_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"labels": [], "data": Bomb()}))
    with pytest.raises(UserError, match=r"it refers to posix\.mkdir"):
        cifar10.load(str(tmp_path), "test", download=False)
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.real_data
def test_the_published_data_set_has_6000_images_per_class(real_data_dir: Path):
    splits = [cifar10.load(str(real_data_dir), split, download=False) for split in ("train", "test")]
    assert [split.labels.bincount().tolist() for split in splits] == [[5000] * 10, [1000] * 10]
    means = splits[0].images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_an_unreadable_batch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
):
    write_cifar10(tmp_path)
    path = str(tmp_path / cifar10.FOLDER / name)
    fail_to_read(monkeypatch, path, number)
    with pytest.raises(UserError) as caught:
        cifar10.load(str(tmp_path), "test", download=False)
    assert str(caught.value).startswith(f"{path} cannot be read: {os.strerror(number)}; ")
    assert "\n" not in str(caught.value)


def test_an_unreadable_archive_is_not_reported_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = tmp_path / cifar10.ARCHIVE
    archive.touch()
    fail_to_read(monkeypatch, str(archive), errno.EACCES)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied; fix its permissions"):
        cifar10.load(str(tmp_path), "test", download=False)


def test_an_unreadable_folder_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("alexnet_exp.data.sources.os.stat", refuse)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied; fix its permissions"):
        cifar10.load(str(tmp_path), "test", download=False)
