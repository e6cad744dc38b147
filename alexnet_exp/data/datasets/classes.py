"""The data sets of conf/data/."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from alexnet_exp.data.cache import Cache
from alexnet_exp.data.datasets import cifar10, digits, folder, mnist
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import FileSource
from alexnet_exp.data.verify import Verifier


class Digits(ImageData):
    """The embedded handwritten digits."""

    def load(self) -> dict[str, Source]:
        sources = {split: digits.load(split, self.channels) for split in ("train", "test")}
        return {
            split: replace(source, origin=f"the digits' {split} part") for split, source in sources.items()
        }


class _Published(ImageData):
    """A data set that can be downloaded, in torchvision's layout."""

    def __init__(self, data_dir: str, download: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.data_dir, self.download = data_dir, download


class CIFAR10(_Published):
    """CIFAR-10.

    Args:
        data_dir: Folder that holds cifar-10-batches-py/.
        download: Whether missing files may be fetched.
        common: See `ImageData`.
    """

    def load(self) -> dict[str, Source]:
        origins = {"train": "CIFAR-10's training batches", "test": "CIFAR-10's test batch"}
        return {
            s: replace(cifar10.load(self.data_dir, s, self.download), origin=o) for s, o in origins.items()
        }


class MNIST(_Published):
    """MNIST, padded to 32 x 32.

    Args:
        data_dir: Folder that holds MNIST/raw/.
        download: Whether missing files may be fetched.
        common: See `ImageData`.
    """

    def load(self) -> dict[str, Source]:
        origins = {"train": "MNIST's training images", "test": "MNIST's test images"}
        load = partial(mnist.load, self.data_dir, channels=self.channels, download=self.download)
        return {split: replace(load(split), origin=origin) for split, origin in origins.items()}


class Folder(ImageData):
    """Images in folders named after their classes.

    Args:
        root: root/train/CLASS/* and root/val/CLASS/*, or root/CLASS/* with `val_fraction`.
        val_fraction: Part of every class to validate with, where there is no val folder.
        cache: Keep decoded images: 'auto', 'ram', 'disk' or 'off' (data/cache.py).
        cache_dir: Where on disk; None: the user's cache folder.
        verify: Decode every file once before anything else, and name the first that is no image.
        on_bad_image: 'error', or 'skip': verify, and go on as if the bad files were not there.
        follow_links: Follow links that lead out of the folder, too.
        exclude: A file with names relative to `root`, one a line: images that are left out.
        common: See `ImageData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float | None = None,
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
        self.bad_images: int | None = None  # left out; None where nobody looked

    def load(self) -> dict[str, Source]:
        # Skipping needs to know before the first epoch: an image that went in the middle of one would move the others.
        look = self._bad_images if self.verify or self.on_bad_image == "skip" else None
        return dict(
            folder.scan(
                self.root,
                self.val_fraction,
                self.val_seed,
                self.follow_links,
                look,
                rule=self.split_rule,
                in_folds=self.folds is not None,
                exclude=self.exclude,
            )
        )

    @property
    def needs_for_validation(self) -> str:
        return f"set data.val_fraction=0.1, or add the folder {os.path.join(self.root, 'val')}"

    def _bad_images(self, paths: list[str], root: str) -> set[str]:
        skip, workers = self.on_bad_image == "skip", self._workers()
        verifier = Verifier(skip, self.cache_dir, self.channels, self.stored_size, workers)
        bad = verifier.bad_images(paths, root)
        self.bad_images = len(bad)
        return bad

    def decoded(self, sources: dict[str, Source]) -> dict[str, Source]:
        files = {split: source for split, source in sources.items() if isinstance(source, FileSource)}
        workers = self._workers()
        cache = Cache(self.cache, self.cache_dir, self.channels, self.stored_size, workers, self.fit)
        return {**sources, **cache.keep(files)}
