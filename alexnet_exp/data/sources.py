"""What a data set is before any loading: uint8 images in memory or paths on disk, with labels and classes."""

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
        numbers: Each image's position in its split as published, int64 (N,); made when left out.
        origin: Where the images came from and which rule cut them, in a few words.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    numbers: Tensor | None = None
    origin: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def image_name(self, index: int) -> str:
        """Return "test image 17": the number counts in the published split, also after cuts."""
        number = index if self.numbers is None else int(self.numbers[index])
        return f"{self.name.split()[-1]} image {number}"

    def subset(self, indices: Tensor) -> ArraySource:
        """Return the images at `indices`, int64 (M,), in that order."""
        numbers = indices if self.numbers is None else self.numbers[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], numbers=numbers)

    def first(self, count: int) -> ArraySource:
        """Return the first `count` images, sharing their memory.

        Raises:
            UserError: `count` is not between 1 and the number of images.
        """
        check_count(count, len(self), self.name)
        numbers = None if self.numbers is None else self.numbers[:count]
        return replace(self, images=self.images[:count], labels=self.labels[:count], numbers=numbers)


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images that stay on disk until they are needed.

    Args:
        paths: One file per image, `root` included.
        labels: int64 (N,), each an index into `classes`.
        classes: Class names.
        name: Data set and split, for messages: "clothing val".
        root: The folder that image names are relative to.
        origin: Where the images came from and which rule cut them, in a few words.
        depth: How many folders of an image's name stand for its split and class: data.split_rule=by_name goes by the
            rest. None: the source is cut by order.
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
        """Return the images' paths inside their class folders, or None where the source is cut by order."""
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
        raise UserError(
            f"{name} has {available} images: the first {count} cannot be taken, ask for 1 to {available}."
        )


def repeat_grey(images: Tensor, channels: int) -> Tensor:
    """Return grey uint8 images (N, H, W) as (N, channels, H, W), the same values in every channel.

    Raises:
        UserError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels}: images have 1 (grey) or 3 (RGB) channels.")
    return images.unsqueeze(1).repeat(1, channels, 1, 1)


def is_file(path: str) -> bool:
    """Return whether a file is there; unlike os.path.isfile, not False for one in a folder that may not be entered.

    Raises:
        UserError: The machine does not say.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error


def fetch(url: str, path: str, md5: str, missing: str, allowed: bool) -> None:
    """Download `url` to `path`, or say what is missing, where it goes and where it is published.

    Args:
        url: Where the file is published.
        path: Where it goes; its folder is made.
        md5: Checksum of the published file.
        missing: The file that was looked for, for the message.
        allowed: False only gives the message.

    Raises:
        UserError: Downloads are off, or this one failed; without a network within seconds.
    """
    reason = "downloads are switched off"
    if allowed:
        try:
            return _download(url, path, md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = f"the download failed: {' '.join(str(error).split())}"
    raise UserError(f"{missing} is missing ({reason}): get {url} and put it into {os.path.dirname(path)}.")


def _download(url: str, path: str, md5: str) -> None:
    """Download to `path`, which holds the whole file or does not exist."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError as error:
        error.close()  # the server answers: whether it has the file is for the download to say

    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none: a stalled connection would hang for ever
    try:
        with replacing(path) as part:
            download_url(url, part.parent, part.name, md5)
    finally:
        socket.setdefaulttimeout(before)


RULES = ("by_name", "by_order")


def draw(name: str, *key: int | str) -> float:
    """Return a number in [0, 1) that depends on `name` and `key` alone."""
    text = unicodedata.normalize("NFC", name)  # a Mac may store the same name decomposed
    data = "/".join([*map(str, key), text]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def validation_by_name(labels: Tensor, names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Mark the images that validate, as bool (N,): those whose number is below `fraction`.

    The numbers vary, so shares do too. A class keeps the image with the largest number for training. Where there are so
    few images that none at all validates, each class that `fraction` gives half an image or more gives its first.

    Args:
        labels: (N,) int64.
        names: Paths relative to the class folders: renaming a class moves nothing. Classes with the same file names
            (0001.jpg ...) are cut alike.
        fraction: Share to validate with, 0 to below 1.
        seed: Chooses which.
    """
    key = ("validation", seed)
    numbers = _numbers(names, *key)
    counts = torch.bincount(labels)
    chosen = numbers < fraction
    # The largest of each class: the last of its images in the order of the numbers.
    order = numbers.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    chosen[order[counts.cumsum(0)[counts > 0] - 1]] = False
    if not chosen.any():
        few = (counts > 1) & (counts * fraction >= 0.5)
        chosen[_lowest(labels, names, few.long().tolist(), *key)] = True
    return chosen


def even_subset(labels: Tensor, names: Sequence[str], count: int, seed: int) -> Tensor:
    """Choose `count` images, the same number of every class as far as each has so many.

    Args:
        labels: (N,) int64.
        names: Of the images, relative to their class folders.
        count: 1 to N.
        seed: Chooses which.

    Returns:
        Indices (int64, ascending).
    """
    left = torch.bincount(labels)
    taken = torch.zeros_like(left)
    # Classes that are used up drop out, and the others share what is still to be chosen.
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
    """Return the `counts` images of each class whose names draw the lowest numbers, as ascending indices."""
    numbers = _numbers(names, *key)
    chosen = [
        members[numbers[members].argsort(stable=True)[:count]]
        for label, count in enumerate(counts)
        if len(members := torch.nonzero(labels == label).flatten())
    ]
    return torch.cat(chosen).sort().values


def spread_order(labels: Tensor) -> Tensor:
    """Return an order (int64, (N,)) in which the first few images show the whole split.

    It begins with one image of every class; from there on each class comes up as often as its size says. It is always
    the same.
    """
    counts = torch.bincount(labels)
    shuffled = permutation(len(labels), "spread")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    of = labels[by_class]
    turns = (torch.arange(len(labels)) - (counts.cumsum(0) - counts)[of]).double() / counts[of]
    mixed = permutation(len(labels), "turns")  # classes whose turn is the same come in no order of their own
    return by_class[mixed[turns[mixed].argsort(stable=True)]]


def split_validation(
    labels: Tensor, val_size: int, how: str, seed: int, keep: int = 1, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Divide images into training and validation.

    Args:
        labels: (N,) int64.
        val_size: Images to validate with; 0 is legal.
        how: 'last' takes the last in file order; 'random' is stratified: every class gives its share.
        seed: Chooses the images of a random split.
        keep: Images that must be left to train on.
        names: A random split goes by them, relative to the class folders, instead of by position.

    Returns:
        Indices (int64, ascending) of the training and of the validation images.

    Raises:
        UserError: If nothing is left to train on.
    """
    count = len(labels)
    if val_size > count - keep:
        raise UserError(f"data.val_size={val_size} leaves nothing to train on: there are {count} images.")
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
    """Divide `total` in proportion to `counts`, largest remainders first."""
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long()
    remainders = (exact - shares).argsort(descending=True, stable=True)
    shares[remainders[: total - int(shares.sum())]] += 1
    return [int(s) for s in shares]
