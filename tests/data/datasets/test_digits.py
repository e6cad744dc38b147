from __future__ import annotations

import pytest
import torch

from alexnet_exp.data.datasets import digits
from alexnet_exp.errors import UserError


def test_class_counts_match_uci():
    labels = torch.cat([digits.load(split, 1).labels for split in ("train", "test")])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_split_has_1442_training_and_355_test_images():
    assert (len(digits.load("train", 1)), len(digits.load("test", 1))) == (1442, 355)


def test_first_image_is_the_first_row_of_the_published_table():
    first_rows = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]
    source = digits.load("train", 1)
    scaled = [[round(value * 255 / 16) for value in row] for row in first_rows]
    assert source.images[0, 0, :2].tolist() == scaled
    assert source.labels[:10].tolist() == list(range(10))


def test_values_span_0_to_255_in_17_steps():
    values = digits.load("train", 1).images.unique().tolist()
    assert values == [round(step * 255 / 16) for step in range(17)]


def test_labels_match_the_images():
    train, test = digits.load("train", 1), digits.load("test", 1)
    distances = torch.cdist(test.images.flatten(1).float(), train.images.flatten(1).float())
    nearest = train.labels[distances.argmin(1)]
    assert (nearest == test.labels).float().mean() > 0.95


def test_three_channels_repeat_the_grey_value():
    grey, rgb = digits.load("test", 1), digits.load("test", 3)
    assert rgb.images.shape == (355, 3, 8, 8)
    assert rgb.images.dtype == torch.uint8
    for channel in range(3):
        assert torch.equal(rgb.images[:, channel], grey.images[:, 0])


def test_two_channels_are_refused():
    with pytest.raises(UserError, match=r"data\.channels=2"):
        digits.load("train", 2)


def test_image_names_refer_to_the_published_split_after_subsetting():
    source = digits.load("test", 1)
    cut = source.subset(torch.tensor([30, 10, 20])).subset(torch.tensor([2, 0]))
    assert [cut.image_name(i) for i in range(2)] == ["test image 20", "test image 30"]
    assert torch.equal(cut.images, source.images[[20, 30]])
    assert torch.equal(cut.labels, source.labels[[20, 30]])
    assert source.first(4).image_name(3) == "test image 3"
    assert cut.first(1).image_name(0) == "test image 20"


@pytest.mark.parametrize("count", [0, -1, 361])
def test_a_subset_larger_than_the_split_is_refused(count: int):
    with pytest.raises(UserError, match="invalid subset of digits test"):
        digits.load("test", 1).first(count)
