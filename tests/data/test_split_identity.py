"""Count and digest of a split: what changes them, and what does not."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import arrays
from makers import write_folder

from alexnet_exp.data import Folder
from alexnet_exp.data.datasets import folder
from alexnet_exp.data.identity import identify, identify_ahead
from alexnet_exp.data.sources import FileSource

COMMON = {"batch_size": 2, "image_size": 32, "mean": [0.5], "std": [0.5], "channels": 1, "num_workers": 0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "images", {"train/cat": 3, "train/dog": 2}, extension="png")
    return tmp_path / "images"


def files(root: Path) -> FileSource:
    return folder.scan(str(root))["train"]


def test_files_are_identified_by_relative_name_size_and_class(root: Path) -> None:
    first = identify(files(root), "train folder")
    assert (first["count"], first["origin"], len(first["digest"])) == (5, "train folder", 64)
    other = root.with_name("other name")
    shutil.copytree(root, other)
    os.utime(other / "train" / "cat" / "0.png", (0, 0))
    assert identify(files(other), "train folder") == first
    with open(other / "train" / "cat" / "0.png", "ab") as file:
        file.write(b"!")
    assert identify(files(other))["digest"] != first["digest"]


def test_renaming_a_file_or_moving_it_to_another_class_changes_the_digest(root: Path) -> None:
    first = identify(files(root))["digest"]
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "a.png")
    renamed = identify(files(root))["digest"]
    (root / "train" / "cat" / "a.png").rename(root / "train" / "dog" / "a.png")
    assert len({first, renamed, identify(files(root))["digest"]}) == 3


@pytest.mark.parametrize("cache", ["off", "ram", "disk"])
def test_a_cache_does_not_change_the_digest_of_a_split_or_its_subset(
    root: Path, tmp_path: Path, cache: str
) -> None:
    data = Folder(str(root), cache=cache, cache_dir=str(tmp_path / "cache"), **COMMON)  # type: ignore[arg-type]
    data.setup()
    chosen = torch.tensor([4, 1, 2])
    plain = files(root)
    assert data.identity() == {"train": identify(plain, data.origins.get("train", ""))}
    subset = identify(data.sources["train"].subset(chosen))
    assert subset["digest"] == identify(plain.subset(chosen))["digest"] != identify(plain)["digest"]


def test_images_in_memory_are_identified_by_pixels_and_class_names() -> None:
    source = arrays(9, "train", seed=0)
    first = identify(source)["digest"]
    brighter = source.images.clone()
    brighter[8, 2, 5, 5] ^= 1
    assert identify(replace(source, images=brighter))["digest"] != first
    assert identify(replace(source, labels=source.labels.roll(1)))["digest"] != first
    turned = replace(source, labels=2 - source.labels, classes=source.classes[::-1])
    assert identify(turned)["digest"] == first  # other numbers, the same classes


def test_other_splits_have_a_count_only_and_a_missing_file_does_no_harm(
    root: Path,
) -> None:
    assert identify([1, 2, 3]) == {"count": 3, "digest": None, "origin": ""}
    source = files(root)
    (root / "train" / "cat" / "0.png").unlink()
    assert identify_ahead({"train": source}, {})()["train"]["count"] == 5
