"""Chunks as training reads them, in LitData's own order. Imported where LitData is needed.

Resuming uses the public state of LitData's StreamingDataset, one for each worker. The state of its StreamingDataLoader
is not exact (0.2.76: two ranks of two workers resume with batches in another order, a short one too early); it starts
fewer workers where memory is short, which changes the order; and it knows nothing of other ranks' batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from litdata import StreamingDataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from alexnet_exp.data.decode import decode_bytes, stored
from alexnet_exp.errors import UserError

# It warns that training may hang when ranks have unequal shares; StreamLoader gives every rank the same steps.
logging.getLogger("litdata").setLevel(logging.ERROR)


class Chunks(StreamingDataset):
    """The images of one split; items are (position in the split, what was stored).

    Args:
        url: Folder or object storage.
        seed: Of the order; None keeps the order of the split.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, url: str, seed: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(url, shuffle=seed is not None, drop_last=False, seed=(seed or 0) % 2**32)
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
    """Decoded batches of one rank in one epoch, made in the workers of a DataLoader.

    Args:
        chunks: The split.
        shares: Images of each worker of this rank.
        skip: Images that each of them has given already.
        first: The worker whose turn it is.
        epoch: From 0.
        batch_size: Of this rank.
        channels: 1 or 3.
        size: Side of the stored images.
        url: For messages.
    """

    chunks: Chunks
    shares: list[int]
    skip: list[int]
    first: int
    epoch: int
    batch_size: int
    channels: int
    size: int
    url: str

    def __post_init__(self) -> None:
        self.state = self.chunks.state_dict(0, len(self.shares), 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | UserError | None]:
        info = get_worker_info()
        worker = info.id if info else 0
        if worker < self.first:
            yield None  # a DataLoader begins with the first worker, whose turn is over
        items = self._items(worker)
        for start in range(self.skip[worker], self.shares[worker], self.batch_size):
            count = min(self.batch_size, self.shares[worker] - start)
            try:
                decoded = [self._decoded(*next(items)) for _ in range(count)]
            except UserError as error:
                yield error  # raised by the loader: from a worker, torch would wrap it into a traceback
                return
            yield torch.stack([image for image, _ in decoded]), torch.tensor([i for _, i in decoded])

    def _items(self, worker: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Begin where this worker stands; whole chunks that it has given are not read again."""
        if self.skip[worker] >= self.shares[worker]:
            return iter(())
        num_workers = len(self.shares)
        self.chunks.set_num_workers(num_workers)
        self.chunks.set_epoch(self.epoch + 1)
        # LitData's own resume takes one number for all workers, and none above an equal share.
        jump = min(self.skip[worker], sum(self.shares) // num_workers)
        if jump:
            done = {"num_samples_yielded": jump * num_workers, "current_epoch": self.epoch + 1}
            self.chunks.load_state_dict({**self.state, **done})
        items = iter(self.chunks)
        for _ in range(self.skip[worker] - jump):
            next(items)
        return items

    def _decoded(self, index: int, item: dict[str, Any]) -> tuple[Tensor, int]:
        return decode_item(item, self.channels, self.size, self.url), index


def decode_item(item: dict[str, Any], channels: int, size: int, url: str) -> Tensor:
    """Return a stored item's image as training sees it, uint8 (channels, size, size)."""
    image = decode_bytes(item["image"], f"{url}/{item['name']}", channels, enough=2 * size)
    return stored(image, size)
