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


def test_files_are_known_by_relative_name_size_and_class(root: Path) -> None:
    first = identify(files(root), "train folder")
    assert (first["count"], first["origin"], len(first["digest"])) == (5, "train folder", 64)
    other = root.with_name("other name")
    shutil.copytree(root, other)
    os.utime(other / "train" / "cat" / "0.png", (0, 0))
    assert identify(files(other), "train folder") == first
    with open(other / "train" / "cat" / "0.png", "ab") as file:
        file.write(b"!")
    assert identify(files(other))["digest"] != first["digest"]


def test_a_renamed_file_and_one_in_another_class_are_other_data(root: Path) -> None:
    first = identify(files(root))["digest"]
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "a.png")
    renamed = identify(files(root))["digest"]
    (root / "train" / "cat" / "a.png").rename(root / "train" / "dog" / "a.png")
    assert len({first, renamed, identify(files(root))["digest"]}) == 3


@pytest.mark.parametrize("cache", ["off", "ram", "disk"])
def test_a_cache_and_a_subset_of_it_change_nothing(root: Path, tmp_path: Path, cache: str) -> None:
    data = Folder(str(root), cache=cache, cache_dir=str(tmp_path / "cache"), **COMMON)  # type: ignore[arg-type]
    data.setup()
    chosen = torch.tensor([4, 1, 2])
    plain = files(root)
    assert data.identity() == {"train": identify(plain, data.origins.get("train", ""))}
    subset = identify(data.sources["train"].subset(chosen))
    assert subset["digest"] == identify(plain.subset(chosen))["digest"] != identify(plain)["digest"]


def test_images_in_memory_are_known_by_pixels_and_the_names_of_their_classes() -> None:
    source = arrays(9, "train", seed=0)
    first = identify(source)["digest"]
    brighter = source.images.clone()
    brighter[8, 2, 5, 5] ^= 1
    assert identify(replace(source, images=brighter))["digest"] != first
    assert identify(replace(source, labels=source.labels.roll(1)))["digest"] != first
    turned = replace(source, labels=2 - source.labels, classes=source.classes[::-1])
    assert identify(turned)["digest"] == first  # numbered otherwise, and the same classes


def test_a_split_of_another_kind_is_known_by_its_count_and_a_file_that_is_gone_does_no_harm(
    root: Path,
) -> None:
    assert identify([1, 2, 3]) == {"count": 3, "digest": None, "origin": ""}
    source = files(root)
    (root / "train" / "cat" / "0.png").unlink()
    assert identify_ahead({"train": source}, {})()["train"]["count"] == 5
