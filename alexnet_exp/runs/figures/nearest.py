"""Nearest training images in the last hidden layer: exact search over cached features."""

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
from alexnet_exp.models.activations import hidden, last_linear
from alexnet_exp.runs.figures.draw import Neighbours
from alexnet_exp.runs.figures.subject import LeftOutError, Subject
from alexnet_exp.version import __version__

COUNT = 6
FORMAT = 2  # of the cached features; 1 stored them in the loader's order
BLOCK = 4096  # training images compared at once


def nearest(subject: Subject) -> tuple[list[Neighbours], str]:
    """Find the nearest training images of each sampled image.

    Returns:
        A row per sampled image, and a sentence about them.

    Raises:
        LeftOutError: The network has no fully connected layer.
    """
    last = last_linear(subject.network)
    if last is None:
        raise LeftOutError("the network has no fully connected layer, and therefore no last hidden layer.")
    queries = hidden(subject.network, last, subject.inputs).cpu()
    features = training_features(subject, last)
    # A sampled training image would be its own nearest neighbour.
    own = subject.sample if subject.split == "train" else [-1] * len(subject.sample)
    rows = []
    for position, query, index in zip(subject.sample, queries, own, strict=True):
        found = search(features, query, COUNT, leave_out=index)
        pictures = [(subject.picture(i, "train"), distance) for i, distance in found]
        rows.append(Neighbours(subject.picture(position), pictures))
    text = (
        f"The first image of each row is from the {subject.split} split, followed by its {COUNT} nearest of "
        f"{len(features):,} training images (Euclidean distance between the {features.shape[1]:,} values of the last "
        "hidden layer)."
    )
    return rows, text


def search(features: np.ndarray, query: Tensor, count: int, leave_out: int = -1) -> list[tuple[int, float]]:
    """Return (row, distance) of the rows of features (N, F) nearest to a query (F,), the nearest first.

    Args:
        features: float32; may be memory-mapped, and is read once.
        query: float32.
        count: Maximum number of rows to return.
        leave_out: A row to ignore.
    """
    distances = np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        block = torch.from_numpy(np.array(features[start : start + BLOCK]))
        # Not |a|^2 + |b|^2 - 2ab, which loses its digits where images are alike.
        distances[start : start + BLOCK] = (block - query).double().square().sum(1).sqrt().numpy()
    if leave_out >= 0:
        distances[leave_out] = np.inf
    # Stable: ties are returned in the order of the data set.
    order = np.argsort(distances, kind="stable")[: min(count, len(features) - (leave_out >= 0))]
    return [(int(i), float(distances[i])) for i in order]


def training_features(subject: Subject, last: nn.Linear) -> np.ndarray:
    """Return the input of the last layer for every training image, (N, F) float32, memory-mapped from the cache."""
    path = _cache_folder(subject) / f"{fingerprint(subject)}.npy"
    if not path.exists():
        shape = (len(subject.data.sources["train"]), last.in_features)
        with replacing(path) as temporary:
            features = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
            for batch in subject.batches("train", "features"):
                x = hidden(subject.network, last, subject.prepared(batch.images[: batch.size]))
                features[batch.indices[: batch.size].cpu().numpy()] = x.cpu().numpy()
            features.flush()
    return np.load(path, mmap_mode="r")


def _cache_folder(subject: Subject) -> Path:
    """Return the folder for features: in paths.cache_dir if writable, else in the user's cache folder.

    Raises:
        UserError: Neither is writable.
    """
    for place in places(subject.settings.paths.cache_dir, str(subject.path.parent)):
        folder = place / "features"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # try the next folder
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(
        "No cache folder for the features is writable: set paths.cache_dir=DIR to a writable folder."
    )


def fingerprint(subject: Subject) -> str:
    """Hash what the features depend on: the checkpoint file and the training images."""
    # Versions may preprocess differently, and devices round differently.
    digest = hashlib.sha256(f"{FORMAT} {__version__} {subject.device.type}".encode())
    with open(subject.path, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    source = subject.data.sources["train"]
    if isinstance(source, ArraySource):
        digest.update(source.images.contiguous().numpy().data)
    elif isinstance(source, StreamSource):
        digest.update(source.sha256.encode())
    else:  # sizes and times of the files: reading them all would take as long as the features
        for path in source.paths:
            state = os.stat(path)
            digest.update(
                f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()[:20]
