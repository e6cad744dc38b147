"""Whether an exported network computes what PyTorch computes: on real images where the data is there."""

from __future__ import annotations

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
_SIZES = ((0, 0), (7, 0), (0, 13), (40, 3))  # pixels that made-up images are larger than the stored ones


class Parity(NamedTuple):
    """How far an exported network is from the one in PyTorch.

    Args:
        images: How many were compared.
        difference: Largest of any output.
        agreeing: Images for which both have the same most probable class.
    """

    images: int
    difference: float
    agreeing: int

    def __str__(self) -> str:
        return f"largest difference {self.difference:.2g}, same top-1 for {self.agreeing} of {self.images} images"


def images_to_check(
    loaded: LoadedClassifier, trust: Sequence[str], data_dir: str
) -> tuple[list[Tensor], str]:
    """Return images to compare on, each uint8 (H, W, 3) of its own size, and where they are from.

    They are those of the checkpoint's own data if it is there, spread over the split; else noise from a fixed seed.

    Args:
        loaded: The checkpoint.
        trust: Packages whose classes it may name.
        data_dir: Where data sets lie here, if they are no longer where the checkpoint had them.
    """
    try:
        return _own_images(_open(loaded, trust, data_dir), loaded)
    except (UserError, OSError) as error:
        return _noise(loaded), f"seeded noise, since the checkpoint's own data cannot be read: {error}"


def _own_images(data: Any, loaded: LoadedClassifier) -> tuple[list[Tensor], str]:
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
        where = (
            f"{where}; {changed}"
            if (changed := changed_split(loaded.splits, loaded.path, split, now))
            else where
        )
    return [_as_rgb(image) for image in images], where


def _open(loaded: LoadedClassifier, trust: Sequence[str], data_dir: str) -> Any:
    settings = with_passwords({**loaded.config["data"]}, "data")
    check_trust(settings, trust, "data")
    if "data_dir" in settings and not os.path.isdir(settings["data_dir"]):
        settings["data_dir"] = data_dir
    if "download" in settings:
        settings["download"] = False
    if settings.get("cache") is not None:
        settings["cache"] = "off"  # a few images are needed, not all
    data = build(
        settings, augment={**loaded.config["augment"], "mean_image": "none"}, seed=loaded.config["seed"]
    )
    data.setup()
    return data


def _as_rgb(image: Tensor) -> Tensor:
    """Turn uint8 (1 or 3, H, W) into (H, W, 3)."""
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous()


def _noise(loaded: LoadedClassifier) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = loaded.preprocess.stored_size
    sizes = [(side + _SIZES[i % 4][0], side + _SIZES[i % 4][1], 3) for i in range(COUNT)]
    return [torch.randint(0, 256, size, generator=generator, dtype=torch.uint8) for size in sizes]


@torch.inference_mode()
def check(
    loaded: LoadedClassifier, run: Callable[[Tensor], Tensor], images: Sequence[Tensor], preprocess: bool
) -> Parity:
    """Compare an exported network with the checkpoint's own path through PyTorch.

    Args:
        loaded: The checkpoint.
        run: The exported network.
        images: uint8 (H, W, 3), of any sizes.
        preprocess: The exported network takes the images as they are and returns probabilities.
    """
    stored = torch.stack([loaded.preprocess.stored(image.numpy()) for image in images])
    inputs = loaded.preprocess.pipeline.evaluate(stored)  # (N, C, S, S)
    expected = loaded.model(inputs)
    if preprocess:
        expected = expected.softmax(1)
        found = torch.cat([run(batch) for batch in _batches(images)])
    else:
        found = torch.cat([run(inputs[:1]), run(inputs[1:])] if len(inputs) > 1 else [run(inputs)])
    agreeing = int((expected.argmax(1) == found.argmax(1)).sum())
    return Parity(len(images), float((expected - found).abs().max()), agreeing)


def _batches(images: Sequence[Tensor]) -> list[Tensor]:
    """Put neighbours of one size into one batch."""
    batches: list[list[Tensor]] = []
    for image in images:
        if batches and batches[-1][0].shape == image.shape:
            batches[-1].append(image)
        else:
            batches.append([image])
    return [torch.stack(batch) for batch in batches]
