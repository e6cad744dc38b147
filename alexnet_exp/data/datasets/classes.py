"""The data modules behind conf/data/."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from alexnet_exp.data.cache import Cache
from alexnet_exp.data.datasets import cifar10, digits, folder, mnist
from alexnet_exp.data.datasets.holdout import describe_automatic
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import FileSource
from alexnet_exp.data.verify import Verifier
from alexnet_exp.errors import UserError


class Digits(ImageData):
    """The handwritten digits that ship with this package."""

    def load(self) -> dict[str, Source]:
        sources = {split: digits.load(split, self.channels) for split in ("train", "test")}
        return {
            split: replace(source, origin=f"the digits' {split} part") for split, source in sources.items()
        }


class _Downloadable(ImageData):
    """A data set that can be downloaded, in torchvision's layout."""

    def __init__(self, data_dir: str, download: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.data_dir, self.download = data_dir, download


class CIFAR10(_Downloadable):
    """CIFAR-10.

    Args:
        data_dir: Folder that contains cifar-10-batches-py/.
        download: Download missing files.
        common: See `ImageData`.
    """

    def load(self) -> dict[str, Source]:
        origins = {"train": "CIFAR-10's training batches", "test": "CIFAR-10's test batch"}
        return {
            s: replace(cifar10.load(self.data_dir, s, self.download), origin=o) for s, o in origins.items()
        }


class MNIST(_Downloadable):
    """MNIST, padded to 32 x 32.

    Args:
        data_dir: Folder that contains MNIST/raw/.
        download: Download missing files.
        common: See `ImageData`.
    """

    def load(self) -> dict[str, Source]:
        origins = {"train": "MNIST's training images", "test": "MNIST's test images"}
        load = partial(mnist.load, self.data_dir, channels=self.channels, download=self.download)
        return {split: replace(load(split), origin=origin) for split, origin in origins.items()}


class Folder(ImageData):
    """Images in one folder per class.

    Args:
        root: root/train/CLASS/* and root/val/CLASS/*, or root/CLASS/* with `val_fraction`.
        val_fraction: Share of every class to hold out for validation, if there is no val folder. 'auto': a fifth of
            root/CLASS/*, else nothing.
        cache: Keep decoded images: 'auto', 'ram', 'disk' or 'off' (data/cache.py).
        cache_dir: Where on disk; None: the user's cache folder.
        verify: Decode every file once up front, and fail at the first that is not an image.
        on_bad_image: 'error', or 'skip' to verify and leave out the bad files.
        follow_links: Follow links that point outside the folder.
        exclude: File with names relative to `root`, one per line: images to leave out.
        common: See `ImageData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float | str | None = None,
        cache: str = "off",
        cache_dir: str | None = None,
        verify: bool = False,
        on_bad_image: str = "error",
        follow_links: bool = False,
        exclude: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.val_fraction, self.follow_links = root, val_fraction, follow_links
        self.cache, self.cache_dir = cache, cache_dir
        self.verify, self.on_bad_image, self.exclude = verify, on_bad_image, exclude
        self.bad_images: int | None = None  # files left out; None if they were not verified
        self._automatic = ""  # about the split of val_fraction='auto'

    def load(self) -> dict[str, Source]:
        fraction, in_folds = self.val_fraction, self.folds is not None
        if isinstance(fraction, str):
            if fraction != "auto":
                raise UserError(
                    f"invalid val_fraction={fraction!r}: expected a number in (0, 1), auto, or None."
                )
            fraction = folder.automatic_fraction(self.root, self.split_rule, in_folds)
            self.chosen["val_fraction"] = fraction
        found = folder.scan(
            self.root, fraction, self.val_seed, self.follow_links, self.find_bad_images(),
            rule=self.split_rule, in_folds=in_folds, exclude=self.exclude,
        )  # fmt: skip
        if self.chosen and fraction:
            self._automatic = describe_automatic(self.root, found, fraction, self.split_rule)
        return dict(found)

    def tell(self, say: Callable[[str], None]) -> None:
        super().tell(say)
        if self._automatic:
            say(self._automatic)

    def find_bad_images(self) -> folder.BadImages | None:
        """Return the function that finds files to leave out, or None if files are not verified.

        Files are skipped before the first epoch: dropping one in the middle would shift all images after it.
        """
        return self._bad_images if self.verify or self.on_bad_image == "skip" else None

    @property
    def needs_for_validation(self) -> str:
        return f"set data.val_fraction=0.1, or add the folder {os.path.join(self.root, 'val')}"

    @property
    def needs_for_test(self) -> str:
        if folder.split_folders(os.path.expanduser(self.root), self.split_rule):
            return f"For a test, add the folder {os.path.join(self.root, 'test')}."
        folders = [os.path.join(self.root, split) for split in ("train", "val", "test")]
        return f"For a test, sort the classes into {folders[0]}, {folders[1]} and {folders[2]}."

    def _bad_images(self, paths: list[str], root: str) -> set[str]:
        skip = self.on_bad_image == "skip"
        verifier = Verifier(skip, self.cache_dir, self.channels, self.stored_size, self._workers())
        bad = verifier.bad_images(paths, root)
        self.bad_images = len(bad)
        return bad

    def decoded(self, sources: dict[str, Source]) -> dict[str, Source]:
        files = {split: source for split, source in sources.items() if isinstance(source, FileSource)}
        sizes = self.channels, self.stored_size
        cache = Cache(self.cache, self.cache_dir, *sizes, self._workers(), self.fit, self.train_fit)
        return {**sources, **cache.keep(files)}
