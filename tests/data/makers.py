"""Tiny data sets in the published layouts, written by code that shares nothing with the readers."""

from __future__ import annotations

import builtins
import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MNIST_FILES = {"train": "train", "test": "t10k"}

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images, labels


def write_cifar10(data_dir: Path, per_batch: int = 20, seed: int = 0) -> Arrays:
    """Write cifar-10-batches-py/: five training batches and a test batch of random images.

    Returns:
        For "train" and "test": images uint8 (N, 3, 32, 32) and labels int64 (N,), in file order; labels
        cycle through the ten classes.
    """
    rng = np.random.default_rng(seed)
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    meta = {"num_cases_per_batch": per_batch, "label_names": CIFAR10_CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    labels = np.arange(per_batch) % 10
    batches = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batches[name] = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        entry = {"batch_label": name, "labels": labels.tolist(), "data": batches[name]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=4))
    test = batches.pop("test_batch")
    train = np.concatenate(list(batches.values()))
    return {
        "train": (train.reshape(-1, 3, 32, 32), np.tile(labels, 5)),
        "test": (test.reshape(-1, 3, 32, 32), labels),
    }


def pack_cifar10(data_dir: Path) -> Path:
    """Turn the folder that `write_cifar10` made into cifar-10-python.tar.gz, as published."""
    folder, archive = data_dir / "cifar-10-batches-py", data_dir / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return archive


def write_mnist(
    data_dir: Path, train: int = 40, test: int = 20, packed: bool = True, seed: int = 0
) -> Arrays:
    """Write the four files of MNIST/raw/ with random images, gzipped if `packed`.

    Returns:
        For "train" and "test": images uint8 (N, 28, 28) and labels int64 (N,); labels cycle through the digits.
    """
    rng = np.random.default_rng(seed)
    folder = data_dir / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) % 10
        write_idx(folder / f"{MNIST_FILES[split]}-images-idx3-ubyte", images, packed)
        write_idx(folder / f"{MNIST_FILES[split]}-labels-idx1-ubyte", labels.astype(np.uint8), packed)
        arrays[split] = (images, labels)
    return arrays


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    """Write an array of bytes as an IDX file, gzipped if `packed`."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    data = header + array.tobytes()
    if packed:
        path = path.with_name(path.name + ".gz")
        data = gzip.compress(data)
    path.write_bytes(data)


def write_folder(
    root: Path,
    counts: dict[str, int],
    size: tuple[int, int] = (40, 32),
    extension: str = "jpg",
    seed: int = 0,
) -> None:
    """Write plain-coloured images with a little noise, each class its own colour.

    Args:
        root: The folder.
        counts: Images per class folder: {"train/cat": 5, "val/cat": 2}, or {"cat": 5}.
        size: Width and height in pixels.
        extension: Determines the format.
        seed: Seeds the noise.
    """
    rng = np.random.default_rng(seed)
    names = sorted({Path(name).name for name in counts})
    colours = np.random.default_rng(1).integers(30, 226, (len(names), 3))
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = rng.integers(-25, 26, (size[1], size[0], 3))
            pixels = (colours[names.index(Path(name).name)] + noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.{extension}")


def fail_to_read(monkeypatch: pytest.MonkeyPatch, path: str, number: int) -> None:
    """Make opening one file fail with an errno. Permissions would not: tests run as root."""
    real = open

    def fail(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file) == path:
            raise OSError(number, os.strerror(number), path)
        return real(file, *arguments, **options)

    for owner, name in ((builtins, "open"), (io, "open"), (tarfile, "bltn_open")):
        monkeypatch.setattr(owner, name, fail)
