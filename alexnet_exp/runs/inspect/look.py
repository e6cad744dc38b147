"""Read every image of a data set once: header, digest, perceptual hash, and a thumbnail for comparisons."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_exp.data import workers
from alexnet_exp.data.cache import shown
from alexnet_exp.data.decode import Header, decode_bytes, read_bytes, read_header, stored
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import UserError, printable
from alexnet_exp.runs.inspect.near import SIDE, contrast, difference_hash, shrink
from alexnet_exp.torch_internals import end_workers

Source = ArraySource | FileSource
_FILES, _ARRAYS = 32, 1024  # images per batch
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Record(NamedTuple):
    """One image, without its pixels.

    Args:
        sha256: Of the file's bytes, or of the pixels of an in-memory image; empty if it could not be read.
        num_bytes: Size of the same.
        header: None for an in-memory image or an unreadable header.
        error: Why the image cannot be decoded; empty if it can.
    """

    sha256: str
    num_bytes: int
    header: Header | None
    error: str


class Batch(NamedTuple):
    """Results for several images, as in `Look`.

    sums, float64 (N, 3, C): count, sum and sum of squares of each channel's values in 0..1, over the pixels as stored
    for training; 0 for an image that cannot be decoded.
    """

    records: list[Record]
    small: np.ndarray
    hashes: np.ndarray
    contrasts: np.ndarray
    sums: np.ndarray

    def __len__(self) -> int:
        return len(self.records)


class Look(NamedTuple):
    """All images of a data set, split by split.

    Args:
        sources: The splits.
        splits: Split name of each image.
        labels: (N,) int64.
        records: One per image.
        small: Thumbnails, uint8 (N, C, 32, 32).
        hashes: Difference hashes, uint64 (N,).
        contrasts: Standard deviation of the grey values, float32 (N,), in 0..255.
        mean: Per channel over the training images, in 0..1.
        std: Likewise.
    """

    sources: Mapping[str, Source]
    splits: list[str]
    labels: np.ndarray
    records: list[Record]
    small: np.ndarray
    hashes: np.ndarray
    contrasts: np.ndarray
    mean: list[float]
    std: list[float]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.sources.values())).classes

    @property
    def of_files(self) -> bool:
        return isinstance(next(iter(self.sources.values())), FileSource)

    def place(self, index: int) -> tuple[Source, int]:
        """Return the source of an image, and its position in it."""
        for source in self.sources.values():
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)

    def name(self, index: int) -> str:
        """Return a path relative to the data set's folder such as train/hat/17.jpg, or "train image 17"."""
        source, position = self.place(index)
        name = source.image_name(position)
        return name.replace(os.sep, "/") if self.of_files else name

    def label(self, index: int) -> str:
        """Return the class name of an image."""
        return self.classes[self.labels[index]]

    def sizes(self) -> np.ndarray:
        """Return width and height of every image after EXIF rotation, int64 (N, 2); 0 if unknown."""
        sizes: np.ndarray = np.zeros((len(self), 2), dtype=np.int64)
        start = 0
        for source in self.sources.values():
            if isinstance(source, ArraySource):
                sizes[start : start + len(source)] = source.images.shape[-1], source.images.shape[-2]
            start += len(source)
        for index, record in enumerate(self.records):
            if record.header is not None:
                size = record.header.width, record.header.height
                sizes[index] = size[::-1] if record.header.orientation in _TURNED else size
        return sizes


def look(sources: Mapping[str, Source], channels: int, stored_size: int, num_workers: int) -> Look:
    """Read every image, with a progress bar on a terminal.

    Args:
        sources: The splits: "train", "val", "test".
        channels: Of files, 1 or 3.
        stored_size: Side at which training stores files, in pixels.
        num_workers: Decoding processes; 0 decodes in this process.
    """
    total = sum(map(len, sources.values()))
    channels = next((s.images.shape[1] for s in sources.values() if isinstance(s, ArraySource)), channels)
    small = np.zeros((total, channels, SIDE, SIDE), dtype=np.uint8)
    hashes: np.ndarray = np.zeros(total, dtype=np.uint64)
    contrasts: np.ndarray = np.zeros(total, dtype=np.float32)
    records: list[Record] = []
    sums = np.zeros((3, channels))
    # Mean and std are of train, the first split, or of all images if there is none.
    num_training = len(sources.get("train", ())) or total
    for batch in shown(_batches(sources, channels, stored_size, num_workers), total, "Looking at"):
        part = slice(len(records), len(records) + len(batch))
        small[part], hashes[part], contrasts[part] = batch.small, batch.hashes, batch.contrasts
        sums += batch.sums[: max(0, num_training - part.start)].sum(0)  # a batch may cross the end of train
        records += batch.records
    count, mean = sums[0], sums[1] / np.maximum(sums[0], 1)
    std = np.sqrt(np.maximum(sums[2] / np.maximum(count, 1) - mean**2, 0))  # rounding may go below 0
    splits = [split for split, source in sources.items() for _ in range(len(source))]
    labels = np.concatenate([source.labels.numpy() for source in sources.values()])
    return Look(sources, splits, labels, records, small, hashes, contrasts, mean.tolist(), std.tolist())


def _batches(
    sources: Mapping[str, Source], channels: int, stored_size: int, num_workers: int
) -> Iterator[Batch]:
    for source in sources.values():
        if isinstance(source, ArraySource):
            yield from map(_of_pixels, source.images.split(_ARRAYS))
        else:
            yield from _of_files(source, channels, stored_size, num_workers)


def _of_pixels(images: Tensor) -> Batch:
    records = [
        Record(hashlib.sha256(image.tobytes()).hexdigest(), image.nbytes, None, "")
        for image in images.contiguous().numpy()
    ]
    small = shrink(images)
    sums = np.stack([_sums(image) for image in images])
    return Batch(records, small.numpy(), difference_hash(small), contrast(small), sums)


def _sums(image: Tensor) -> np.ndarray:
    """Return count, sum and sum of squares of each channel's values in 0..1, float64 (3, C)."""
    values = image.flatten(1).double() / 255  # (C, H * W)
    count = torch.full((len(values),), float(values.shape[1]), dtype=torch.float64)
    return torch.stack([count, values.sum(1), (values**2).sum(1)]).numpy()


def _of_files(source: FileSource, channels: int, stored_size: int, num_workers: int) -> Iterator[Batch]:
    parts = [list(range(len(source))[start : start + _FILES]) for start in range(0, len(source), _FILES)]
    loader: DataLoader = DataLoader(
        _Files(source.paths, channels, stored_size),
        batch_size=None,
        sampler=parts,  # lists of positions: a worker hashes a whole batch at a time
        num_workers=min(num_workers, len(parts)),
        collate_fn=_unchanged,  # the default would make tensors of the arrays
        worker_init_fn=workers.ignore_signals,
    )
    try:
        yield from workers.start(loader)
    finally:
        end_workers(loader)


def _unchanged(batch: Any) -> Any:
    return batch


class _Files(Dataset):
    """Reads batches of files, given their positions."""

    def __init__(self, paths: Sequence[str], channels: int, stored_size: int) -> None:
        self.paths, self.channels, self.stored_size = paths, channels, stored_size

    def __getitem__(self, numbers: list[int]) -> Batch:
        looks = [self._look(self.paths[number]) for number in numbers]
        records, images, sums = zip(*looks, strict=True)
        small = torch.cat(images)
        return Batch(list(records), small.numpy(), difference_hash(small), contrast(small), np.stack(sums))

    def _look(self, path: str) -> tuple[Record, Tensor, np.ndarray]:
        sha256, num_bytes, header = "", 0, None
        try:
            data = read_bytes(path)
            sha256, num_bytes = hashlib.sha256(data).hexdigest(), len(data)
            with suppress(UserError):  # the decoder may cope, and has the better message if it does not
                header = read_header(data, path)
            # Decode once for both uses: the stored size for statistics, the whole image for the thumbnail.
            image = decode_bytes(data, path, self.channels, enough=2 * max(self.stored_size, SIDE))
        except UserError as error:
            reason = str(error).removeprefix(f"{printable(path)} ")
            nothing = torch.zeros((1, self.channels, SIDE, SIDE), dtype=torch.uint8)
            return Record(sha256, num_bytes, header, reason), nothing, np.zeros((3, self.channels))
        sums = _sums(stored(image, self.stored_size))
        return Record(sha256, num_bytes, header, ""), shrink(image[None]), sums
