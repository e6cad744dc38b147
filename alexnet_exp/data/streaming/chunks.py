"""Chunks in LitData's format: `prepare` writes them in LitData's worker processes, training reads them in its order.

Imported only where LitData is needed.

Resuming uses the public state of LitData's StreamingDataset, one per worker. Its StreamingDataLoader is not exact
(0.2.76: with two ranks of two workers, batches resume in a different order, a short one too early), starts fewer
workers when memory is low, which changes the order, and does not know the batches of other ranks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from litdata import StreamingDataset
from litdata.processing.functions import LambdaDataChunkRecipe
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from alexnet_exp.data.decode import decode_bytes, stored
from alexnet_exp.data.sources import is_remote
from alexnet_exp.data.streaming.internals import Writer, kill_workers
from alexnet_exp.data.workers import ignore_signals
from alexnet_exp.errors import UserError

# Silences the warning that training may hang if ranks have unequal shares: StreamLoader equalises the steps.
logging.getLogger("litdata").setLevel(logging.ERROR)


class Chunks(StreamingDataset):
    """The images of one split; items are (index in the split, stored item).

    Args:
        url: Folder or object storage.
        seed: Shuffle seed; None keeps the order of the split.
        rank: Rank of this process.
        world_size: Number of ranks.
    """

    def __init__(self, url: str, seed: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        # 32 bits: LitData hands the seed to numpy's RandomState.
        super().__init__(url, shuffle=seed is not None, drop_last=False, seed=(seed or 0) % 2**32)
        # LitData would take those of torch.distributed, but every rank reads the whole split for the mean image.
        self.distributed_env.world_size, self.distributed_env.global_rank = world_size, rank

    def __getitem__(self, index: Any) -> tuple[int, dict[str, Any]]:
        item = super().__getitem__(index)
        return int(getattr(index, "index", index)), item

    def shares(self, num_workers: int, epoch: int) -> list[list[int]]:
        """Return how many images each worker of each rank reads in an epoch (from 0)."""
        self.get_len(num_workers, 1)
        _, intervals = self.shuffler.get_chunks_and_intervals_per_workers(
            self.distributed_env, num_workers, 1, epoch + 1
        )
        counts = [sum(interval[2] - interval[1] for interval in own) for own in intervals]
        return [counts[start : start + num_workers] for start in range(0, len(counts), num_workers)]


@dataclass(eq=False)
class Reader(IterableDataset):
    """The decoded batches of one rank in one epoch, produced by the workers of a DataLoader.

    Args:
        chunks: The split.
        shares: Number of images of each worker of this rank.
        skip: Number of images that each worker has already delivered.
        first: The worker whose turn it is.
        epoch: From 0.
        batch_size: Batch size per rank.
        channels: 1 or 3.
        size: Side of the stored images.
        fit: How images become square; see `decode.stored`.
        url: Shown in error messages.
    """

    chunks: Chunks
    shares: list[int]
    skip: list[int]
    first: int
    epoch: int
    batch_size: int
    channels: int
    size: int
    fit: str
    url: str

    def __post_init__(self) -> None:
        # Here, because LitData refuses to make a state inside of a worker; `_items` only fills in two numbers.
        self.state = self.chunks.state_dict(0, len(self.shares), 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor] | UserError | None]:
        info = get_worker_info()
        worker = info.id if info else 0
        if worker < self.first:
            yield None  # a DataLoader always starts with worker 0; StreamLoader drops this placeholder
        items = self._items(worker)
        for start in range(self.skip[worker], self.shares[worker], self.batch_size):
            count = min(self.batch_size, self.shares[worker] - start)
            try:
                decoded = [self._decoded(*next(items)) for _ in range(count)]
            except UserError as error:
                yield error  # raised in the main process: torch would wrap it in a worker traceback
                return
            images, aspects, numbers = zip(*decoded, strict=True)
            yield torch.stack(images), torch.tensor(aspects), torch.tensor(numbers)

    def _items(self, worker: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Continue where this worker stopped, without reading finished chunks again."""
        if self.skip[worker] >= self.shares[worker]:
            return iter(())
        num_workers = len(self.shares)
        self.chunks.set_num_workers(num_workers)
        self.chunks.set_epoch(self.epoch + 1)
        # LitData's state has one number for all workers, at most an equal share; the rest is skipped one by one.
        jump = min(self.skip[worker], sum(self.shares) // num_workers)
        if jump:
            done = {"num_samples_yielded": jump * num_workers, "current_epoch": self.epoch + 1}
            self.chunks.load_state_dict({**self.state, **done})
        items = iter(self.chunks)
        for _ in range(self.skip[worker] - jump):
            next(items)
        return items

    def _decoded(self, index: int, item: dict[str, Any]) -> tuple[Tensor, float, int]:
        return *decode_item(item, self.channels, self.size, self.url, self.fit), index


def decode_item(
    item: dict[str, Any], channels: int, size: int, url: str, fit: str = "crop"
) -> tuple[Tensor, float]:
    """Decode a stored item for training: uint8 (channels, size, size), and width over height of the image."""
    image = decode_bytes(item["image"], f"{url}/{item['name']}", channels, enough=2 * size)
    return stored(image, size, fit), image.shape[2] / image.shape[1]


# ---------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Encoder:
    """Turn an image file into a stored item: its bytes, or a smaller JPEG.

    Args:
        root: Folder that file names are relative to.
        size: Shorter side in pixels; None stores the file unchanged.
        quality: JPEG quality, 1 to 100.
    """

    root: str
    size: int | None
    quality: int

    def __call__(self, task: list[Any]) -> dict[str, Any]:
        _end_with_parent()
        name, label = task
        path = os.path.join(self.root, name)
        data = Path(path).read_bytes() if self.size is None else self._smaller(path, self.size)
        # With a checksum, because `prepare` reads everything back before it writes the manifest.
        return {"image": data, "label": int(label), "name": name, "crc32": crc32(data)}

    def _smaller(self, path: str, size: int) -> bytes:
        # As in training: EXIF orientation is applied, and the same files are refused.
        image = decode_bytes(Path(path).read_bytes(), path, 3, enough=2 * size)
        short = min(image.shape[1:])
        if short > size:
            wanted = [size if side == short else round(side * size / short) for side in image.shape[1:]]
            floats = torch.nn.functional.interpolate(image[None], wanted, mode="bilinear", antialias=True)
            image = floats[0]
        out = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(out, "JPEG", quality=self.quality)
        return out.getvalue()


# Cached: once per worker, at its first image, since LitData calls nothing else of ours inside of it.
@functools.cache
def _end_with_parent() -> None:
    """Make a worker exit when `prepare` is killed, and leave the handling of signals to the parent."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    ignore_signals()
    threading.Thread(target=wait, daemon=True, name="parent").start()


def write(tasks: Sequence[list[Any]], url: str, encoder: Encoder, num_workers: int, chunk_bytes: int) -> None:
    """Write one split; continues after an interrupted call.

    Args:
        tasks: [name, label] of every image. To continue, pass the same arguments (the root may have moved).
        url: Folder or object storage.
        encoder: Turns a file into a stored item.
        num_workers: Number of processes.
        chunk_bytes: Chunk size in bytes.

    Raises:
        UserError: If an image cannot be read.
    """
    recipe = LambdaDataChunkRecipe(encoder, tasks, chunk_size=None, chunk_bytes=chunk_bytes, compression=None)
    with _contained():
        # With input_dir, LitData would copy every file before reading it.
        writer = Writer(
            input_dir=None, output_dir=url, num_workers=num_workers, fast_dev_run=False, reorder_files=False,
            use_checkpoint=True, delete_cached_files=is_remote(url), verbose=True,
        )  # fmt: skip
        try:
            writer.run(recipe)
        except RuntimeError as error:  # its text is the traceback of a worker
            said = re.search(r"UserError: (.+)", str(error))
            if said is None:
                raise
            raise UserError(said[1]) from error
        except BaseException:
            kill_workers()
            raise


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Give LitData scratch folders (it clears the default ones in /tmp), and restore the global state it changes."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    method = multiprocessing.get_start_method(allow_none=True)
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_") as folder:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{folder}/chunks"
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{folder}/data"
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            multiprocessing.set_start_method(method, force=True)
            os.environ.clear()
            os.environ.update(environment)
