"""Loaders: global batch i of epoch e holds the same images on any number of devices.

Each global batch is split into one slice per rank, so every rank takes the same number of steps and the partial last
batch is kept. Loaders save their position, so a run can resume in the middle of an epoch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from alexnet_exp.data import workers
from alexnet_exp.data.decode import WHOLE, read_with_aspect
from alexnet_exp.data.randomness import balanced_order, mix, permutation
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import UserError
from alexnet_exp.torch_internals import end_workers


class Batch(NamedTuple):
    """One rank's slice of a global batch.

    images (N, C, H, W): uint8 as stored, float after augmentation. labels (N,) int64. indices (N,) int64: key of each
    image's augmentation; its position in the split, plus the split's length for each earlier time in the epoch that
    balanced sampling drew the same image. size: how many of the N count; 0 for a rank whose slice is empty, which
    carries one dummy image so that all ranks step together, else N. global_size: images over all ranks. aspects (N,)
    float32: width over height of the original images, where the stored ones are these squashed (decode.WHOLE).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    size: int
    global_size: int
    aspects: Tensor | None = None


class Slice(NamedTuple):
    """Indices of the images in a rank's part of a global batch; see `Batch`."""

    indices: Tensor
    size: int
    global_size: int


@dataclass(eq=False)
class BatchPlan(Sampler):
    """Which images make up each batch: a function of (seed, epoch) only.

    Args:
        num_images: Images in the split.
        batch_size: Global batch size, over all ranks.
        seed: Shuffles; None keeps the order of the split.
        order: A fixed order to use without a seed.
        labels: (N,) labels, to shuffle such that classes come equally often.
        rank: Of this process.
        world_size: Number of processes.
        repeated: Every epoch repeats the images and the order of the first.
    """

    num_images: int
    batch_size: int
    seed: int | None = None
    rank: int = 0
    world_size: int = 1
    repeated: bool = False
    epoch: int = 0
    resume: tuple[int, int] | None = None  # (epoch, batches already taken)
    taken: int = 0
    device: torch.device | None = None  # of the indices: one copy per epoch instead of one per batch
    order: Tensor | None = None
    labels: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, and rewind to its first batch."""
        self.epoch = epoch
        self.taken = self.start()

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Slice]:
        order = torch.arange(self.num_images) if self.order is None else self.order
        if self.seed is not None and self.labels is not None:
            order = balanced_order(self.labels, self.seed, self.order_epoch())
        elif self.seed is not None:
            order = permutation(self.num_images, "order", self.seed, self.order_epoch())
        order = order.to(self.device)
        for batch in range(self.start(), len(self)):
            yield self._slice(order[batch * self.batch_size : (batch + 1) * self.batch_size])

    def positions(self, indices: Tensor) -> Tensor:
        """Map `Batch.indices` to positions in the split."""
        return indices if self.labels is None else indices % self.num_images

    def images(self, batches: range) -> int:
        """Return the number of images in a range of batches, over all ranks."""
        return min(batches.stop * self.batch_size, self.num_images) - batches.start * self.batch_size

    def smallest_slice(self, batches: int) -> int:
        """Return the size of the smallest slice of the first `batches`; an empty one carries a dummy image."""
        return max(1, self.smallest_batch(batches) // self.world_size)

    def smallest_batch(self, batches: int) -> int:
        """Return the size of the smallest of the first `batches`, over all ranks."""
        return self.images(range(batches - 1, batches))

    def order_epoch(self) -> int:
        """Return the epoch whose order is used."""
        return 0 if self.repeated else self.epoch

    def start(self) -> int:
        """Return the first batch of this epoch: 0 unless it resumes in the middle."""
        return self.resume[1] if self.resume and self.resume[0] == self.epoch else 0

    def _slice(self, batch: Tensor) -> Slice:
        part = share(len(batch), self.rank, self.world_size)
        own = batch[part.start : part.stop]
        return Slice(own if len(own) else batch[:1], len(own), len(batch))  # batch[:1]: the dummy image


def share(count: int, rank: int, world_size: int) -> range:
    """Return which of the `count` images of a global batch belong to a rank."""
    # The ends of neighbours meet, and no two parts differ by more than one image.
    return range(count * rank // world_size, count * (rank + 1) // world_size)


class Loader:
    """What Lightning expects of a loader: length, epoch (through `sampler`), and a position to save."""

    batch_sampler = None

    def __init__(self, plan: BatchPlan) -> None:
        self.sampler = plan

    def __len__(self) -> int:
        return len(self.sampler)

    def _batches(self) -> Iterator[Batch]:
        raise NotImplementedError

    def close(self) -> None:
        """Shut down workers; the next pass starts them again."""

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that the epoch is read at the first batch: Lightning sets it after calling iter().
        self.sampler.taken = self.sampler.start()
        for batch in self._batches():
            self.sampler.taken += 1
            yield batch
        self.sampler.resume = None

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches": self.sampler.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.resume = (state["epoch"], state["batches"])
        self.sampler.taken = self.sampler.start()


class ArrayLoader(Loader):
    """Batches of an in-memory source, by indexing: no workers, no collation.

    Args:
        source: The images, on the training device or in host memory.
        plan: Which images make up each batch.
        send_to: A CUDA device to prefetch batches to, on a thread; None: batches stay where the images are.
    """

    def __init__(self, source: ArraySource, plan: BatchPlan, send_to: torch.device | None = None) -> None:
        super().__init__(plan)
        self.source, self.send_to = source, send_to
        # One for all epochs: each CUDA stream caches its own device memory.
        self._mover: Mover | None = None
        plan.device = source.images.device

    def _batches(self) -> Iterator[Batch]:
        if self.send_to is not None:
            self._mover = self._mover or Mover(self.send_to)
            yield from self._prefetched(self._mover)
            return
        images, labels, aspects = self.source.images, self.source.labels, self.source.aspects
        for i, size, global_size in self.sampler:
            at = self.sampler.positions(i)
            part = None if aspects is None else aspects[at]
            yield Batch(images.index_select(0, at), labels[at], i, size, global_size, part)

    def _prefetched(self, mover: Mover) -> Iterator[Batch]:
        def send(part: Slice) -> tuple[Slice, Callable[[], list[Tensor]]]:
            at = self.sampler.positions(part.indices)
            source = self.source
            kept = [source.images, source.labels, *([] if source.aspects is None else [source.aspects])]
            pinned = [gather_pinned(x, at) for x in kept]
            return part, mover.send([*pinned, part.indices.pin_memory()])

        # A new thread defaults to GPU 0, where its first CUDA call would create a context that is never freed.
        enter = partial(torch.cuda.set_device, mover.device)
        for part, receive in ahead(map(send, self.sampler), enter=enter):
            images, labels, *aspects, indices = receive()
            yield Batch(images, labels, indices, part.size, part.global_size, *aspects)


class FileLoader(Loader):
    """Batches of image files, decoded by persistent worker processes.

    Args:
        source: The files.
        plan: Which images make up each batch.
        channels: 1 or 3.
        stored_size: Side of the square that images are resized to, in pixels.
        num_workers: Decoding processes; 0 decodes in this process.
        pin_memory: Pin batches, for a CUDA device.
        fit: How images are made square; see `decode.stored`.
    """

    def __init__(
        self,
        source: FileSource,
        plan: BatchPlan,
        channels: int,
        stored_size: int,
        num_workers: int,
        pin_memory: bool = False,
        fit: str = "crop",
    ) -> None:
        super().__init__(plan)
        self._decoder = _Decoder(source, channels, stored_size, num_workers, fit)
        self._loader: DataLoader = DataLoader(
            self._decoder,
            batch_size=None,
            sampler=_Lists(plan),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=_unchanged,
            worker_init_fn=workers.ignore_signals,
            pin_memory=pin_memory,
            # A DataLoader draws a base seed every pass: from the global generator, that would shift later draws.
            generator=torch.Generator().manual_seed(mix("workers")),
        )

    def _batches(self) -> Iterator[Batch]:
        for batch in workers.start(self._loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def close(self) -> None:
        with self._decoder.cancelled():
            end_workers(self._loader)


class _Lists(Sampler):
    """Passes a plan to the workers as plain lists: each tensor in a queue holds a file descriptor."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[tuple[list[int], int, int]]:
        for indices, size, global_size in self.plan:
            yield indices.tolist(), size, global_size


def _unchanged(batch: Any) -> Any:
    return batch


class _Decoder(Dataset):
    def __init__(
        self, source: FileSource, channels: int, stored_size: int, num_workers: int, fit: str
    ) -> None:
        self.source, self.channels, self.stored_size, self.fit = source, channels, stored_size, fit
        # Set while nobody waits for the batches being decoded.
        self._cancel = multiprocessing.Event() if num_workers else threading.Event()

    @contextlib.contextmanager
    def cancelled(self) -> Iterator[None]:
        """Let the workers drop the batches in progress: a batch of large images takes seconds."""
        self._cancel.set()
        try:
            yield
        finally:
            self._cancel.clear()

    def __getitem__(self, wanted: tuple[list[int], int, int]) -> Batch | UserError:
        numbers, size, global_size = wanted
        try:
            paths = [self.source.paths[i % len(self.source)] for i in numbers]  # see Batch.indices
            found = [
                read_with_aspect(path, self.channels, self.stored_size, self.fit)
                for path in paths
                if not self._cancel.is_set()
            ]
        except UserError as error:
            # Returned, and raised by the loader: torch would wrap an exception raised here into a traceback.
            return error
        if len(found) < len(numbers):
            return UserError("The batch was cancelled.")  # never read
        indices = torch.tensor(numbers)
        labels = self.source.labels[indices % len(self.source)]
        images, sides = zip(*found, strict=True)
        aspects = torch.tensor(sides) if self.fit == WHOLE else None
        return Batch(torch.stack(images), labels, indices, size, global_size, aspects)


T = TypeVar("T")
_SHARE = 0.25  # of the free device memory that data.resident=auto may use
_DEPTH = 2  # batches to prefetch


def choose_place(wanted: str, num_bytes: int, device: torch.device) -> str:
    """Decide where images are kept.

    Args:
        wanted: 'auto', 'device', 'host' or 'off'.
        num_bytes: Size of all splits together.
        device: The training device.

    Returns:
        'device', 'host' or 'off'; always 'off' on CPU, where nothing has to be moved.

    Raises:
        UserError: If 'device' was asked for and the images do not fit.
    """
    if device.type == "cpu":
        return "off"
    if wanted in ("host", "off") or device.type != "cuda":
        return "off" if wanted == "auto" else wanted  # mps shares host memory
    free, _ = torch.cuda.mem_get_info(device)
    if wanted == "device" and num_bytes > free:
        raise UserError(
            f"data.resident=device: the images take {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the device's "
            "memory are free; use data.resident=host."
        )
    return "device" if wanted == "device" or num_bytes <= _SHARE * free else "host"


def ahead(items: Iterator[T], depth: int = _DEPTH, enter: Callable[[], object] | None = None) -> Iterator[T]:
    """Prefetch the next `depth` items on a thread; an error is raised when its item is due.

    Args:
        items: What to prefetch.
        depth: How many items ahead.
        enter: Called once by the thread, before the first item.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=enter) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in coming:
                future.cancel()


class Mover:
    """Copies batches to a CUDA device from a thread, on its own stream.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Start copying pinned tensors; call the returned function for the copies, on the stream that uses them."""
        with torch.cuda.stream(self.stream):
            copies = [t.to(self.device, non_blocking=True) for t in tensors]
            done = self.stream.record_event()

        def receive() -> list[Tensor]:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            for copy in copies:
                copy.record_stream(current)  # do not reuse its memory before this stream is done with it
            return copies

        return receive


def gather_pinned(images: Tensor, indices: Tensor) -> Tensor:
    """Return images[indices] in pinned memory."""
    # Gathered straight into pinned memory; indexing first and pinning then would copy every batch twice.
    out = torch.empty((len(indices), *images.shape[1:]), dtype=images.dtype, pin_memory=True)
    return torch.index_select(images, 0, indices, out=out)
