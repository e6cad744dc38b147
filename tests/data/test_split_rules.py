"""How splits are made: stratified, by name, by order; class-balanced subsets; the spread order of a split."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data import Digits, Folder, ImageData
from alexnet_exp.data.sources import draw, spread_order, validation_by_class, validation_by_name
from alexnet_exp.errors import UserError
from alexnet_exp.targets import build
from tests.data.datasets.test_folder import touch
from tests.data.makers import write_folder

BY_NAME = "data.split_rule=by_name"
COMMON: dict[str, Any] = {"batch_size": 8, "image_size": 32, "mean": [0.5], "std": [0.25], "num_workers": 0}


@functools.cache
def _composed(kind: str) -> dict[str, Any]:
    return plain(
        compose("train", ["model=alexnet_cifar", f"data={kind}", "data.root=root", "data.num_workers=0"])
    )


def opened(root: Path, *overrides: str, kind: str = "folder") -> ImageData:
    """Return the data module of a command line with data=KIND and `data.KEY=VALUE`."""
    config = _composed(kind)
    typed = dict(override.removeprefix("data.").split("=") for override in overrides)
    assert set(typed) <= set(config["data"])
    keys = {**config["data"], **{key: yaml.safe_load(value) for key, value in typed.items()}}
    data: ImageData = build({**keys, "root": str(root), "cache": "off"}, augment=config["augment"], seed=0)
    data.setup()
    return data


def names(data: ImageData, split: str) -> set[str]:
    source = data.sources[split]
    return {source.image_name(i) for i in range(len(source))}


def classes_of(data: ImageData, split: str) -> dict[str, int]:
    source = data.sources[split]
    return dict(Counter(source.classes[label] for label in source.labels.tolist()))


def three_classes(root: Path, count: int = 20) -> None:
    touch(root, *(f"{name}/{name} {i}.jpg" for name in ("ant", "bee", "cat") for i in range(count)))


# -------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("added", ["ant/aaa.jpg", "bee/bee 7b.jpg", "cat/zzz.jpg", "cat/sub/deep.jpg"])
def test_by_name_adding_a_file_moves_no_other(tmp_path: Path, added: str):
    three_classes(tmp_path)
    before = opened(tmp_path, "data.val_fraction=0.3", BY_NAME)
    touch(tmp_path, added)
    after = opened(tmp_path, "data.val_fraction=0.3", BY_NAME)
    for split in ("train", "val"):
        assert names(after, split) - {added} == names(before, split)


def test_by_name_removing_a_file_moves_no_other(tmp_path: Path):
    three_classes(tmp_path)
    before = opened(tmp_path, "data.val_fraction=0.3", BY_NAME)
    (tmp_path / "ant/ant 3.jpg").unlink()
    after = opened(tmp_path, "data.val_fraction=0.3", BY_NAME)
    assert names(after, "val") == names(before, "val") - {"ant/ant 3.jpg"}


def _hash(name: str, seed: int) -> float:
    """Return the number in [0, 1) that decides about a file."""
    return (
        int.from_bytes(hashlib.blake2b(f"validation/{seed}/{name}".encode(), digest_size=6).digest(), "big")
        / 2**48
    )


def test_by_name_validates_the_images_whose_hash_is_below_the_fraction(tmp_path: Path):
    three_classes(tmp_path)
    data = opened(tmp_path, "data.val_fraction=0.3", "data.val_seed=4", BY_NAME)
    everything = names(data, "train") | names(data, "val")
    assert len(everything) == 60
    assert names(data, "val") == {name for name in everything if _hash(name.split("/")[1], 4) < 0.3}


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.98])
def test_the_stratified_share_is_met_in_every_class(tmp_path: Path, fraction: float):
    counts = {"ant": 40, "bee": 13, "cat": 3, "dog": 2, "eel": 1}
    touch(tmp_path, *(f"{name}/{name} {i}.jpg" for name, count in counts.items() for i in range(count)))
    data = opened(tmp_path, f"data.val_fraction={fraction}", "data.val_seed=4")
    expected = set()
    for name, count in counts.items():
        share = min(max(round(count * fraction), 1), count - 1)
        ordered = sorted((f"{name} {i}.jpg" for i in range(count)), key=lambda file: _hash(file, 4))
        expected |= {f"{name}/{file}" for file in ordered[:share]}
    assert names(data, "val") == expected
    assert len(names(data, "train")) == 59 - len(expected)
    assert not any(name.startswith("eel") for name in expected)


def test_forty_photos_of_two_things_leave_eight_for_validation(tmp_path: Path):
    touch(tmp_path, *(f"{name}/IMG_{i}.jpg" for name in ("cup", "plate") for i in range(4000, 4020)))
    for seed in range(20):
        data = opened(tmp_path, "data.val_fraction=0.2", f"data.val_seed={seed}")
        assert classes_of(data, "val") == {"cup": 4, "plate": 4}
        assert classes_of(data, "train") == {"cup": 16, "plate": 16}


def test_the_stratified_split_depends_on_neither_file_order_nor_other_classes():
    labels, paths = torch.tensor([0] * 30 + [1] * 50), [f"{i}.jpg" for i in range(80)]
    chosen = validation_by_class(labels, paths, 0.3, 0)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    shuffled = validation_by_class(labels[order], [paths[i] for i in order], 0.3, 0)
    assert torch.equal(shuffled, chosen[order])
    assert torch.equal(validation_by_class(labels[:30], paths[:30], 0.3, 0), chosen[:30])


def test_the_stratified_split_moves_at_most_one_image_for_an_added_one(tmp_path: Path):
    three_classes(tmp_path)
    before = names(opened(tmp_path, "data.val_fraction=0.3"), "val")
    moved = []
    for i in range(20):
        touch(tmp_path, f"bee/new {i}.jpg")
        after = names(opened(tmp_path, "data.val_fraction=0.3"), "val")
        moved.append({name for name in before ^ after if name != f"bee/new {i}.jpg"})
        before = after
    assert max(map(len, moved)) == 1
    assert all(name.startswith("bee/") for names_ in moved for name in names_)


@pytest.mark.parametrize("rule", ["stratified", "by_name"])
def test_renaming_a_class_moves_no_image(tmp_path: Path, rule: str):
    typed = ("data.val_fraction=0.3", f"data.split_rule={rule}")
    three_classes(tmp_path)
    before = names(opened(tmp_path, *typed), "val")
    (tmp_path / "ant").rename(tmp_path / "zebra")
    after = names(opened(tmp_path, *typed), "val")
    assert after == {name.replace("ant/", "zebra/") for name in before}


@pytest.mark.parametrize("rule", ["stratified", "by_name"])
def test_the_split_does_not_depend_on_the_data_folder(tmp_path: Path, rule: str):
    typed = ("data.val_fraction=0.3", f"data.split_rule={rule}")
    three_classes(tmp_path / "here")
    three_classes(tmp_path / "there" / "train")
    flat = names(opened(tmp_path / "here", *typed), "val")
    inside = names(opened(tmp_path / "there", *typed), "val")
    assert {f"train/{name}" for name in flat} == inside


@pytest.mark.parametrize("rule", ["stratified", "by_name"])
def test_a_larger_fraction_contains_the_smaller_one(tmp_path: Path, rule: str):
    three_classes(tmp_path)
    few, more = (
        names(opened(tmp_path, f"data.val_fraction={f}", f"data.split_rule={rule}"), "val")
        for f in (0.2, 0.5)
    )
    assert few < more


def test_val_seed_chooses_the_validation_images(tmp_path: Path):
    three_classes(tmp_path)
    one, two = (names(opened(tmp_path, "data.val_fraction=0.3", f"data.val_seed={s}"), "val") for s in (1, 2))
    assert one != two


def test_by_name_the_validation_share_matches_the_fraction_within_chance():
    paths = [f"{i}.jpg" for i in range(10_000)]
    for fraction in (0.1, 0.3, 0.9):
        chosen = validation_by_name(torch.zeros(10_000, dtype=torch.long), paths, fraction, 0)
        assert abs(chosen.float().mean() - fraction) < 0.015  # over three standard deviations


@pytest.mark.parametrize("choose", [validation_by_class, validation_by_name])
def test_every_class_keeps_a_training_image_whatever_the_fraction(choose: Callable[..., torch.Tensor]):
    labels, paths = torch.tensor([0, 1, 1, 2, 2, 2]), ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    for seed in range(50):
        assert labels[~choose(labels, paths, 0.99, seed)].unique().tolist() == [0, 1, 2]


def test_by_name_a_few_images_still_give_each_class_a_validation_image():
    labels, paths = torch.tensor([0, 0, 0, 1, 1, 1, 2]), [f"{i}.jpg" for i in (0, 1, 2, 0, 1, 2, 0)]
    for seed in range(50):
        counts = labels[validation_by_name(labels, paths, 0.2, seed)].bincount(minlength=3).tolist()
        assert counts[0] == counts[1] >= 1
        assert counts[2] == 0
    assert not validation_by_name(labels, paths, 0.01, 0).any()


def test_a_name_in_another_unicode_form_is_the_same_name():
    composed, decomposed = (unicodedata.normalize(form, "Kätzchen.jpg") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert draw(composed, 0) == draw(decomposed, 0)
    assert draw("\udcff.jpg", 0) != draw("\udcfe.jpg", 0)  # bytes that are not UTF-8


def test_val_size_is_drawn_by_name_too(tmp_path: Path):
    three_classes(tmp_path / "train")

    def validating() -> set[str]:
        data = Folder(str(tmp_path), split_rule="by_name", val_size=9, **COMMON)
        data.setup()
        assert data.sources["val"].labels.bincount().tolist() == [3, 3, 3]
        return names(data, "val")

    before = validating()
    touch(tmp_path, "train/ant/aaa.jpg")
    assert len(before - validating()) <= 1


def test_a_run_without_a_recorded_rule_keeps_the_old_split(tmp_path: Path):
    write_folder(tmp_path, {"cat": 10, "dog": 20}, size=(9, 8))
    old = Folder(str(tmp_path), val_fraction=0.2, **COMMON)
    old.setup()
    # As commit 3640d1b split them.
    dogs = {f"dog/{i}.jpg" for i in (4, 6, 11, 12)}
    assert names(old, "val") == {"cat/1.jpg", "cat/4.jpg"} | dogs


@pytest.mark.parametrize(
    ("rule", "how"), [("stratified", "of every class"), ("by_name", "by file name"), ("by_order", "by order")]
)
def test_origins_say_which_rule_made_a_split(tmp_path: Path, rule: str, how: str):
    three_classes(tmp_path)
    data = opened(tmp_path, "data.val_fraction=0.3", f"data.split_rule={rule}")
    assert data.origins == {
        "train": "data.root without val",
        "val": f"cut from train: val_fraction=0.3 {how}, val_seed=0",
    }


def test_the_origin_of_a_val_size_split_says_how_it_was_drawn():
    digits = Digits(**{**COMMON, "channels": 1}, val_size=180, test_subset=5)
    digits.setup()
    assert digits.origins == {
        "train": "the digits' train part without val",
        "val": "cut from train: val_size=180 at random, val_seed=0",
        "test": "the digits' test part, test_subset=5: the first",
    }


# -------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_a_subset_has_an_even_share_of_every_class(tmp_path: Path, kind: str):
    classes = {"n01440764": 20, "n02119789": 3, "n02100735": 20}
    touch(tmp_path, *(f"train/{c}/{c}_{i}.jpg" for c, count in classes.items() for i in range(count)))
    touch(tmp_path, *(f"{split}/{c}/{i}.jpg" for split in ("val", "test") for c in classes for i in range(5)))
    data = opened(tmp_path, "data.train_subset=15", "data.test_subset=4", kind=kind)
    assert classes_of(data, "train") == {"n01440764": 6, "n02119789": 3, "n02100735": 6}
    assert sorted(classes_of(data, "test").values()) == [1, 1, 2]
    assert len(data.sources["val"]) == 15


def test_the_subset_depends_on_its_own_seed(tmp_path: Path):
    touch(tmp_path, *(f"train/{c}/{c}_{i}.jpg" for c in "abc" for i in range(20)))
    first, again, other, by_val_seed = (
        names(opened(tmp_path, "data.train_subset=9", *more), "train")
        for more in ((), ("data.subset_seed=0",), ("data.subset_seed=1",), ("data.val_seed=1",))
    )
    assert first == again
    assert other == by_val_seed != first


def test_a_subset_without_all_classes_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    touch(tmp_path, *(f"train/{c}/{c}_{i}.jpg" for c in "abcd" for i in range(3)))
    data = opened(tmp_path, "data.train_subset=1")
    data.tell(str)
    assert "train has no images of 3 of 4 classes" in caplog.text


def test_a_subset_of_too_many_images_is_refused(tmp_path: Path):
    touch(tmp_path, *(f"train/{c}/{i}.jpg" for c in "ab" for i in range(3)))
    with pytest.raises(UserError, match="train: expected 1 to 6 images, not 7"):
        opened(tmp_path, "data.train_subset=7")


def test_validation_comes_from_outside_the_subset(tmp_path: Path):
    three_classes(tmp_path)
    data = opened(tmp_path, "data.val_fraction=0.3", "data.train_subset=9")
    assert set(classes_of(data, "train").values()) == {3}
    assert not names(data, "train") & names(data, "val")


# -------------------------------------------------------------------------------- spread order


def test_the_spread_order_starts_with_every_class_and_is_deterministic():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 18 + [3] * 2)
    order = spread_order(labels)
    assert sorted(order.tolist()) == list(range(100))
    assert set(labels[order[:4]].tolist()) == {0, 1, 2, 3}
    half = labels[order[:50]].bincount(minlength=4).tolist()
    assert all(abs(got - wanted) <= 1 for got, wanted in zip(half, (25, 15, 9, 1), strict=True))
    assert torch.equal(order, spread_order(labels))
    assert not torch.equal(
        order[:4].sort().values, torch.tensor([0, 50, 80, 98])
    )  # not just the first of each class
