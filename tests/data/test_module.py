from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp import cores
from alexnet_exp.data import Folder, ImageData
from alexnet_exp.data.loaders import Batch
from alexnet_exp.data.module import Source
from alexnet_exp.data.randomness import permutation
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import UserError
from tests.data.made import COMMON, Made
from tests.data.makers import write_folder


def ready(**options: Any) -> Made:
    data = Made(**options)
    data.setup()
    return data


def pixels(source: Source) -> list[bytes]:
    assert isinstance(source, ArraySource)
    return [image.numpy().tobytes() for image in source.images]


def sizes(data: ImageData) -> dict[str, int]:
    return {split: len(source) for split, source in data.sources.items()}


# -------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("how", ["random", "last"])
@pytest.mark.parametrize("val_size", [0, 1, 7, 21])
def test_validation_is_split_from_training_without_losing_images(how: str, val_size: int):
    whole, data = ready(), ready(val_size=val_size, val_split=how)
    train, val = pixels(data.sources["train"]), pixels(data.sources["val"]) if val_size else []
    assert (len(train), len(val)) == (22 - val_size, val_size)
    assert sorted(train + val) == sorted(pixels(whole.sources["train"]))
    assert not set(train + val) & set(pixels(data.sources["test"]))


def test_without_validation_there_is_no_val_split():
    assert sizes(ready(val_size=0)) == {"train": 22, "test": 9}
    assert ready(val_size=0).val_dataloader() == []


def test_a_random_validation_set_is_stratified_and_depends_only_on_val_seed():
    first = ready(val_size=6, seed=0)
    assert first.sources["val"].labels.bincount().tolist() == [2, 2, 2]
    assert pixels(ready(val_size=6, seed=9).sources["val"]) == pixels(first.sources["val"])
    assert pixels(ready(val_size=6, val_seed=1).sources["val"]) != pixels(first.sources["val"])


def test_validation_images_come_from_outside_the_training_subset():
    whole, data = ready().sources["train"], ready(train_subset=10, val_size=5)
    assert pixels(data.sources["train"]) == pixels(whole)[:10]
    assert set(pixels(data.sources["val"])) <= set(pixels(whole)[10:])
    assert sizes(data) == {"train": 10, "val": 5, "test": 9}
    last = ready(train_subset=10, val_size=5, val_split="last")
    assert pixels(last.sources["val"]) == pixels(whole)[17:]


def test_all_images_outside_the_training_subset_can_be_validation():
    assert sizes(ready(train_subset=10, val_size=12)) == {"train": 10, "val": 12, "test": 9}


def test_the_training_subset_does_not_change_with_val_size():
    assert pixels(ready(train_subset=4, val_size=9).sources["train"]) == pixels(
        ready(train_subset=4).sources["train"]
    )


def test_the_test_subset_is_the_first_images_in_file_order():
    data = ready(test_subset=4, val_size=3)
    assert pixels(data.sources["test"]) == pixels(ready().sources["test"])[:4]
    assert sizes(data) == {"train": 19, "val": 3, "test": 4}


def test_existing_validation_split_is_kept_whole():
    data = ready(own_val=True, train_subset=4)
    assert sizes(data) == {"train": 4, "val": 6, "test": 9}


def test_images_keep_their_published_numbers_after_splitting():
    data, whole = ready(train_subset=10, val_size=5), ready().sources["train"]
    for split in ("train", "val"):
        for i, image in enumerate(pixels(data.sources[split])):
            assert data.sources[split].image_name(i) == f"train image {pixels(whole).index(image)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 22}, "invalid data.val_size=22: expected at most 21"),
        ({"train_subset": 10, "val_size": 13}, "only 12 images are left .* use data.val_size=12 or less"),
        ({"train_subset": 23}, "invalid subset of made train: expected 1 to 22 images, not 23"),
        ({"train_subset": 0}, "invalid subset of made train: expected 1 to 22 images, not 0"),
        ({"test_subset": 10}, "invalid subset of made test: expected 1 to 9 images, not 10"),
    ],
)
def test_splits_larger_than_the_data_are_refused(options: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        ready(**options)


def test_images_are_read_once_for_all_setup_calls():
    data = Made(val_size=3)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.loads == 1


def test_data_without_test_images_has_no_test_loader():
    assert ready(test=False).test_dataloader() == []


# -------------------------------------------------------------------------------- settings


def test_one_channel_uses_the_average_of_three_means():
    data = Made(channels=1)
    assert data.preprocess.mean == pytest.approx([0.5])
    assert data.preprocess.std == pytest.approx([0.3])


def test_one_mean_is_used_for_all_three_channels():
    data = Made(mean=[0.1], std=[0.2])
    assert (data.preprocess.mean, data.preprocess.std) == ([0.1] * 3, [0.2] * 3)


def test_a_wrong_number_of_means_is_refused():
    with pytest.raises(UserError, match=r"data\.mean and data\.std need 3 values, not 2"):
        Made(mean=[0.1, 0.2])


@pytest.mark.parametrize(("image_size", "expected"), [(224, 256), (227, 256), (32, 36), (3, 3)])
def test_stored_size_defaults_to_an_eighth_more_than_the_input(image_size: int, expected: int):
    assert Made(image_size=image_size).stored_size == expected
    assert Made(image_size=image_size, stored_size=300).stored_size == 300


def test_preprocessing_is_plain_and_complete():
    settings = Made(augment={"crop": True}, channels=1, stored_size=9).preprocessing()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["mean"] == pytest.approx([0.5])
    assert settings["std"] == pytest.approx([0.3])
    rest = {name: value for name, value in settings.items() if name not in ("mean", "std")}
    assert rest == {
        "image_size": 6,
        "stored_size": 9,
        "fit": "crop",
        "crop": True,
        "channels": 1,
        "whiten": False,
        "mean_image": None,
    }


def test_a_stored_image_is_the_one_in_the_split(tmp_path: Path):
    data = ready(val_size=4)
    assert data.stored_image("val", 2).numpy().tobytes() == pixels(data.sources["val"])[2]
    write_folder(tmp_path, {"train/a": 2, "train/b": 2}, size=(20, 12))
    files = Folder(str(tmp_path), **COMMON, stored_size=7)
    files.setup()
    image = files.stored_image("train", 3)
    assert (image.shape, image.dtype) == ((3, 7, 7), torch.uint8)
    assert torch.equal(image, next(iter(files.loader("train"))).images[3])


def test_workers_default_to_one_per_available_core(monkeypatch: pytest.MonkeyPatch):
    for count, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        assert Made()._workers() == expected
    assert Made(num_workers=0)._workers() == 0


def test_loaders_shuffle_training_only():
    data = ready(val_size=6)
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert torch.cat([b.indices for b in train]).tolist() == permutation(16, "order", 0, 0).tolist()
    assert torch.cat([b.indices for b in val]).tolist() == list(range(6))
    assert torch.cat([b.indices for b in test]).tolist() == list(range(9))


# -------------------------------------------------------------------------------- devices


class Watched:
    """Stands in for a tensor; records how it is sent."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sent: list[bool] = []

    def to(self, device: torch.device, non_blocking: bool) -> Watched:
        self.sent.append(non_blocking)
        return self


@pytest.mark.parametrize(("device", "non_blocking"), [("cuda", True), ("mps", False)])
def test_only_cuda_copies_pageable_memory_without_waiting(device: str, non_blocking: bool):
    tensor: Any = Watched()
    ready().transfer_batch_to_device(Batch(tensor, tensor, tensor, 1, 1), torch.device(device, 0), 0)
    assert tensor.sent == [non_blocking] * 3


def test_augmentation_is_drawn_once_per_epoch_on_cuda_only(monkeypatch: pytest.MonkeyPatch):
    data = ready(augment={"flip": "alternating", "pad": 2})
    data.train_dataloader()
    assert data.pipeline.augment.draw is None
    batch = data.sources["train"].images[:5], torch.arange(5)
    expected = [data.pipeline.train(*batch, 3, epoch) for epoch in range(3)]
    monkeypatch.setattr(ImageData, "_device", lambda self: torch.device("cuda", 0))
    data._place = "off"
    data.train_dataloader()
    assert data.pipeline.augment.draw is not None
    for epoch, images in enumerate(expected):
        assert torch.equal(data.pipeline.train(*batch, 3, epoch), images)


def test_balanced_images_that_come_again_are_augmented_on_cuda_as_on_cpu(monkeypatch: pytest.MonkeyPatch):
    data = ready(augment={"flip": "alternating", "pad": 2}, balanced=True)
    again = torch.arange(5) + len(data.sources["train"])  # their second time in an epoch
    batch = data.sources["train"].images[:5], again
    expected = data.pipeline.train(*batch, 3, 0)
    monkeypatch.setattr(ImageData, "_device", lambda self: torch.device("cuda", 0))
    data._place = "off"
    data.train_dataloader()
    assert torch.equal(data.pipeline.train(*batch, 3, 0), expected)
