from __future__ import annotations

import random

import pytest
import torch

from alexnet_exp.data.sources import split_validation
from alexnet_exp.errors import UserError


def shuffled_labels(*counts: int) -> torch.Tensor:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return torch.tensor(labels)


@pytest.mark.parametrize("how", ["random", "last"])
@pytest.mark.parametrize("val_size", [0, 1, 7, 99])
def test_parts_are_disjoint_complete_and_ascending(how: str, val_size: int):
    labels = shuffled_labels(50, 30, 20)
    train, val = split_validation(labels, val_size, how, seed=0)
    assert len(val) == val_size
    assert sorted(train.tolist() + val.tolist()) == list(range(100))
    for part in (train, val):
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())


def test_a_random_split_is_stratified():
    labels = shuffled_labels(500, 300, 200)
    _, val = split_validation(labels, 100, "random", seed=0)
    assert labels[val].bincount().tolist() == [50, 30, 20]


def test_leftover_images_go_to_the_largest_remainders():
    labels = shuffled_labels(10, 25, 14, 1)  # 7 of 50 images: shares of 1.4, 3.5, 1.96 and 0.14
    _, val = split_validation(labels, 7, "random", seed=0)
    assert labels[val].bincount(minlength=4).tolist() == [1, 4, 2, 0]


@pytest.mark.parametrize("val_size", range(0, 24))
def test_no_class_is_more_than_one_image_off_its_share(val_size: int):
    counts = (3, 7, 0, 1, 13)
    labels = shuffled_labels(*counts)
    _, val = split_validation(labels, val_size, "random", seed=4)
    taken = labels[val].bincount(minlength=5).tolist()
    assert sum(taken) == val_size
    assert all(abs(got - val_size * count / 24) < 1 for got, count in zip(taken, counts, strict=True))


def test_a_random_split_depends_only_on_its_seed():
    labels = shuffled_labels(50, 50)
    torch.manual_seed(1)
    first = split_validation(labels, 20, "random", seed=0)[1]
    torch.manual_seed(2)
    assert torch.equal(split_validation(labels, 20, "random", seed=0)[1], first)
    assert not torch.equal(split_validation(labels, 20, "random", seed=1)[1], first)


def test_every_image_is_chosen_equally_often_over_the_seeds():
    labels = shuffled_labels(10, 10)
    chosen = sum(
        split_validation(labels, 4, "random", seed)[1].bincount(minlength=20) for seed in range(1000)
    )
    assert chosen.min() > 200 - 5 * 12.6  # binomial, 1000 draws with p = 1/5: mean 200, deviation 12.6
    assert chosen.max() < 200 + 5 * 12.6


def test_last_takes_the_last_images_in_file_order():
    train, val = split_validation(shuffled_labels(6, 4), 3, "last", seed=0)
    assert train.tolist() == list(range(7))
    assert val.tolist() == [7, 8, 9]


@pytest.mark.parametrize("how", ["random", "last"])
@pytest.mark.parametrize("val_size", [10, 11])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(how: str, val_size: int):
    with pytest.raises(UserError, match=f"invalid data.val_size={val_size}: expected at most 9"):
        split_validation(shuffled_labels(5, 5), val_size, how, seed=0)


@pytest.mark.parametrize("how", ["random", "last"])
def test_all_images_can_validate_if_none_must_be_kept(how: str):
    train, val = split_validation(shuffled_labels(5, 5), 10, how, seed=0, keep=0)
    assert (len(train), val.tolist()) == (0, list(range(10)))
