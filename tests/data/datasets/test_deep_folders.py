"""Deeply nested folders and symlink cycles: every image is found exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_exp.data.datasets import folder
from tests.data.datasets.test_folder import touch


def nested(root: Path) -> None:
    """Make a class folder with an image below a thousand nested folders."""
    touch(root, "train/a/1.jpg", "train/b/1.jpg")
    place = str(root / "train" / "a")
    for _ in range(1000):
        place += "/d"
        os.mkdir(place)
    os.close(os.open(f"{place}/2.jpg", os.O_CREAT))


def linked(**links: str) -> Callable[[Path], None]:
    """Return a function that writes three images, with links next to one of them."""

    def make(root: Path) -> None:
        touch(root, "train/a/1.jpg", "train/a/deep/2.jpg", "train/b/1.jpg")
        for name, target in links.items():
            (root / "train" / "a" / "deep" / name).symlink_to(target)

    return make


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {  # how they are made, what is found
    "an image below 1,000 nested folders": (nested, "3 images"),
    "a link to the folder above": (linked(up=".."), "3 images"),
    "a link to itself": (linked(round="round"), "3 images"),
    "two links to each other": (linked(one="two", two="one"), "3 images"),
    "two links to one folder": (linked(one="../../b", two="../../b"), "4 images"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_deep_or_cyclic_folders_are_walked_once(name: str, tmp_path: Path):
    make, found = FOLDERS[name]
    make(tmp_path)
    try:
        assert f"{len(folder.scan(str(tmp_path))['train'])} images" == found
    finally:
        remove(tmp_path / "train" / "a")


def remove(top: Path) -> None:
    """Remove what `nested` made: it is too deep for pytest to clean up."""
    for depth in range(1000, 0, -1):
        place = f"{top}{'/d' * depth}"
        if os.path.isdir(place):
            for name in os.listdir(place):
                os.remove(f"{place}/{name}")
            os.rmdir(place)
