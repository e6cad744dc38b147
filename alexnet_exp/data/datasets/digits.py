"""The 1,797 handwritten digits that ship with the package: real images, no download, no set-up."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from alexnet_exp.data.sources import ArraySource, repeat_grey


def load(split: str, channels: int) -> ArraySource:
    """Return the digits, uint8 (N, channels, 8, 8).

    Every fifth image of each class, in file order, is a test image: 1,442 train, 355 test. All thirteen writers are in
    both splits, so the test measures accuracy on new digits by known writers.

    Args:
        split: "train" or "test".
        channels: 1, or 3 for the grey value repeated.

    Source: UCI Optical Recognition of Handwritten Digits, optdigits.tes; see files/digits.txt.
    """
    with (files("alexnet_exp.data") / "files" / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images = torch.from_numpy(arrays["images"])  # (1797, 8, 8), values 0 to 16
        labels = torch.from_numpy(arrays["labels"]).long()
    part = torch.nonzero(_is_test(labels) == (split == "test")).flatten()
    grey = ((images[part].int() * 255 + 8) // 16).to(torch.uint8)  # round(x * 255 / 16)
    classes = tuple("0123456789")
    return ArraySource(repeat_grey(grey, channels), labels[part], classes, f"digits {split}")


def _is_test(labels: torch.Tensor) -> torch.Tensor:
    """Mark every fifth image of each class, as bool (N,)."""
    counts = (labels[:, None] == torch.arange(10)).long().cumsum(0)  # (N, 10): images of each class so far
    return counts.gather(1, labels[:, None])[:, 0] % 5 == 0
