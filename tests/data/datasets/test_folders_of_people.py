"""Folders as users have them: other split names, files that are not images, images in odd places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alexnet_exp.cli import main
from alexnet_exp.data.datasets.folder import split_folders
from alexnet_exp.errors import UserError
from alexnet_exp.runs.predict.command import find_images
from tests.data.datasets.test_folder import touch
from tests.data.makers import write_folder
from tests.data.test_split_rules import names, opened


def refused(root: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("train", "validation", "testing"),
        ("train", "dev", "TEST"),
        ("Train", "Val", "Test"),
        ("TRAINING", "Validation Set", "test_set"),
        ("train2017", "val2017", "test-images"),
        ("images_train", "images.val", "testset"),
    ],
)
def test_common_split_names_are_recognised_in_any_case(tmp_path: Path, train: str, val: str, test: str):
    touch(tmp_path, *(f"{split}/{c}/1.jpg" for split in (train, val, test) for c in "ab"))
    data = opened(tmp_path)
    assert data.origins == {"train": f"folder {train}", "val": f"folder {val}", "test": f"folder {test}"}
    assert names(data, "val") == {f"{val}/a/1.jpg", f"{val}/b/1.jpg"}
    message = refused(tmp_path, "data.val_fraction=0.2")
    assert f"already has a {val} folder: leave data.val_fraction out" in message


@pytest.mark.parametrize("pair", [("val", "valid"), ("Val", "val"), ("val", "dev"), ("train", "Training")])
def test_two_folders_for_one_split_are_named_and_refused(tmp_path: Path, pair: tuple[str, str]):
    touch(tmp_path, *(f"{split}/{c}/1.jpg" for split in {"train", *pair} for c in "ab"))
    if len({entry.name for entry in tmp_path.iterdir()}) < len({"train", *pair}):
        pytest.skip("the file system takes both names for one")
    message = refused(tmp_path)
    assert all(f"{tmp_path}/{name} " in f"{message} " for name in pair)
    assert "rename or remove" in message


def test_an_ambiguous_folder_is_named_and_refused(tmp_path: Path):
    touch(tmp_path, *(f"{split}/{c}/1.jpg" for split in ("train", "eval") for c in "ab"))
    assert f"{tmp_path}/eval could be val or test" in refused(tmp_path)


def test_images_without_class_folders_and_classes_of_one_image_get_a_sentence_that_helps(tmp_path: Path):
    touch(tmp_path, "loose/1.jpg", "single/cup/1.jpg", "single/cup/2.jpg", "few/cup/1.jpg", "few/plate/1.jpg")
    assert "put the images of each class into a folder named after it" in refused(tmp_path / "loose")
    assert "has only one class (cup): add at least one more class folder" in refused(tmp_path / "single")
    assert refused(tmp_path / "few") == (
        f"No class of {tmp_path / 'few'} has two images, so none can be held out for validation: add images."
    )


def test_val_and_test_without_train_are_refused(tmp_path: Path):
    touch(tmp_path, *(f"{split}/{c}/1.jpg" for split in ("Valid", "Testing") for c in "ab"))
    assert f"add {tmp_path}/train" in refused(tmp_path, "data.val_fraction=0.5")


@pytest.mark.parametrize(
    "classes", [("bus", "car", "train"), ("dev", "prod"), ("test", "val"), ("cat", "Test tube")]
)
def test_classes_can_be_named_like_splits(tmp_path: Path, classes: tuple[str, ...]):
    touch(tmp_path, *(f"{name}/{name}{i}.jpg" for name in classes for i in range(9)))
    assert opened(tmp_path, "data.val_fraction=0.4").classes == tuple(sorted(classes))


def test_classes_named_like_splits_can_have_subfolders(tmp_path: Path):
    touch(tmp_path, *(f"{name}/of {name}/{name}{i}.jpg" for name in ("dev", "test") for i in range(9)))
    assert opened(tmp_path, "data.val_fraction=0.4").classes == ("dev", "test")


def test_a_run_without_a_recorded_rule_knows_only_the_old_names(tmp_path: Path):
    touch(tmp_path, *(f"{split}/{c}/1.jpg" for split in ("train", "valid") for c in "ab"))
    assert split_folders(str(tmp_path), "by_order") == {"train": "train"}
    assert list(opened(tmp_path, "data.split_rule=by_order").sources) == ["train"]


def test_class_folders_one_level_down_are_suggested(tmp_path: Path):
    touch(tmp_path, *(f"flowers/{c}/1.jpg" for c in "ab"))
    assert f"set data.root={tmp_path}/flowers" in refused(tmp_path)
    assert f"set data.root={tmp_path}/flowers" in refused(tmp_path, "data.val_fraction=null")


def test_a_folder_of_classes_is_split_without_being_asked_and_says_so(tmp_path: Path):
    counts = {"cup": 20, "plate": 20, "spoon": 1}
    touch(tmp_path, *(f"{name}/{i}.jpg" for name, count in counts.items() for i in range(count)))
    data, said = opened(tmp_path), []
    data.tell(said.append)
    assert data.chosen == {"val_fraction": 0.2}
    assert said[1].startswith(
        "val    8 images, 2 classes (4 of each), cut from train: val_fraction=0.2 of every class"
    )
    assert said[-1] == (
        f"{tmp_path} has no val folder: 20 % of each of its 3 classes (8 of 41 images) are held out for validation; a "
        "class with one image keeps it for training. Set data.val_fraction to change the share."
    )


def test_a_typed_fraction_folds_and_split_folders_need_no_explanation(tmp_path: Path):
    touch(
        tmp_path,
        *(f"{root}{c}/{i}.jpg" for root in ("flat/", "split/train/") for c in "ab" for i in range(9)),
    )
    for root, typed, splits in (
        ("flat", "data.val_fraction=0.2", ["train", "val"]),
        ("flat", "data.folds=3", ["train", "val"]),
        ("split", "data.fold=0", ["train"]),
    ):
        data, said = opened(tmp_path / root, typed), []
        data.tell(said.append)
        assert list(data.sources) == splits and not [line for line in said if "has no val folder" in line]
        assert data.chosen.get("val_fraction") is None


def messy(root: Path) -> None:
    """Make a messy download of a phone export: 8 images in class folders, and much else."""
    touch(root, *(f"train/{c}/{name}" for c in "ab" for name in ("1.jfif", "2.JPE", "3.jpg", "deep/4.png")))
    touch(root, *(f"train/a/IMG_{i}.CR2" for i in range(60)), *(f"train/b/{i}.avif2" for i in range(3)))
    touch(root, *(f"train/loose {i}.png" for i in range(40)), "train/a/no ending", "extra/1.jpg", "top.jpg")
    touch(root, "train/a/Thumbs.db", "train/b/.DS_Store", "train/a/._1.jpg", "labels/1.txt", "README.md")
    touch(root, "__MACOSX/train/a/1.jpg", "train/a/@eaDir/1.jpg", "train/a/1.AAE")


def test_skipped_files_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    messy(tmp_path)
    data = opened(tmp_path)
    assert names(data, "train") == {
        f"train/{c}/{name}" for c in "ab" for name in ("1.jfif", "2.JPE", "3.jpg", "deep/4.png")
    }
    (line,) = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert "64 files" in line
    assert "60 .cr2, 3 .avif2, 1 without an ending; such as train/a/IMG_0.CR2" in line
    assert "41 images outside the class folders (such as train/loose 0.png)" in line
    assert "1 folder of no known split (extra)" in line
    assert not re.search(r"Thumbs|DS_Store|README|labels|eaDir|MACOSX|aae", line)


def test_a_class_without_readable_files_is_named(tmp_path: Path):
    touch(tmp_path, "train/a/1.jpg", *(f"train/b/{i}.xcf" for i in range(7)))
    assert "train/b has no images" in (message := refused(tmp_path))
    assert "but 7 .xcf" in message


def test_a_clean_folder_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    touch(tmp_path, *(f"train/{c}/1.jpg" for c in "ab"), "README.txt", "data.yaml", "train/Thumbs.db")
    opened(tmp_path)
    assert not caplog.records


def test_predict_counts_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    touch(tmp_path, *(f"{i}.jpg" for i in range(6)), *(f"{i}.xcf" for i in range(60)), "sub/1.jfif", "a.txt")
    assert len(find_images(str(tmp_path))) == 7
    assert "60 .xcf" in capsys.readouterr().err
    assert len(find_images(f"{tmp_path}/*")) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: skipping 60 files")
    assert f"such as {tmp_path}/0.xcf;" in line


def test_prepare_finds_the_same_splits_and_skips_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "pets"
    write_folder(root, {f"{split}/{c}": 2 for split in ("Train", "Valid") for c in ("cat", "dog")})
    touch(root, "Train/cat/1.xcf")
    assert main(["prepare", f"data.root={root}", "cache=true", f"paths.cache_dir={tmp_path / 'c'}", "size=8",
                 "num_workers=1"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert "cached: 8 images" in out
    assert err.startswith("Left out of")
    assert "1 .xcf" in err
