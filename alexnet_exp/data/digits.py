"""The 1,797 handwritten digits that come with the package: real images, no network, no set-up."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from alexnet_exp.data.sources import ArraySource, repeat_grey

TRAIN_IMAGES = 1437


def load(split: str, channels: int) -> ArraySource:
    """Return the digits, uint8 (N, channels, 8, 8).

    The first 1,437 images in file order are the training set, the last 360 the test set. Thirteen people
    wrote them; the file does not say who wrote which, so some may be in both parts.

    Args:
        split: "train" or "test".
        channels: 1, or 3 for the grey value repeated.

    Source: UCI Optical Recognition of Handwritten Digits, optdigits.tes; see files/digits.txt.
    """
    with (files("alexnet_exp.data") / "files" / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images = torch.from_numpy(arrays["images"])  # (1797, 8, 8), values 0 to 16
        labels = torch.from_numpy(arrays["labels"]).long()
    part = {"train": slice(None, TRAIN_IMAGES), "test": slice(TRAIN_IMAGES, None)}[split]
    grey = ((images[part].int() * 255 + 8) // 16).to(torch.uint8)  # round(x * 255 / 16)
    classes = tuple("0123456789")
    return ArraySource(repeat_grey(grey, channels), labels[part], classes, f"digits {split}")
