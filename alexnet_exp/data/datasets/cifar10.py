"""CIFAR-10 in torchvision's layout (cifar-10-batches-py/), from its archive, or downloaded, in this order.

Existing data is only read: no network access, no checksum, nothing written.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
import zlib
from typing import Any

import numpy as np
import torch

from alexnet_exp.data.sources import ArraySource, fetch, is_file
from alexnet_exp.errors import UserError, unreadable
from alexnet_exp.files import replacing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
META = "batches.meta"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load(data_dir: str, split: str, download: bool) -> ArraySource:
    """Return one split, uint8 (N, 3, 32, 32), in file order.

    Args:
        data_dir: The folder that holds, or gets, cifar-10-batches-py/ or cifar-10-python.tar.gz.
        split: "train" or "test".
        download: Whether missing data may be downloaded.

    Raises:
        UserError: A file is missing and cannot be downloaded, or is damaged.
    """
    files = _read([META, *BATCHES[split]], data_dir, download)
    folder = os.path.join(data_dir, FOLDER)
    meta = _unpickle(files.pop(META), os.path.join(folder, META))
    parts = [_images_and_labels(files.pop(name), os.path.join(folder, name), meta) for name in BATCHES[split]]
    images = torch.from_numpy(np.concatenate([images for images, _ in parts])).view(-1, 3, 32, 32)
    labels = torch.cat([labels for _, labels in parts])
    return ArraySource(images, labels, tuple(meta["label_names"]), f"cifar10 {split}")


def _read(names: list[str], data_dir: str, download: bool) -> dict[str, bytes]:
    """Return the content of the files, or that of the archive, which is unpacked if possible."""
    folder, archive = os.path.join(data_dir, FOLDER), os.path.join(data_dir, ARCHIVE)
    missing = [path for name in names if not is_file(path := os.path.join(folder, name))]
    if missing:
        if not is_file(archive):
            fetch(URL, archive, MD5, missing[0], download)
        return _read_archive(names, archive, folder)
    files = {}
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                files[name] = file.read()
        except OSError as error:
            raise unreadable(path, error) from error
    return files


def _read_archive(names: list[str], archive: str, folder: str) -> dict[str, bytes]:
    """Read the archive's data files, and unpack them into `folder` if it is writable."""
    # All files, not only `names`, so that the other split is unpacked, too.
    every = [META, *BATCHES["train"], *BATCHES["test"]]
    try:
        with tarfile.open(archive) as tar:
            members = {name: tar.extractfile(f"{FOLDER}/{name}") for name in every}
            files = {name: member.read() for name, member in members.items() if member}
            files = {name: files[name] for name in every}  # a member that is not a file is as good as missing
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an I/O error, not damaged content
            raise unreadable(archive, error) from error
        raise _damaged(archive, str(error)) from error
    with contextlib.suppress(OSError):  # read-only or full: this run uses the copy in memory
        for name, data in files.items():
            with replacing(os.path.join(folder, name)) as part:
                part.write_bytes(data)
    return {name: files[name] for name in names}


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    # Ignores the shape that the pickle claims, which could be huge; __setstate__ brings the real one.
    return np.empty(0, np.uint8)


def _byte_dtype(code: str, align: object, copy: object) -> np.dtype:
    if code != "u1":
        raise pickle.UnpicklingError(f"its pixels are {code}, not bytes")
    return np.dtype(np.uint8)


class _BatchUnpickler(pickle.Unpickler):
    """Unpickle byte arrays and plain values only; refuses any other global, and so any foreign code."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,  # as pickled by numpy 1
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # by numpy 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _byte_dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return self.ALLOWED[module, name]


def _unpickle(data: bytes, path: str) -> dict[str, Any]:
    try:
        entry = _BatchUnpickler(io.BytesIO(data), encoding="latin1").load()  # pickled by Python 2
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _damaged(path, str(error)) from error
    if not isinstance(entry, dict):
        raise _damaged(path, "it is not a dictionary")
    return entry


def _images_and_labels(data: bytes, path: str, meta: dict[str, Any]) -> tuple[np.ndarray, torch.Tensor]:
    """Return images, uint8 (N, 3072), and labels, int64 (N,), of one batch, both validated."""
    entry = _unpickle(data, path)
    images, labels = entry.get("data"), entry.get("labels")
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise _damaged(path, "it has no data and labels")
    count, classes = meta.get("num_cases_per_batch"), len(meta.get("label_names", ()))
    if images.shape != (count, 3072) or images.dtype != np.uint8 or len(labels) != count:
        raise _damaged(path, f"images {images.shape} and {len(labels)} labels instead of {count} of each")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise _damaged(path, f"a label is not one of the {classes} classes")
    return images, torch.tensor(labels)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): delete it and download {URL} again.")
