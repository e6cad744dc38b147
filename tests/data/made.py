"""A data set of random images in memory, for tests of what all data sets share."""

from __future__ import annotations

from typing import Any

import torch

from alexnet_exp.data import ImageData
from alexnet_exp.data.module import Source
from alexnet_exp.data.sources import ArraySource

COMMON: dict[str, Any] = {"batch_size": 5, "image_size": 6, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
CLASSES = ("ant", "bee", "cat")


def arrays(count: int, split: str, seed: int, side: int = 6) -> ArraySource:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return ArraySource(images, torch.arange(count) % 3, CLASSES, f"made {split}")


class Made(ImageData):
    """Random images: 22 for training, 9 for testing, and 6 for validation if `own_val`."""

    def __init__(self, own_val: bool = False, test: bool = True, **options: Any) -> None:
        super().__init__(**{**COMMON, **options})
        self.counts = {"train": 22} | ({"val": 6} if own_val else {}) | ({"test": 9} if test else {})
        self.loads = 0

    def load(self) -> dict[str, Source]:
        self.loads += 1
        return {split: arrays(count, split, seed=i) for i, (split, count) in enumerate(self.counts.items())}
