"""What people write by hand today: torchvision's transforms, image by image, in a DataLoader with a few workers."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_exp.config.compose import group
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import UserError

_KNOWN = ("flip", "pad", "crop", "resized_crop", "views")  # views are the test's


class PilImages(Dataset):
    """Images one at a time through Pillow, as torchvision.datasets.CIFAR10 and ImageFolder give them.

    Args:
        source: In memory or on disk.
        transform: From a Pillow image to a tensor.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform
        self.labels = source.labels.tolist()
        if isinstance(source, ArraySource):
            # (N, H, W, C) as torchvision keeps CIFAR-10; one channel has no last axis in Pillow
            pixels = source.images.permute(0, 2, 3, 1).contiguous().numpy()
            self.pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        else:
            self.paths = source.paths

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self._picture(index)), self.labels[index]

    def _picture(self, index: int) -> Image.Image:
        if hasattr(self, "pixels"):
            return Image.fromarray(self.pixels[index])
        with open(self.paths[index], "rb") as file:  # as torchvision's pil_loader
            return Image.open(file).convert("RGB")


def transform_of(data: ImageData, augment: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's transforms that do what the run's augmentation does.

    Args:
        data: Prepared; gives sizes and normalisation.
        augment: Keys of conf/augment.

    Raises:
        UserError: For an augmentation that they are not compared with.
    """
    from torchvision import transforms

    usual = group("augment", "none")
    if other := [key for key, value in augment.items() if value != usual.get(key) and key not in _KNOWN]:
        raise UserError(
            f"augment.{other[0]} is not compared with torchvision's: say augment=none, flip or flip_crop."
        )
    size, source = data.preprocess.image_size, data.sources["train"]
    steps: list[Any] = []
    if isinstance(source, FileSource) and not augment["resized_crop"]:
        steps += [transforms.Resize(data.stored_size), transforms.CenterCrop(data.stored_size)]
    if augment["resized_crop"]:
        steps.append(transforms.RandomResizedCrop(size, **augment["resized_crop"]))
    elif augment["crop"]:
        steps.append(transforms.RandomCrop(size))
    elif augment["pad"]:
        side = source.images.shape[-1] if isinstance(source, ArraySource) else data.stored_size
        steps.append(transforms.RandomCrop(side, padding=augment["pad"]))
    if not (augment["resized_crop"] or augment["crop"]):
        steps.append(transforms.Resize((size, size)))
    if augment["flip"]:
        steps.append(transforms.RandomHorizontalFlip())
    mean, std = data.preprocess.mean, data.preprocess.std
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def take(batches: PlainLoader | Iterator[Any], count: int) -> None:
    """Take so many batches and do nothing with them."""
    for _ in batches.steps(count) if isinstance(batches, PlainLoader) else itertools.islice(batches, count):
        pass


class PlainLoader:
    """A shuffled DataLoader without end, whose workers stand still while it is not its turn.

    Without this they would fill their queues in the time of the others: their work done for nothing, and the others'
    processors taken.

    Args:
        dataset: Of images.
        batch_size: Images.
        workers: Processes.
        device: Where the batches go.
    """

    def __init__(self, dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> None:
        self.device = device
        before = set(multiprocessing.active_children())
        self.loader = DataLoader(
            dataset,
            batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=len(dataset) >= batch_size,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )
        self._batches = self._endless()
        self._first: list[Any] = [next(self._batches)]  # the workers start with it
        self._pids = [child.pid for child in set(multiprocessing.active_children()) - before]
        self._send(signal.SIGSTOP)

    def _endless(self) -> Generator[Any, None, None]:
        while True:
            yield from self.loader

    def __iter__(self) -> PlainLoader:
        return self

    def __next__(self) -> list[Tensor]:
        batch = self._first.pop() if self._first else next(self._batches)
        return [tensor.to(self.device, non_blocking=True) for tensor in batch]

    def steps(self, count: int) -> Iterator[list[Tensor]]:
        """Yield so many batches; the workers work until the last one is done with."""
        self._send(signal.SIGCONT)
        try:
            for _ in range(count):
                yield next(self)
        finally:
            self._send(signal.SIGSTOP)

    def __enter__(self) -> PlainLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self._send(signal.SIGCONT)  # one that stands still would not hear that it is to end
        self._pids = []
        self._batches.close()
        self.loader._iterator = None

    def _send(self, number: int) -> None:
        for pid in self._pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has died: the loader says why
                    os.kill(pid, number)
