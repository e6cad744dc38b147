"""MNIST in torchvision's layout (MNIST/raw/), plain or gzipped, or downloaded.

Existing data is only read: no network access, nothing written, .gz files decompressed in memory.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.sources import ArraySource, fetch, is_file, repeat_grey
from alexnet_exp.errors import UserError, unreadable

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
PREFIX = {"train": "train", "test": "t10k"}
DEFLATE_LIMIT = 1032  # maximum compression ratio of deflate


def load(data_dir: str, split: str, channels: int, download: bool) -> ArraySource:
    """Return one split, uint8 (N, channels, 32, 32): 28 x 28 with 2 zero pixels on each side.

    Args:
        data_dir: The folder that holds, or gets, MNIST/raw/.
        split: "train" or "test".
        channels: 1, or 3 for the grey value repeated.
        download: Whether missing files may be downloaded.

    Raises:
        UserError: A file is missing and cannot be downloaded, or is damaged.
    """
    folder = os.path.join(data_dir, "MNIST", "raw")
    images_path = _find(folder, f"{PREFIX[split]}-images-idx3-ubyte", download)
    labels_path = _find(folder, f"{PREFIX[split]}-labels-idx1-ubyte", download)
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1).long()
    if images.shape[1:] != (28, 28):
        raise _damaged(images_path, f"its images are {images.shape[1]} x {images.shape[2]}, not 28 x 28")
    if len(images) != len(labels):
        raise _damaged(labels_path, f"{len(labels)} labels for {len(images)} images")
    if labels.max() > 9:
        raise _damaged(labels_path, f"label {int(labels.max())} is not a digit")
    # To 32 x 32, the side that LeNet-5 and the networks for CIFAR-10 expect.
    padded = functional.pad(images, (2, 2, 2, 2))
    return ArraySource(repeat_grey(padded, channels), labels, tuple("0123456789"), f"mnist {split}")


def _find(folder: str, name: str, download: bool) -> str:
    path = os.path.join(folder, name)
    if is_file(path):
        return path
    packed = path + ".gz"
    if not is_file(packed):
        fetch(f"{URL}{name}.gz", packed, MD5[name], f"{packed}, one of four files,", download)
    return packed


def _read_idx(path: str, num_dimensions: int) -> Tensor:
    """Return the array of bytes in an IDX file, uint8 with `num_dimensions` dimensions.

    The header is checked against the file size before memory is allocated.

    Raises:
        UserError: The header or the length is wrong.
    """
    packed = path.endswith(".gz")
    header_bytes = 4 + 4 * num_dimensions
    try:
        largest = os.path.getsize(path) * (DEFLATE_LIMIT if packed else 1)
        with gzip.open(path) if packed else open(path, "rb") as file:
            magic, *shape = struct.unpack(f">{1 + num_dimensions}I", file.read(header_bytes))
            # 08: unsigned bytes; last byte: the number of dimensions
            if magic != 0x0800 + num_dimensions:
                raise _damaged(
                    path, f"its first bytes are {magic:#010x}, not {0x0800 + num_dimensions:#010x}"
                )
            expected = math.prod(shape)
            if not 0 < expected <= largest:
                raise _damaged(path, f"its header claims {expected} bytes")
            data = file.read(expected + 1)  # one more byte, to detect trailing data
    except (OSError, EOFError, zlib.error, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an I/O error, not damaged content
            raise unreadable(path, error) from error
        raise _damaged(path, str(error)) from error
    if len(data) != expected:
        raise _damaged(path, f"its header claims {expected} bytes, but the data has a different size")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape)  # bytes are read-only


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): delete it and download it again from {URL}.")
