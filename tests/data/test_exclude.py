"""data.exclude: listed files are left out and reported; a name that does not exist is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alexnet_exp.data import Folder
from alexnet_exp.data.datasets import folder
from alexnet_exp.data.identity import identify
from alexnet_exp.errors import UserError
from tests.data.datasets.test_folder import names, touch

FILES = tuple(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20))


def listed(tmp_path: Path, *lines: str) -> str:
    (tmp_path / "list.txt").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return str(tmp_path / "list.txt")


def test_listed_files_are_left_out_and_the_split_says_how_many(tmp_path: Path):
    touch(tmp_path / "pets", *FILES, "val/cat/0.jpg", "val/dog/0.jpg")
    chosen = listed(tmp_path, "train/cat/3.jpg", "", "train/dog/7.jpg", "train/dog/7.jpg")
    whole, rest = (folder.scan(str(tmp_path / "pets"), exclude=file) for file in (None, chosen))
    assert set(names(whole["train"])) - set(names(rest["train"])) == {"train/cat/3.jpg", "train/dog/7.jpg"}
    assert rest["train"].origin == "folder train without 2 of list.txt"
    assert rest["val"].origin == "folder val"
    assert identify(rest["train"])["digest"] != identify(whole["train"])["digest"]
    assert identify(rest["val"])["digest"] == identify(whole["val"])["digest"]


def test_excluding_training_images_keeps_a_validation_split_by_name(tmp_path: Path):
    touch(tmp_path, *FILES)
    root = str(tmp_path / "train")
    whole = folder.scan(root, 0.3, rule="by_name")
    gone = names(whole["train"])[:4]
    rest = folder.scan(root, 0.3, rule="by_name", exclude=listed(tmp_path, *gone))
    assert names(rest["val"]) == names(whole["val"])
    assert names(rest["train"]) == names(whole["train"])[4:]


def test_names_that_are_not_utf8_or_not_normalised_are_found(tmp_path: Path):
    odd = [os.fsdecode(b"train/cat/\xff.jpg"), "train/cat/e\u0301.jpg", "train/cat/ two words.jpg"]
    touch(tmp_path, *FILES, *odd)
    chosen = listed(tmp_path, odd[0], "train/cat/\u00e9.jpg", odd[2])
    assert len(folder.scan(str(tmp_path), exclude=chosen)["train"]) == len(FILES)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["train/cat/99.jpg"], r"lists train/cat/99\.jpg, but .* has no such image"),
        (["cat/1.jpg", "cat/2.jpg"], r"lists cat/1\.jpg and 1 more, but"),
        ([f"train/dog/{i}.jpg" for i in range(20)], r"train/dog: data\.exclude leaves out all its images"),
    ],
)
def test_an_invalid_list_is_refused(tmp_path: Path, lines: list[str], said: str):
    touch(tmp_path / "pets", *FILES)
    with pytest.raises(UserError, match=said) as caught:
        folder.scan(str(tmp_path / "pets"), exclude=listed(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_a_data_set_takes_a_list_and_refuses_a_missing_one(tmp_path: Path):
    touch(tmp_path / "pets", *FILES)
    common = {"batch_size": 4, "image_size": 16, "mean": [0.5], "std": [0.5], "split_rule": "by_name"}
    with pytest.raises(UserError, match=r"data\.exclude=nowhere cannot be read: No such file"):
        Folder(str(tmp_path / "pets"), exclude="nowhere", **common).load()
    data = Folder(str(tmp_path / "pets"), exclude=listed(tmp_path, FILES[0]), **common)
    assert len(data.load()["train"]) == len(FILES) - 1
