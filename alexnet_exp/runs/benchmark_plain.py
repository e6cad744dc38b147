"""What people write by hand today: torchvision's transforms, image by image, in a DataLoader with a few workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_exp.config.compose import group
from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.data.streaming import StreamSource
from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark_workers import Workers

_KNOWN = ("flip", "pad", "crop", "resized_crop", "views")  # views are the test's


class PilImages(Dataset):
    """Images one at a time through Pillow, as torchvision.datasets.CIFAR10 and ImageFolder give them.

    Args:
        source: In memory or on disk; of decoded files, the files are read.
        transform: From a Pillow image to a tensor.

    Raises:
        UserError: For images that these do not read.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        source = _as_published(source)
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


def _as_published(source: Source) -> Source:
    """Return what others read: where pixels are kept decoded, the files that they came from.

    Raises:
        UserError: For images in chunks.
    """
    if isinstance(source, StreamSource):
        raise UserError("data=streaming is not compared with torchvision's loader: say data=folder.")
    if not isinstance(source, DecodedSource):
        return source
    numbers = torch.arange(len(source)) if source.numbers is None else source.numbers
    return source.files.subset(numbers)


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
    size, source = data.preprocess.image_size, _as_published(data.sources["train"])
    stored = source.images.shape[-1] if isinstance(source, ArraySource) else data.stored_size
    from_files = isinstance(source, FileSource)
    steps: list[Any] = [transforms.Grayscale()] if from_files and data.channels == 1 else []
    if augment["resized_crop"]:
        steps.append(transforms.RandomResizedCrop(size, **augment["resized_crop"]))
    else:
        if from_files:
            steps += [transforms.Resize(stored), transforms.CenterCrop(stored)]
        if augment["crop"] or augment["pad"]:
            side = min(stored, size) if augment["crop"] else stored
            steps.append(transforms.RandomCrop(side, padding=augment["pad"] or None))
        steps.append(transforms.Resize((size, size)))
    if augment["flip"]:
        steps.append(transforms.RandomHorizontalFlip())
    mean, std = data.preprocess.mean, data.preprocess.std
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


class PlainLoader:
    """A shuffled DataLoader without end, whose workers stand still while it is not its turn.

    Args:
        dataset: Of images.
        batch_size: Images.
        workers: Processes.
        device: Where the batches go.
    """

    def __init__(self, dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> None:
        self.device = device
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
        self._workers = Workers()

    def _endless(self) -> Generator[list[Tensor], None, None]:
        while True:
            for batch in self.loader:
                yield [tensor.to(self.device, non_blocking=True) for tensor in batch]

    def steps(self, count: int) -> Iterator[list[Tensor]]:
        """Yield so many batches; the workers work until the last one is done with."""
        with self._workers:
            yield from itertools.islice(self._batches, count)

    def __enter__(self) -> PlainLoader:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.free()
        self._batches.close()
        self.loader._iterator = None
