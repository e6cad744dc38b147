from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.data.datasets import folder
from alexnet_exp.errors import UserError
from tests.data.makers import write_folder


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(source: folder.FileSource) -> list[str]:
    return [source.image_name(i) for i in range(len(source))]


def refused(root: Path, **settings: Any) -> str:
    """Return the one-sentence message with which `scan` refuses the folder."""
    with pytest.raises(UserError) as caught:
        folder.scan(str(root), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_train_val_and_test_folders_become_splits(tmp_path: Path):
    touch(tmp_path, "train/b/1.jpg", "train/a/2.jpg", "train/a/1.png", "val/a/9.jpg", "test/b/8.jpg")
    splits = folder.scan(str(tmp_path))
    assert list(splits) == ["train", "val", "test"]
    assert names(splits["train"]) == ["train/a/1.png", "train/a/2.jpg", "train/b/1.jpg"]
    assert splits["train"].labels.tolist() == [0, 0, 1]
    assert splits["train"].labels.dtype == torch.int64
    assert splits["val"].paths == (str(tmp_path / "val/a/9.jpg"),)
    assert splits["test"].labels.tolist() == [1]
    assert {split.classes for split in splits.values()} == {("a", "b")}
    assert splits["val"].name == f"{tmp_path.name} val"


def test_paths_can_be_opened_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "pets", {"train/cat": 1, "train/dog": 1})
    monkeypatch.chdir(tmp_path)
    assert all(os.path.isfile(path) for path in folder.scan("pets")["train"].paths)


def test_torchvision_finds_the_same_images(tmp_path: Path):
    from torchvision.datasets import ImageFolder

    touch(tmp_path, *(f"train/{name}/{i}/{j}.jpg" for name in ("x", "Y", "z 1") for i in "ba" for j in "21"))
    reference = ImageFolder(tmp_path / "train")
    source = folder.scan(str(tmp_path))["train"]
    found = list(zip(source.paths, source.labels.tolist(), strict=True))
    assert sorted(found) == sorted(reference.samples)
    assert list(source.classes) == reference.classes


def test_extensions_match_in_any_case_and_other_files_are_ignored(tmp_path: Path):
    kept = ["1.jpg", "2.JPEG", "3.Png", "4.gif", "5.bmp", "6.webp", "7.tif", "8.TIFF"]
    touch(tmp_path, *(f"train/a/{name}" for name in [*kept, "9.txt", "jpg", "10.jpg.bak", "11.svg"]))
    touch(tmp_path, "train/b/1.jpg", "train/README.md", "LICENSE")
    assert names(folder.scan(str(tmp_path))["train"]) == [
        *(f"train/a/{name}" for name in kept),
        "train/b/1.jpg",
    ]


def test_hidden_files_and_folders_are_ignored(tmp_path: Path):
    touch(
        tmp_path,
        "train/a/1.jpg",
        "train/a/._1.jpg",
        "train/a/.cache/2.jpg",
        "train/.git/1.jpg",
        "train/b/1.jpg",
    )
    assert names(folder.scan(str(tmp_path))["train"]) == ["train/a/1.jpg", "train/b/1.jpg"]


def test_external_links_are_reported_but_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = tmp_path / "root"
    touch(root, "train/a/1.jpg", "train/b/1.jpg", "pool/2.jpg")
    touch(tmp_path, "secret/3.jpg", "root-too/4.jpg")
    (root / "train/a/out").symlink_to(tmp_path / "secret")
    (root / "train/a/3.jpg").symlink_to(tmp_path / "secret/3.jpg")
    (root / "train/a/4.jpg").symlink_to(tmp_path / "root-too/4.jpg")
    (root / "train/c").symlink_to(tmp_path / "secret")
    (root / "train/b/2.jpg").symlink_to(root / "pool/2.jpg")
    (root / "train/b/gone.jpg").symlink_to(root / "nowhere.jpg")
    with caplog.at_level(logging.WARNING):
        source = folder.scan(str(root))["train"]
    assert names(source) == ["train/a/1.jpg", "train/b/1.jpg", "train/b/2.jpg"]
    assert source.classes == ("a", "b")
    assert "4 links lead out" in caplog.text


def test_external_links_are_followed_if_requested(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = tmp_path / "root"
    touch(root, "train/a/1.jpg", "train/b/1.jpg")
    touch(tmp_path, "elsewhere/3.jpg", "elsewhere/deep/4.jpg")
    (root / "train/a/out").symlink_to(tmp_path / "elsewhere")
    (root / "train/c").symlink_to(tmp_path / "elsewhere/deep")
    (root / "train/a/up").symlink_to(tmp_path)
    (root / "train/b/gone.jpg").symlink_to(root / "nowhere.jpg")
    with caplog.at_level(logging.WARNING):
        source = folder.scan(str(root), follow_links=True)["train"]
    found = names(source)
    assert {"train/a/out/3.jpg", "train/a/out/deep/4.jpg", "train/c/4.jpg"} <= set(found)
    assert len(found) < 20  # the link to a folder above is a loop
    assert source.classes == ("a", "b", "c")
    assert not caplog.text


def test_a_class_of_external_links_is_reported(tmp_path: Path):
    root = tmp_path / "root"
    touch(root, "train/a/1.jpg", "train/b/readme.txt")
    (root / "train/a/2.jpg").symlink_to(tmp_path / "2.jpg")
    with pytest.raises(UserError, match=r"train/b has no images"):
        folder.scan(str(root))
    (root / "train/b/1.jpg").symlink_to(tmp_path / "1.jpg")
    with pytest.raises(UserError, match=r"train/b has nothing but links .*data\.follow_links=true"):
        folder.scan(str(root))


def test_100_000_files_are_listed_in_two_seconds(tmp_path: Path):
    for number in range(100):
        place = tmp_path / "train" / f"{number:03}"
        place.mkdir(parents=True)
        handle = os.open(place, os.O_RDONLY)
        for file in range(1000):
            os.mknod(f"{file:04}.jpg", dir_fd=handle)
        os.close(handle)
    start = time.process_time()
    assert len(folder.scan(str(tmp_path))["train"]) == 100_000
    assert time.process_time() - start < 2.0


def test_link_cycles_do_not_loop(tmp_path: Path):
    touch(tmp_path, "train/a/1.jpg", "train/a/deep/2.jpg", "train/b/1.jpg")
    (tmp_path / "train/a/deep/up").symlink_to(tmp_path / "train/a")
    (tmp_path / "train/a/deep/self").symlink_to(".")
    assert names(folder.scan(str(tmp_path))["train"]) == [
        "train/a/1.jpg",
        "train/a/deep/2.jpg",
        "train/b/1.jpg",
    ]


def test_a_split_folder_that_is_an_external_link_is_followed_only_if_requested(tmp_path: Path):
    touch(tmp_path, "elsewhere/a/1.jpg", "elsewhere/b/1.jpg", "root/pool/a/1.jpg", "root/pool/b/1.jpg")
    (tmp_path / "root/train").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"root/train is a link that leads out .*data\.follow_links=true"):
        folder.scan(str(tmp_path / "root"))
    assert len(folder.scan(str(tmp_path / "root"), follow_links=True)["train"]) == 2
    (tmp_path / "root/train").unlink()
    (tmp_path / "root/train").symlink_to("pool")
    assert len(folder.scan(str(tmp_path / "root"))["train"]) == 2


def test_the_data_folder_can_be_a_link_to_anywhere(tmp_path: Path):
    touch(tmp_path, "elsewhere/train/a/1.jpg", "elsewhere/train/b/1.jpg")
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    assert len(folder.scan(str(tmp_path / "root"))["train"]) == 2


def test_a_run_without_a_recorded_rule_splits_by_order(tmp_path: Path):
    touch(tmp_path, *(f"a/{i:02}.jpg" for i in range(20)), *(f"b/{i:02}.jpg" for i in range(10)), "c/0.jpg")
    splits = folder.scan(str(tmp_path), val_fraction=0.3, seed=1, rule="by_order")
    assert list(splits) == ["train", "val"]
    assert splits["val"].labels.bincount(minlength=3).tolist() == [6, 3, 0]
    assert splits["train"].labels.bincount().tolist() == [14, 7, 1]
    together = names(splits["train"]) + names(splits["val"])
    assert sorted(together) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert names(splits["val"]) != [f"a/{i:02}.jpg" for i in range(6)] + [f"b/{i:02}.jpg" for i in range(3)]


def test_the_split_depends_only_on_the_seed(tmp_path: Path):
    touch(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in range(20)))
    first, again, other = (folder.scan(str(tmp_path), 0.25, seed)["val"].paths for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_class_keeps_a_training_image(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg", "c/3.jpg")
    assert folder.scan(str(tmp_path), 0.9)["train"].labels.tolist() == [0, 1, 2]


def test_a_train_folder_without_val_can_also_be_split(tmp_path: Path):
    touch(tmp_path, *(f"train/{name}/{i}.jpg" for name in "ab" for i in range(4)), "test/a/1.jpg")
    assert list(folder.scan(str(tmp_path))) == ["train", "test"]
    splits = folder.scan(str(tmp_path), val_fraction=0.5)
    assert {split: len(source) for split, source in splits.items()} == {"train": 4, "test": 1, "val": 4}


def test_a_fraction_of_zero_leaves_no_val_split(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    assert list(folder.scan(str(tmp_path), 0.0)) == ["train"]


def test_subset_and_first_keep_paths_and_labels_together(tmp_path: Path):
    touch(tmp_path, *(f"train/{name}/{i}.jpg" for name in "abc" for i in range(2)))
    source = folder.scan(str(tmp_path))["train"]
    assert names(source.subset(torch.tensor([4, 1]))) == ["train/c/0.jpg", "train/a/1.jpg"]
    assert source.subset(torch.tensor([4, 1])).labels.tolist() == [2, 0]
    assert names(source.first(3)) == ["train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg"]
    assert source.first(3).labels.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="train: expected 1 to 6 images, not 7"):
        source.first(7)


def test_a_missing_root_is_named(tmp_path: Path):
    assert f"{tmp_path}/nope does not exist" in refused(tmp_path / "nope")


def test_a_file_as_root_is_named(tmp_path: Path):
    touch(tmp_path, "pictures.zip")
    assert f"{tmp_path}/pictures.zip is not a directory" in refused(tmp_path / "pictures.zip")


@pytest.mark.parametrize("val_fraction", [None, 0.1])
def test_a_folder_without_class_folders_is_refused(tmp_path: Path, val_fraction: float | None):
    touch(tmp_path, "1.jpg", ".hidden/1.jpg") if val_fraction else touch(tmp_path, "train/1.jpg")
    assert "has no class folders" in refused(tmp_path, val_fraction=val_fraction)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_class_folder_is_named(tmp_path: Path, split: str):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{split}/b/1.jpg", f"{split}/empty cell/notes.txt")
    assert f"{tmp_path}/{split}/empty cell has no images" in refused(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_missing_from_train_are_listed(tmp_path: Path, split: str):
    touch(
        tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{split}/a/1.jpg", f"{split}/d/1.jpg", f"{split}/c/1.jpg"
    )
    message = refused(tmp_path)
    assert f"{tmp_path}/{split} has classes that {tmp_path}/train lacks: c, d;" in message


@pytest.mark.parametrize(("made", "val_fraction"), [("train/cat/1.jpg", None), ("cat/1.jpg", 0.1)])
def test_a_single_class_is_refused(tmp_path: Path, made: str, val_fraction: float | None):
    touch(tmp_path, made)
    assert "only one class (cat)" in refused(tmp_path, val_fraction=val_fraction)


def test_a_single_class_is_enough_without_training(tmp_path: Path):
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg")
    assert folder.scan(str(tmp_path), val_fraction=0.0)["train"].classes == ("cat",)


def test_a_single_folder_without_val_fraction_says_what_to_set(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    message = refused(tmp_path)
    assert f"{tmp_path}/train is missing" in message
    assert "data.val_fraction=0.2" in message


def test_val_without_train_is_refused(tmp_path: Path):
    touch(tmp_path, "val/a/1.jpg", "val/b/1.jpg")
    assert f"add {tmp_path}/train" in refused(tmp_path, val_fraction=0.1)


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0, 5.0])
def test_a_fraction_out_of_range_is_refused(tmp_path: Path, val_fraction: float):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    assert f"data.val_fraction={val_fraction}" in refused(tmp_path, val_fraction=val_fraction)


def test_a_fraction_that_leaves_no_image_is_refused(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    assert f"No class of {tmp_path} has two images" in refused(tmp_path, val_fraction=0.1)
    assert "leaves no image" in refused(tmp_path, val_fraction=0.1, rule="by_name")


def test_the_automatic_fraction_is_for_folders_of_classes_only(tmp_path: Path):
    touch(
        tmp_path,
        *(f"{root}{c}/{i}.jpg" for root in ("plain/", "split/train/") for c in "ab" for i in range(5)),
    )
    assert folder.automatic_fraction(str(tmp_path / "plain"), "stratified") == 0.2
    assert folder.automatic_fraction(str(tmp_path / "plain"), "stratified", in_folds=True) is None
    assert folder.automatic_fraction(str(tmp_path / "split"), "stratified") is None
    assert folder.automatic_fraction(str(tmp_path / "nothing"), "stratified") is None


def test_a_fraction_with_a_val_folder_is_refused(tmp_path: Path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    assert "leave data.val_fraction out" in refused(tmp_path, val_fraction=0.1)


@pytest.mark.real_data
def test_the_clothing_data_set_has_its_ten_classes(real_data_dir: Path):
    splits = folder.scan(str(real_data_dir / "clothing"))
    expected = "dress hat longsleeve outwear pants shirt shoes shorts skirt t-shirt"
    assert " ".join(splits["train"].classes) == expected
    assert list(splits) == ["train", "val"]
