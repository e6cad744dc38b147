"""What a data set is before any loading: uint8 images in memory or paths on disk, with labels and classes."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace

from torch import Tensor

from alexnet_exp.errors import UserError, unreadable


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

    part = path + ".part"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none: a stalled connection would hang for ever
    try:
        download_url(url, os.path.dirname(part), os.path.basename(part), md5)
    finally:
        socket.setdefaulttimeout(before)
    os.replace(part, path)
