"""Batches from chunks: LitData decides their images; resumes exactly inside an epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alexnet_exp.data import workers
from alexnet_exp.data.decode import WHOLE
from alexnet_exp.data.loaders import Batch, BatchPlan, Loader
from alexnet_exp.data.randomness import mix
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError

if TYPE_CHECKING:
    from alexnet_exp.data.streaming.chunks import Chunks


log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class StreamPlan(BatchPlan):
    """The batch sizes of every rank; LitData decides which images they hold.

    Args:
        chunks: The split, as read by this rank.
        num_workers: Workers per rank.
    """

    chunks: Chunks
    num_workers: int
    _sizes: tuple[int, list[list[int]]] | None = field(default=None, init=False)  # epoch, sizes

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.world_size

    def shares(self) -> list[list[int]]:
        """Return the number of images of each worker of each rank in this epoch."""
        return self.chunks.shares(self.num_workers, self.order_epoch())

    def sizes(self) -> list[list[int]]:
        """Return the number of images of each rank in every batch of this epoch; 0 if a rank has run out."""
        if self._sizes is None or self._sizes[0] != self.order_epoch():
            ranks = ([size for _, size in turns(share, self.rank_batch)] for share in self.shares())
            self._sizes = self.order_epoch(), [list(step) for step in zip_longest(*ranks, fillvalue=0)]
        return self._sizes[1]

    def images(self, batches: range) -> int:
        return sum(map(sum, self.sizes()[batches.start : batches.stop]))

    def smallest_slice(self, batches: int) -> int:
        return max(1, min(map(min, self.sizes()[:batches])))

    def smallest_batch(self, batches: int) -> int:
        return min(map(sum, self.sizes()[:batches]))

    def __len__(self) -> int:
        return len(self.sizes())


def turns(share: list[int], size: int) -> list[tuple[int, int]]:
    """Return (worker, images) of every batch: workers take turns, each until its share is used up.

    For example, shares [5, 3] in batches of two give (0, 2), (1, 2), (0, 2), (1, 1), (0, 1).
    """
    rounds = range(-(-max(share) // size))
    return [
        (worker, min(size, count - size * turn))
        for turn in rounds
        for worker, count in enumerate(share)
        if count > size * turn
    ]


class StreamLoader(Loader):
    """Batches of a split in LitData's order, with the same number of steps on every rank.

    Args:
        source: Labels and names.
        plan: Batch sizes.
        channels: 1 or 3.
        stored_size: Side of the stored images.
        num_workers: Worker processes; 0 decodes in this process.
        pin_memory: Whether to pin batches for transfer to CUDA.
        fit: How images become square; see `decode.stored`.
    """

    sampler: StreamPlan

    def __init__(
        self, source: FileSource, plan: StreamPlan, channels: int, stored_size: int, num_workers: int,
        pin_memory: bool = False, fit: str = "crop",
    ) -> None:  # fmt: skip
        super().__init__(plan)
        self.fit = fit
        self.source, self.num_workers, self.pin_memory = source, num_workers, pin_memory
        self.channels, self.stored_size = channels, stored_size

    def state_dict(self) -> dict[str, int]:
        plan = self.sampler
        dealt = {"workers": plan.num_workers, "ranks": plan.world_size, "left": len(plan) - plan.taken}
        return super().state_dict() | dealt

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches already taken; warn if the number of workers or ranks has changed."""
        super().load_state_dict(state)
        plan = self.sampler
        before = state.get("workers", plan.num_workers), state.get("ranks", plan.world_size)
        if before != (plan.num_workers, plan.world_size) and state["batches"] and state.get("left"):
            log.warning(
                "This epoch started with data.num_workers=%d on %d devices and continues with %d on %d: some images "
                "will be used twice and others not at all.",
                *before, plan.num_workers, plan.world_size,
            )  # fmt: skip

    def _batches(self) -> Iterator[Batch]:
        plan, start = self.sampler, self.sampler.start()
        reader = workers.start(self._reader(turns(plan.shares()[plan.rank], plan.rank_batch), start))
        decoded = (found for found in reader if found is not None)
        spare = self._spare()
        for step in range(start, len(plan)):
            total = plan.images(range(step, step + 1))
            # Other ranks still have images: join their collectives, with weight 0.
            if not plan.sizes()[step][plan.rank]:
                yield Batch(*spare, 0, total)
                continue
            found = next(decoded)
            if isinstance(found, UserError):
                raise found
            images, aspects, indices = found
            aspects = aspects if self.fit == WHOLE else None
            batch = Batch(images, self.source.labels[indices], indices, len(indices), total, aspects)
            spare = (batch.images[:1], batch.labels[:1], batch.indices[:1])
            yield batch

    def _reader(self, own: list[tuple[int, int]], start: int) -> DataLoader:
        from alexnet_exp.data.streaming.chunks import Reader

        plan = self.sampler
        share = plan.shares()[plan.rank]
        skip = [sum(size for worker, size in own[:start] if worker == w) for w in range(len(share))]
        first = own[start][0] if start < len(own) else 0
        # Made for every epoch: a worker gets its place in the chunks when it starts, so none can be kept.
        reader = Reader(
            plan.chunks, share, skip, first, plan.order_epoch(), plan.rank_batch, self.channels, self.stored_size,
            self.fit, self.source.root,
        )  # fmt: skip
        return DataLoader(
            reader,
            # The reader makes the batches. A batch has the images of one worker, since each reads its own chunks.
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            worker_init_fn=workers.ignore_signals,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(mix("workers")),
        )

    def _spare(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a placeholder image for a rank without any image in this epoch."""
        side = self.stored_size
        none = torch.zeros(1, dtype=torch.long)
        return torch.zeros((1, self.channels, side, side), dtype=torch.uint8), none, none


def _unchanged(found: Any) -> Any:
    return found
