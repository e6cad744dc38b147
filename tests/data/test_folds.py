"""Cross-validation folds: each training image is held out once, classes are spread evenly, groups stay together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data.datasets.classes import Digits, Folder
from alexnet_exp.data.folds import fold_of_each
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError
from tests.data.makers import write_folder


def files(counts: dict[str, int], shots: int = 1) -> FileSource:
    """Return paths train/CLASS/OBJECT_SHOT.jpg; no such files exist."""
    names = [f"{c}/{i // shots}_{i % shots}.jpg" for c, count in counts.items() for i in range(count)]
    labels = torch.tensor([i for i, count in enumerate(counts.values()) for _ in range(count)])
    paths = tuple(f"/data/train/{name}" for name in names)
    return FileSource(paths, labels, tuple(counts), "data train", "/data", depth=2)


def digits(**options: object) -> Digits:
    made = Digits(batch_size=8, image_size=8, mean=[0.3], std=[0.4], **options)  # type: ignore[arg-type]
    made.setup()
    return made


def test_classes_and_their_remainders_are_spread_evenly() -> None:
    source = files({f"class {i}": 6 for i in range(200)})
    fold = fold_of_each(source, 5, 0)
    for label in range(200):
        counts = torch.bincount(fold[source.labels == label], minlength=5)
        assert sorted(counts.tolist()) == [1, 1, 1, 1, 2]
    totals = torch.bincount(fold, minlength=5)
    assert totals.sum() == 1200 and totals.min() > 200 and totals.max() < 290


def test_adding_an_image_only_moves_images_at_fold_boundaries() -> None:
    before, after = files({"a": 50, "b": 20}), files({"a": 51, "b": 20})
    old = dict(zip(before.paths, fold_of_each(before, 5, 0).tolist(), strict=True))
    new = dict(zip(after.paths, fold_of_each(after, 5, 0).tolist(), strict=True))
    assert sum(new[path] != fold for path, fold in old.items()) <= 4
    assert old != dict(zip(before.paths, fold_of_each(before, 5, 1).tolist(), strict=True))


def test_each_image_in_memory_is_held_out_once_and_the_test_images_stay() -> None:
    seen: Counter[int] = Counter()
    for fold in range(4):
        data = digits(folds=4, fold=fold, val_size=180)
        train, val = data.sources["train"], data.sources["val"]
        assert len(train) + len(val) == 1442 and len(data.sources["test"]) == 355
        assert not set(train.numbers.tolist()) & set(val.numbers.tolist())  # type: ignore[union-attr]
        assert torch.bincount(val.labels).max() - torch.bincount(val.labels).min() <= 3
        seen.update(val.numbers.tolist())  # type: ignore[union-attr]
    assert len(seen) == 1442 and set(seen.values()) == {1}
    assert data.origins["val"] == "cut from train: fold 3 of 4 at random, val_seed=0"


@pytest.mark.parametrize("how", ["pattern", "file"])
def test_the_images_of_a_group_are_in_one_fold(how: str, tmp_path: Path) -> None:
    source = files({"a": 60, "b": 30}, shots=3)
    wanted = r"train/(.*)_\d"
    if how == "file":
        wanted = str(tmp_path / "groups.csv")
        names = [path.removeprefix("/data/") for path in source.paths]
        (tmp_path / "groups.csv").write_text("".join(f"{name},{name.split('_')[0]}\n" for name in names))
    fold = fold_of_each(source, 5, 0, wanted)
    by_object: dict[str, set[int]] = {}
    for path, number in zip(source.paths, fold.tolist(), strict=True):
        by_object.setdefault(path.split("_")[0], set()).add(number)
    assert len(by_object) == 30 and all(len(numbers) == 1 for numbers in by_object.values())
    for label, share in ((0, 12), (1, 6)):
        assert torch.bincount(fold[source.labels == label], minlength=5).tolist() == [share] * 5


def test_an_image_without_a_group_forms_its_own_group(caplog: pytest.LogCaptureFixture) -> None:
    source = files({"a": 9, "b": 9}, shots=3)
    fold = fold_of_each(source, 3, 0, r"train/(a/\d+)_")
    assert "9 of 18 training images have no group, such as train/b/0_0.jpg" in caplog.text
    assert torch.bincount(fold).tolist() == [6, 6, 6]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("train/.*_", "put parentheses"), ("(", "expected a csv file or a regular expression"),
     ("(nowhere)", "matches no training image"), ("missing.csv", "missing.csv"),
     ("train/(.)/", "makes 2 groups, too few for data.folds=5")],
)  # fmt: skip
def test_invalid_groups_are_refused_in_one_sentence(wanted: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        fold_of_each(files({"a": 9, "b": 9}), 5, 0, wanted)
    assert said in str(error.value)


def folder(root: Path, **options: object) -> Folder:
    made = Folder(
        str(root), batch_size=2, image_size=8, mean=[0.5], std=[0.5], split_rule="by_name", **options
    )  # type: ignore[arg-type]
    made.setup()
    return made


def test_plain_class_folders_are_enough_and_a_val_folder_is_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path / "plain", {"a": 6, "b": 6})
    data = folder(tmp_path / "plain", folds=3, fold=1)
    assert (len(data.sources["train"]), len(data.sources["val"])) == (8, 4)
    write_folder(
        tmp_path / "split", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 1, "test/a": 1, "test/b": 1}
    )
    data = folder(tmp_path / "split", folds=3, fold=1)
    paths = [path for source in (data.sources["train"], data.sources["val"]) for path in source.paths]  # type: ignore[union-attr]
    assert len(set(paths)) == 12 and all("/train/" in path for path in paths)
    said: list[str] = []
    data.tell(said.append)
    assert said[-1] == "Ignoring the data set's 3 val images: fold 1 is used for validation."


def test_a_training_subset_does_not_shrink_the_held_out_fold() -> None:
    data = digits(folds=4, fold=0, train_subset=100)
    assert len(data.sources["train"]) == 100 and len(data.sources["val"]) > 350


def test_conflicting_fold_settings_are_refused() -> None:
    for typed, said in (
        (["data.folds=3", "data.fold=3"], "expected 0 to 2"),
        (["data.fold=1"], "needs data.folds"),
        (
            ["data=folder", "data.root=x", "data.folds=3", "data.val_fraction=0.1"],
            "leave data.val_fraction out",
        ),
    ):
        with pytest.raises(UserError, match=said):
            check_config(plain(compose("train", typed)))
    check_config(plain(compose("train", ["data.folds=3", "data.val_size=0", "scheduler=plateau"])))


def test_folds_depend_on_names_inside_class_folders() -> None:
    source = files({"a": 30, "b": 30})
    moved = replace(
        source, paths=tuple(path.replace("/data/", "/other/") for path in source.paths), root="/other"
    )
    assert torch.equal(fold_of_each(source, 5, 0), fold_of_each(moved, 5, 0))
