"""The training images nearest to an image in the last hidden layer: exact search over features that are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_exp.data.cache import places
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.data.streaming.dataset import StreamSource
from alexnet_exp.errors import UserError
from alexnet_exp.files import replacing
from alexnet_exp.runs.figures.draw import Neighbours
from alexnet_exp.runs.figures.subject import LeftOutError, Subject, hidden, last_linear
from alexnet_exp.version import __version__

COUNT = 6
FORMAT = 2  # of the kept features; 1 had them in the loader's order
BLOCK = 4096  # training images compared at a time


def nearest(subject: Subject) -> tuple[list[Neighbours], str]:
    """Find the training images nearest to the sampled ones.

    Returns:
        A row for each sampled image, and a sentence about them.

    Raises:
        LeftOutError: If the network has no fully connected layer.
    """
    last = last_linear(subject.network)
    if last is None:
        raise LeftOutError("the network has no fully connected layer, and so no last hidden layer.")
    queries = hidden(subject.network, last, subject.inputs).cpu()
    features = training_features(subject, last)
    # A sampled training image would be its own nearest.
    own = subject.sample if subject.split == "train" else [-1] * len(subject.sample)
    rows = []
    for position, query, index in zip(subject.sample, queries, own, strict=True):
        found = search(features, query, COUNT, leave_out=index)
        pictures = [(subject.picture(i, "train"), distance) for i, distance in found]
        rows.append(Neighbours(subject.picture(position), pictures))
    text = (
        f"The first image of a row is of the {subject.split} split; beside it the {COUNT} of {len(features):,} "
        f"training images at the smallest Euclidean distance in the last hidden layer ({features.shape[1]:,} values)."
    )
    return rows, text


def search(features: np.ndarray, query: Tensor, count: int, leave_out: int = -1) -> list[tuple[int, float]]:
    """Return the rows of features (N, F) nearest to a query (F,) and their distances, the nearest first.

    Args:
        features: float32; may be a file mapped into memory, which is read once.
        query: float32.
        count: Rows to return, or as many as there are.
        leave_out: A row that does not count.
    """
    distances = np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        block = torch.from_numpy(np.array(features[start : start + BLOCK]))
        # The differences themselves: sums of squares would cancel where images are alike.
        distances[start : start + BLOCK] = (block - query).double().square().sum(1).sqrt().numpy()
    if leave_out >= 0:
        distances[leave_out] = np.inf
    order = np.argsort(distances, kind="stable")[: min(count, len(features) - (leave_out >= 0))]
    return [(int(i), float(distances[i])) for i in order]


def training_features(subject: Subject, last: nn.Linear) -> np.ndarray:
    """Return what the last layer reads of every training image, (N, F) float32, mapped from a file that is kept."""
    folder = _cache_folder(subject)
    path = folder / f"{fingerprint(subject)}.npy"
    count = len(subject.data.sources["train"])
    if not path.exists():
        with replacing(path) as temporary:
            _write(subject, last, temporary, count)
    return np.load(path, mmap_mode="r")


def _cache_folder(subject: Subject) -> Path:
    """Return where features are kept: paths.cache_dir, or the user's cache folder where that cannot be written to.

    Raises:
        UserError: If neither can be.
    """
    for place in places(subject.settings["cache_dir"], str(subject.path.parent)):
        folder = place / "features"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # the next place may do
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(
        "There is no place for the features: say paths.cache_dir=DIR with a folder that can be written to."
    )


def _write(subject: Subject, last: nn.Linear, path: Path, count: int) -> None:
    kept = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=(count, last.in_features))
    for batch in subject.batches("train", "features"):
        x = hidden(subject.network, last, subject.prepared(batch.images[: batch.size]))
        kept[batch.indices[: batch.size].cpu().numpy()] = x.cpu().numpy()
    kept.flush()


def fingerprint(subject: Subject) -> str:
    """Return what the features depend on, as a hash: the checkpoint's file and the training images."""
    digest = hashlib.sha256(f"{FORMAT} {__version__} {subject.device.type}".encode())
    with open(subject.path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    source = subject.data.sources["train"]
    if isinstance(source, ArraySource):
        digest.update(source.images.contiguous().numpy().data)
    elif isinstance(source, StreamSource):
        digest.update(source.sha256.encode())
    else:
        for path in source.paths:
            state = os.stat(path)
            digest.update(
                f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()[:20]
