"""Where images in memory are kept, and how their batches reach the device.

`device`: the whole set lies on the accelerator, and a batch is an index into it. `host`: it stays in main memory, and a
thread gathers the next batches into pinned memory and copies them on a stream of their own while the device computes.
`off`: gathered and copied when asked for. On the processor all three are the same memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from alexnet_exp.errors import UserError

T = TypeVar("T")
_SHARE = 0.25  # of the free memory that the images may take without being asked to
_DEPTH = 2  # batches on their way


def choose_place(wanted: str, num_bytes: int, device: torch.device) -> str:
    """Decide where images are kept.

    Args:
        wanted: 'auto', 'device', 'host' or 'off'.
        num_bytes: Of all splits together.
        device: That trains.

    Returns:
        'device', 'host' or 'off'; 'off' on a processor, where nothing has to be moved.

    Raises:
        UserError: If the device was asked for and has no room.
    """
    if device.type == "cpu":
        return "off"
    if wanted in ("host", "off") or device.type != "cuda":
        return "off" if wanted == "auto" else wanted  # mps shares the memory
    free, _ = torch.cuda.mem_get_info(device)
    if wanted == "device" and num_bytes > free:
        raise UserError(
            f"data.resident=device: the images take {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the device's "
            "memory are free; say data.resident=host."
        )
    return "device" if wanted == "device" or num_bytes <= _SHARE * free else "host"


def ahead(items: Iterator[T], depth: int = _DEPTH) -> Iterator[T]:
    """Make the next `depth` items on a thread while the current one is used; errors arrive in their turn."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in coming:
                future.cancel()


class Mover:
    """Copies batches to a CUDA device from a thread, on a stream of its own.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to copy pinned tensors; the function returned hands the copies to the current stream."""
        with torch.cuda.stream(self.stream):
            copies = [t.to(self.device, non_blocking=True) for t in tensors]
            done = self.stream.record_event()

        def receive() -> list[Tensor]:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            for copy in copies:
                copy.record_stream(current)  # its memory is not used again before this stream is done with it
            return copies

        return receive


def gather_pinned(images: Tensor, indices: Tensor) -> Tensor:
    """Return images[indices] in pinned memory."""
    out = torch.empty((len(indices), *images.shape[1:]), dtype=images.dtype, pin_memory=True)
    return torch.index_select(images, 0, indices, out=out)
