from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_exp.data.datasets import mnist
from alexnet_exp.errors import UserError
from tests.data.makers import fail_to_read, write_idx, write_mnist

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_come_in_file_order(tmp_path: Path, split: str, packed: bool):
    images, labels = write_mnist(tmp_path, packed=packed)[split]
    source = mnist.load(str(tmp_path), split, channels=1, download=False)
    assert np.array_equal(source.images[:, 0].numpy(), np.pad(images, ((0, 0), (2, 2), (2, 2))))
    assert source.images.shape == (len(images), 1, 32, 32)
    assert source.images.dtype == torch.uint8
    assert source.labels.tolist() == labels.tolist()
    assert source.labels.dtype == torch.int64
    assert source.classes == tuple("0123456789")
    assert source.image_name(3) == f"{split} image 3"


def test_torchvision_reads_the_same_images(tmp_path: Path):
    from torchvision.datasets import MNIST

    write_mnist(tmp_path, packed=False)
    reference = MNIST(tmp_path, train=True)
    source = mnist.load(str(tmp_path), "train", channels=1, download=False)
    assert torch.equal(source.images[:, 0, 2:-2, 2:-2], reference.data)
    assert torch.equal(source.labels, reference.targets)


def test_three_channels_repeat_the_grey_value(tmp_path: Path):
    write_mnist(tmp_path)
    grey, rgb = (mnist.load(str(tmp_path), "test", channels, download=False) for channels in (1, 3))
    assert rgb.images.shape == (20, 3, 32, 32)
    for channel in range(3):
        assert torch.equal(rgb.images[:, channel], grey.images[:, 0])


@pytest.mark.usefixtures("no_network")
def test_gzipped_files_are_not_modified(tmp_path: Path):
    write_mnist(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    mnist.load(str(tmp_path), "train", channels=3, download=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.usefixtures("no_network")
def test_missing_data_offline_names_file_folder_and_url(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        mnist.load(str(tmp_path), "test", channels=3, download=True)
    folder = tmp_path / "MNIST" / "raw"
    assert str(folder / f"{IMAGES}.gz") in str(caught.value)
    assert f"https://ossci-datasets.s3.amazonaws.com/mnist/{IMAGES}.gz" in str(caught.value)
    assert f" to {folder}." in str(caught.value)
    assert not folder.exists()


def test_checksums_match_torchvision():
    from torchvision.datasets import MNIST

    assert {f"{name}.gz": md5 for name, md5 in mnist.MD5.items()} == dict(MNIST.resources)
    assert mnist.URL in MNIST.mirrors


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08\x03\0\0",
        b"\0\0\x08\x01\0\0\0\x01\x05",
        b"\0\0\x08\x03" + b"\xff" * 12 + b"\0" * 784,
        b"\0\0\x08\x03" + bytes([0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 28]),
        b"\0\0\x08\x03" + bytes([0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + b"\0" * 783,
        b"\0\0\x08\x03" + bytes([0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + b"\0" * 785,
        b"\0\0\x08\x03" + bytes([0, 0, 0, 1, 0, 0, 0, 27, 0, 0, 0, 28]) + b"\0" * 27 * 28,
    ],
    ids=[
        "empty",
        "cut header",
        "wrong magic",
        "huge",
        "no image",
        "one byte short",
        "one byte more",
        "27 x 28",
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_image_file_is_named(tmp_path: Path, content: bytes, packed: bool):
    write_mnist(tmp_path, packed=packed)
    path = tmp_path / "MNIST" / "raw" / (IMAGES + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        mnist.load(str(tmp_path), "test", channels=1, download=False)


def test_a_truncated_gz_is_named(tmp_path: Path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        mnist.load(str(tmp_path), "test", channels=1, download=False)


@pytest.mark.parametrize(
    ("labels", "reason"), [([1] * 19, "19 labels for 20 images"), ([10] * 20, "label 10")]
)
def test_invalid_label_files_are_named(tmp_path: Path, labels: list[int], reason: str):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / LABELS
    write_idx(path, np.array(labels, dtype=np.uint8), packed=True)
    with pytest.raises(UserError, match=f"{path}.gz is damaged .{reason}"):
        mnist.load(str(tmp_path), "test", channels=1, download=False)


@pytest.mark.real_data
def test_the_published_data_set_has_the_known_counts_and_mean(real_data_dir: Path):
    source = mnist.load(str(real_data_dir), "train", channels=1, download=False)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert source.labels.bincount().tolist() == counts
    assert source.images[:, 0, 2:-2, 2:-2].float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("packed", [True, False])
def test_an_unreadable_file_is_not_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, packed: bool
):
    write_mnist(tmp_path, packed=packed)
    path = str(next((tmp_path / "MNIST" / "raw").glob("t10k-images*")))
    fail_to_read(monkeypatch, path, number)
    with pytest.raises(UserError) as caught:
        mnist.load(str(tmp_path), "test", 1, download=False)
    assert str(caught.value).startswith(f"{path} cannot be read: {os.strerror(number)}; ")


def test_an_unreadable_folder_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("alexnet_exp.data.sources.os.stat", refuse)
    with pytest.raises(UserError, match=r"cannot be read: Permission denied; fix its permissions"):
        mnist.load(str(tmp_path), "test", 1, download=False)
