"""A run against the hand-written PIL loop of tutorials and READMEs, both from image files to weight updates.

    python benchmarks/baseline.py [settings of train] [workers=2 repeats=7 steps=20 ...]

The loop puts images one by one through Pillow and torchvision's transforms, in a DataLoader with a few workers.
"""

from __future__ import annotations

from script import Settings, run

# isort: split

import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from overhead import take_turns
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from alexnet_exp.config.compose import group
from alexnet_exp.config.schema import at_least
from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.data.streaming.dataset import StreamSource
from alexnet_exp.errors import UserError
from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs.benchmark.loop import TurnLoader, fresh
from alexnet_exp.runs.benchmark.subject import Subject, title
from alexnet_exp.runs.benchmark.timing import Row, rows
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.startup import usual_limits
from alexnet_exp.training.optim.build import build_optimizer

SETTINGS: Settings = {"workers": (2, at_least(1))}  # worker processes of the DataLoader
_KNOWN = ("flip", "pad", "crop", "resized_crop", "views")  # views affect only the test


def measure_baseline(subject: Subject) -> list[Row]:
    """Time a training step of `Trainer`, and one of the loop in tutorials and READMEs.

    The loop has the same network in float32 with nn.LocalResponseNorm, torch's default optimizer implementation, each
    image separately through Pillow, ToTensor and Normalize in a DataLoader, loss.item() in every step, and the
    allocator's default limits.

    Returns:
        Two rows; `ratio` of the first is how many times faster ours is.
    """
    fit = subject.fit(tracked=True)
    images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
    device = fit.trainer.strategy.root_device
    with PlainLoader(images, fit.data.batch_size, subject.further["workers"], device) as loader:
        loop = _Loop(fit, loader)
        with usual_limits():
            loop.steps(1)  # starts the workers
        times = take_turns(fit, loop.steps, subject, around=usual_limits)
    ours = f"ours: Trainer, {fit.trainer.precision}"
    named = {ours: times["ours"], "the hand-written PIL loop, 32-true": times["theirs"]}
    what = f"baseline: {title(fit, subject.overrides)}"
    return rows(what, named, fit.data.batch_size, list(named)[1])


class _Loop:
    def __init__(self, fit: Fit, loader: PlainLoader) -> None:
        self.model = with_torch_lrn(fresh(fit)).to(fit.trainer.strategy.root_device).train()
        self.optimizer = build_optimizer(self.model, fit.config["optimizer"], fused=False)
        self.loader = loader
        self.running_loss = 0.0

    def steps(self, count: int) -> None:
        for images, labels in self.loader.steps(count):
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.running_loss += loss.item()


def with_torch_lrn(net: nn.Module) -> nn.Module:
    """Replace our local response normalisation with torch's, in place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LocalResponseNorm):
                torch_lrn = nn.LocalResponseNorm(child.size, child.alpha, child.beta, child.k)
                setattr(parent, name, torch_lrn if child.groups == 1 else _Towers(torch_lrn, child.groups))
    return net


class _Towers(nn.Module):
    """Normalise each group of channels separately; nn.LocalResponseNorm has no groups."""

    def __init__(self, layer: nn.Module, groups: int) -> None:
        super().__init__()
        self.layer, self.groups = layer, groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(tower) for tower in x.chunk(self.groups, 1)], 1)


class PilImages(Dataset):
    """Images one at a time through Pillow, as from torchvision.datasets.CIFAR10 and ImageFolder.

    Args:
        source: In memory or on disk; of cached images, the original files are read.
        transform: From a PIL image to a tensor.

    Raises:
        UserError: Images that torchvision's data sets cannot read.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        source = _as_published(source)
        self.transform = transform
        self.labels = source.labels.tolist()
        if isinstance(source, ArraySource):
            # (N, H, W, C) as in torchvision's CIFAR10; (N, H, W) for one channel, as Pillow expects
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
    """Return the images as published: for the decoded cache, the original files.

    Raises:
        UserError: Images in chunks.
    """
    if isinstance(source, StreamSource):
        raise UserError("data=streaming is not compared with torchvision's loader: set data=folder.")
    if not isinstance(source, DecodedSource):
        return source
    numbers = torch.arange(len(source)) if source.numbers is None else source.numbers
    return source.files.subset(numbers)


def transform_of(data: ImageData, augment: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Return the torchvision equivalent of the run's augmentation.

    Args:
        data: Prepared data module, for sizes and normalisation.
        augment: Keys of conf/augment.

    Raises:
        UserError: An augmentation without an equivalent here.
    """
    from torchvision import transforms

    usual = group("augment", "none")
    if other := [key for key, value in augment.items() if value != usual.get(key) and key not in _KNOWN]:
        raise UserError(
            f"augment.{other[0]} is not compared with torchvision's: set augment=none, flip or flip_crop."
        )
    size, source = data.preprocess.image_size, _as_published(data.sources["train"])
    stored = source.images.shape[-1] if isinstance(source, ArraySource) else data.stored_size
    from_files = isinstance(source, FileSource)
    steps: list[Any] = [transforms.Grayscale()] if from_files and data.channels == 1 else []
    if augment["resized_crop"]:
        box = augment["resized_crop"]  # of the whole image
        steps.append(transforms.RandomResizedCrop(size, box["scale"], box["ratio"]))
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


class PlainLoader(TurnLoader[list[Tensor]]):
    """An endless shuffled DataLoader whose workers pause outside their turn.

    Args:
        dataset: Images and labels.
        batch_size: Images per batch.
        workers: Worker processes.
        device: Device of the batches.
    """

    def __init__(self, dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> None:
        self.loader = DataLoader(
            dataset,
            batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=len(dataset) >= batch_size,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

        def endless() -> Generator[list[Tensor], None, None]:
            while True:
                for batch in self.loader:
                    yield [tensor.to(device, non_blocking=True) for tensor in batch]

        # A DataLoader shuts persistent workers down when its iterator is deleted.
        super().__init__(endless(), lambda: setattr(self.loader, "_iterator", None))


if __name__ == "__main__":
    sys.exit(run(measure_baseline, SETTINGS))
