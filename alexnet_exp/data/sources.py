"""Data sets before loading: uint8 images in memory or paths on disk, with labels and classes; how they are split."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import stat
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alexnet_exp.data.randomness import permutation
from alexnet_exp.errors import UserError, unreadable
from alexnet_exp.files import replacing


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that fit in memory.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        labels: int64 (N,), each an index into `classes`.
        classes: Class names.
        name: Data set and split, for messages: "cifar10 train".
        numbers: Each image's position in the published split, int64 (N,); None: 0, 1, ...
        origin: Where the images came from and how they were split, in a few words.
        aspects: Width over height of each original image, float32 (N,), if the images are these squashed.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    numbers: Tensor | None = None
    origin: str = field(default="", kw_only=True)
    aspects: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def image_name(self, index: int) -> str:
        """Return "test image 17", counted in the published split even in a subset."""
        number = index if self.numbers is None else int(self.numbers[index])
        return f"{self.name.split()[-1]} image {number}"

    def subset(self, indices: Tensor) -> ArraySource:
        """Return the images at `indices`, int64 (M,), in that order."""
        numbers = indices if self.numbers is None else self.numbers[indices]
        aspects = None if self.aspects is None else self.aspects[indices]
        images, labels = self.images[indices], self.labels[indices]
        return replace(self, images=images, labels=labels, numbers=numbers, aspects=aspects)

    def first(self, count: int) -> ArraySource:
        """Return the first `count` images, sharing their memory.

        Raises:
            UserError: `count` is not between 1 and the number of images.
        """
        check_count(count, len(self), self.name)
        numbers, aspects = (None if x is None else x[:count] for x in (self.numbers, self.aspects))
        images, labels = self.images[:count], self.labels[:count]
        return replace(self, images=images, labels=labels, numbers=numbers, aspects=aspects)


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images on disk, read on demand.

    Args:
        paths: One file per image, `root` included.
        labels: int64 (N,), each an index into `classes`.
        classes: Class names.
        name: Data set and split, for messages: "clothing val".
        root: The folder that image names are relative to.
        origin: Where the images came from and how they were split, in a few words.
        depth: How many leading folders of an image's name are split and class; splits hash the rest. None: the
            source is split by order.
    """

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    root: str
    origin: str = field(default="", kw_only=True)
    depth: int | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.paths)

    def image_name(self, index: int) -> str:
        """Return the path relative to `root`: "val/hat/17.jpg"."""
        return os.path.relpath(self.paths[index], self.root)

    def names(self) -> list[str] | None:
        """Return the images' paths inside their class folders; None if the source is split by order."""
        if self.depth is None:
            return None
        return ["/".join(self.image_name(i).split(os.sep)[self.depth :]) for i in range(len(self))]

    def subset(self, indices: Tensor) -> FileSource:
        """Return the images at `indices`, int64 (M,), in that order."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def first(self, count: int) -> FileSource:
        """Return the first `count` images.

        Raises:
            UserError: `count` is not between 1 and the number of images.
        """
        check_count(count, len(self), self.name)
        return replace(self, paths=self.paths[:count], labels=self.labels[:count])


def check_count(count: int, available: int, name: str) -> None:
    if not 1 <= count <= available:
        raise UserError(f"invalid subset of {name}: expected 1 to {available} images, not {count}.")


def repeat_grey(images: Tensor, channels: int) -> Tensor:
    """Repeat grey uint8 images (N, H, W) over channels: (N, channels, H, W).

    Raises:
        UserError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"invalid data.channels={channels}: expected 1 (grey) or 3 (RGB).")
    return images.unsqueeze(1).repeat(1, channels, 1, 1)


def is_file(path: str) -> bool:
    """Return whether a file exists; unlike os.path.isfile, raises for one in a folder without permission.

    Raises:
        UserError: If the system does not allow to check.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error


def is_remote(url: str) -> bool:
    """Return whether this is a place in object storage (s3://BUCKET/NAME) rather than a folder."""
    return "://" in url


def fetch(url: str, path: str, md5: str, missing: str, allowed: bool) -> None:
    """Download `url` to `path`, or say what is missing, where to get it and where to put it.

    Args:
        url: Source.
        path: Destination; its folder is created.
        md5: Checksum of the published file.
        missing: The missing file, for the message.
        allowed: Whether downloads are enabled.

    Raises:
        UserError: If downloads are disabled or this one failed (within seconds if there is no network).
    """
    reason = "downloads are disabled"
    if allowed:
        try:
            return _download(url, path, md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = f"the download failed: {' '.join(str(error).split())}"
    raise UserError(f"{missing} is missing ({reason}): download {url} to {os.path.dirname(path)}.")


def _download(url: str, path: str, md5: str) -> None:
    """Download to `path` atomically."""
    try:
        # Asked first, with a short limit: without a network the download itself would take minutes to give up.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError as error:
        error.close()  # the server is reachable; the download reports whether it has the file

    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none, so a stalled connection would hang forever
    try:
        with replacing(path) as part:
            download_url(url, part.parent, part.name, md5)
    finally:
        socket.setdefaulttimeout(before)


RULES = ("stratified", "by_name", "by_order")


def draw(name: str, *key: int | str) -> float:
    """Return a number in [0, 1) that depends on `name` and `key` alone."""
    text = unicodedata.normalize("NFC", name)  # macOS may store the same name decomposed
    # surrogatepass: a name that is not valid UTF-8 is split as well.
    data = "/".join([*map(str, key), text]).encode("utf-8", "surrogatepass")
    # 48 bits, which a float64 holds exactly: two machines compare the same numbers.
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def validation_by_class(labels: Tensor, names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Mark the validation images, as bool (N,): of each class those with the smallest hashes, round(fraction * n) of n.

    At least one of every class of two or more, and never a whole class. An added image can move one other of its class
    across the border; `validation_by_name` moves none, but meets the share only on average.

    Args:
        labels: (N,) int64.
        names: Paths relative to the class folders, so renaming a class changes nothing.
        fraction: Share of validation images, in (0, 1).
        seed: Seed of the hash.
    """
    sizes = torch.bincount(labels).tolist()
    shares = [max(0, min(max(1, round(size * fraction)), size - 1)) for size in sizes]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[_lowest(labels, names, shares, "validation", seed)] = True
    return chosen


def validation_by_name(labels: Tensor, names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Mark the validation images, as bool (N,): those whose hash, a number in [0, 1), is below `fraction`.

    Since the hash is random, so is the exact share. Every class keeps at least the image with the largest hash for
    training. If so few images would leave the validation set empty, each class in which `fraction` amounts to half an
    image or more contributes the one with the smallest hash.

    Args:
        labels: (N,) int64.
        names: Paths relative to the class folders, so renaming a class changes nothing. Classes with the same file
            names (0001.jpg, ...) are split alike.
        fraction: Share of validation images, in [0, 1).
        seed: Seed of the hash.
    """
    key = ("validation", seed)
    numbers = _numbers(names, *key)
    counts = torch.bincount(labels)
    chosen = numbers < fraction
    # Sort by class, then by hash: the last image of each class has its largest hash.
    order = numbers.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    chosen[order[counts.cumsum(0)[counts > 0] - 1]] = False
    if not chosen.any():
        few = (counts > 1) & (counts * fraction >= 0.5)
        chosen[_lowest(labels, names, few.long().tolist(), *key)] = True
    return chosen


def even_subset(labels: Tensor, names: Sequence[str], count: int, seed: int) -> Tensor:
    """Choose `count` images, the same number from every class as far as possible.

    Args:
        labels: (N,) int64.
        names: Paths relative to the class folders.
        count: 1 to N.
        seed: Seed of the selection.

    Returns:
        Indices (int64, ascending).
    """
    left = torch.bincount(labels)
    taken = torch.zeros_like(left)
    # Exhausted classes drop out; the others share the remainder.
    while (missing := count - int(taken.sum())) > 0:
        open_classes = torch.nonzero(left > taken).flatten()
        if missing < len(open_classes):
            order = permutation(len(open_classes), "subset", seed)
            taken[open_classes[order[:missing]]] += 1
        else:
            share = missing // len(open_classes)
            taken[open_classes] = torch.minimum(left, taken + share)[open_classes]
    return _lowest(labels, names, taken.tolist(), "subset", seed)


def _numbers(names: Sequence[str], *key: int | str) -> Tensor:
    return torch.tensor([draw(name, *key) for name in names], dtype=torch.float64)


def _lowest(labels: Tensor, names: Sequence[str], counts: Sequence[int], *key: int | str) -> Tensor:
    """Return the `counts` images of each class with the smallest hashes, as ascending indices."""
    numbers = _numbers(names, *key)
    # The smallest, so that a larger subset contains the smaller one, and added files only displace a few.
    chosen = [
        members[numbers[members].argsort(stable=True)[:count]]
        for label, count in enumerate(counts)
        if len(members := torch.nonzero(labels == label).flatten())
    ]
    return torch.cat(chosen).sort().values


def spread_order(labels: Tensor) -> Tensor:
    """Return a fixed order (int64, (N,)) whose first images are representative of the whole split.

    It starts with one image of every class; after that, classes appear in proportion to their size.
    """
    counts = torch.bincount(labels)
    shuffled = permutation(len(labels), "spread")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    of = labels[by_class]
    # The i-th of n images of a class comes after i / n of the split, so its first image has turn 0, as in every class.
    turns = (torch.arange(len(labels)) - (counts.cumsum(0) - counts)[of]).double() / counts[of]
    mixed = permutation(len(labels), "turns")  # shuffles classes with equal turns
    return by_class[mixed[turns[mixed].argsort(stable=True)]]


def split_validation(
    labels: Tensor, val_size: int, how: str, seed: int, keep: int = 1, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Split images into training and validation.

    Args:
        labels: (N,) int64.
        val_size: Number of validation images; 0 is allowed.
        how: 'last' takes the last in file order; 'random' is stratified by class.
        seed: Seed of a random split.
        keep: Number of images that must remain for training.
        names: Paths relative to the class folders: a random split hashes them instead of using positions.

    Returns:
        Indices (int64, ascending) of the training and the validation images.

    Raises:
        UserError: If fewer than `keep` images remain for training.
    """
    count = len(labels)
    if val_size > count - keep:
        raise UserError(
            f"invalid data.val_size={val_size}: expected at most {count - keep} ({count} images in total)."
        )
    if how == "last":
        order = torch.arange(count)
        return order[: count - val_size], order[count - val_size :]
    chosen = torch.zeros(count, dtype=torch.bool)
    shares = _shares(torch.bincount(labels), val_size)
    if names is not None:
        chosen[_lowest(labels, names, shares, "validation", seed)] = True
        return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
    for label, share in enumerate(shares):
        members = torch.nonzero(labels == label).flatten()
        chosen[members[permutation(len(members), "validation", seed, label)[:share]]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def _shares(counts: Tensor, total: int) -> list[int]:
    """Apportion `total` to classes in proportion to `counts`, by largest remainder."""
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long()
    # Stable: ties go to the lower label on every machine.
    remainders = (exact - shares).argsort(descending=True, stable=True)
    shares[remainders[: total - int(shares.sum())]] += 1
    return [int(s) for s in shares]
