"""Parity check of an exported network against PyTorch, on real images if the data set is available."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_exp.data.decode import decode
from alexnet_exp.data.identity import identify
from alexnet_exp.data.sources import FileSource
from alexnet_exp.data.streaming.dataset import StreamSource
from alexnet_exp.errors import UserError
from alexnet_exp.inference import LoadedClassifier
from alexnet_exp.targets import build, check_trust
from alexnet_exp.tracking.redact import with_passwords
from alexnet_exp.training.checkpoint.identity import changed_split

COUNT = 32
# Odd, even, wide and high, because the exported resize treats rows and columns apart.
_EXTRA = ((0, 0), (7, 0), (0, 13), (40, 3))  # by which noise images exceed the stored size, in pixels


class Parity(NamedTuple):
    """How close the outputs of an exported network are to PyTorch's.

    Args:
        images: Number of images compared.
        difference: Largest absolute difference of any output.
        agreeing: Number of images with the same top-1 prediction.
    """

    images: int
    difference: float
    agreeing: int

    def __str__(self) -> str:
        return f"largest difference {self.difference:.2g}, same top-1 for {self.agreeing} of {self.images} images"


def images_to_check(
    loaded: LoadedClassifier, trust: Sequence[str], data_dir: str
) -> tuple[list[Tensor], str]:
    """Return images for the check, each uint8 (H, W, 3) of its own size, and a description of their origin.

    Images of the checkpoint's data set, spread over the split; seeded noise if the data set cannot be read.

    Args:
        loaded: The checkpoint.
        trust: Packages whose classes it may name.
        data_dir: Where to look for the data set if it has moved since training.
    """
    try:
        return _real_images(_open(loaded, trust, data_dir), loaded)
    except (UserError, OSError) as error:
        return _noise(loaded), f"seeded noise, because the checkpoint's data cannot be read: {error}"


def _real_images(data: Any, loaded: LoadedClassifier) -> tuple[list[Tensor], str]:
    split = next(name for name in ("test", "val", "train") if len(data.sources.get(name, ())))
    source = data.sources[split]
    places = torch.linspace(0, len(source) - 1, min(COUNT, len(source))).long().tolist()
    if isinstance(source, StreamSource):
        images = [data.stored_image(split, place) for place in places]
    elif isinstance(source, FileSource):
        images = [decode(source.paths[place], 3) for place in places]
    else:
        images = [source.images[place] for place in places]
    where = f"{len(images)} images of the {split} split"
    if loaded.splits:
        now = identify(source, data.origins.get(split, ""))
        if changed := changed_split(loaded.splits, loaded.path, split, now):
            where = f"{where}; {changed}"
    # uint8 (1 or 3, H, W) -> (H, W, 3)
    return [image.expand(3, -1, -1).permute(1, 2, 0).contiguous() for image in images], where


def _open(loaded: LoadedClassifier, trust: Sequence[str], data_dir: str) -> Any:
    settings = with_passwords({**loaded.config["data"]}, "data")
    check_trust(settings, trust, "data")
    if "data_dir" in settings and not os.path.isdir(settings["data_dir"]):
        settings["data_dir"] = data_dir
    if "download" in settings:
        settings["download"] = False
    if settings.get("cache") is not None:
        settings["cache"] = "off"  # only a few images are needed
    data = build(
        settings, augment={**loaded.config["augment"], "mean_image": "none"}, seed=loaded.config["seed"]
    )
    data.setup()
    return data


def _noise(loaded: LoadedClassifier) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = loaded.preprocess.stored_size
    sizes = [(side + _EXTRA[i % 4][0], side + _EXTRA[i % 4][1], 3) for i in range(COUNT)]
    return [torch.randint(0, 256, size, generator=generator, dtype=torch.uint8) for size in sizes]


@torch.inference_mode()
def check(
    loaded: LoadedClassifier,
    run: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    preprocess: bool,
    batch: int | None = None,
) -> Parity:
    """Compare an exported network with the checkpoint in PyTorch.

    Args:
        loaded: The checkpoint.
        run: The exported network.
        images: uint8 (H, W, 3), of any sizes.
        preprocess: The exported network takes these images and returns probabilities.
        batch: The only batch size that it takes; None: any.
    """
    stored = torch.stack([loaded.preprocess.stored(image.numpy()) for image in images])
    inputs = loaded.preprocess.pipeline.evaluate(stored)  # (N, C, S, S)
    expected = loaded.model(inputs)
    if preprocess:
        expected = expected.softmax(1)
        groups = itertools.groupby(images, key=lambda image: image.shape)  # only equal sizes can be stacked
        parts = [torch.stack(list(group)) for _, group in groups]
    else:
        # Two batch sizes, since an exported graph may have fixed the one it was traced with.
        parts = [inputs[:1], inputs[1:]] if len(inputs) > 1 else [inputs]
    found = torch.cat([run(part) if batch is None else _in_batches(run, part, batch) for part in parts])
    agreeing = int((expected.argmax(1) == found.argmax(1)).sum())
    return Parity(len(images), float((expected - found).abs().max()), agreeing)


def _in_batches(run: Callable[[Tensor], Tensor], inputs: Tensor, batch: int) -> Tensor:
    """Run a network that takes exactly `batch` images; the last batch is filled up with copies of an image."""
    found = []
    for part in inputs.split(batch):
        missing = batch - len(part)
        found.append(run(torch.cat([part, part[:1].expand(missing, *part.shape[1:])]))[: len(part)])
    return torch.cat(found)
