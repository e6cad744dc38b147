"""Random resized crops of files come from the whole image, as torchvision's do, not from its central square."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from alexnet_exp.config.compose import group
from alexnet_exp.data.augment.geometry import random_boxes
from alexnet_exp.data.datasets.classes import Folder
from alexnet_exp.data.decode import decode, stored
from tests.data.augment.test_resized_crop import RATIO, SCALE, distance
from tests.data.makers import write_folder

CROP = {**group("augment", "resized_crop"), "flip": False}
SIZES = {"a": (30, 12), "b": (12, 20), "c": (16, 16)}  # width, height


@pytest.mark.parametrize("aspect", [16 / 9, 0.4, 4.0])
def test_boxes_of_an_image_that_is_not_square_are_distributed_as_torchvisions(aspect: float) -> None:
    count, height = 4000, 10_000
    width = round(height * aspect)
    image = torch.empty(1).expand(3, height, width)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]
    y, x, h, w = torch.tensor(drawn, dtype=torch.float64).T
    corner, size = random_boxes(torch.arange(count), SCALE, RATIO, 0, 0, torch.full((count,), aspect))
    pixels = torch.tensor([width, height])
    (left, top), (across, down) = (corner * pixels).double().T, (size * pixels).double().T
    pairs = {
        "x": (left, x), "y": (top, y), "width": (across, w), "height": (down, h),
        "ratio": (1e5 * across / down, 1e5 * w / h), "right": (left + across, x + w), "bottom": (top + down, y + h),
    }  # fmt: skip
    for name, pair in pairs.items():
        # Boxes that do not fit are all the same: torchvision rounds them to pixels, which would part them from ours.
        ours, theirs = ((values / 100).round() for values in pair)
        assert distance(ours, theirs) < 2.7 * math.sqrt(2 / count), name
    assert (corner >= 0).all() and (corner + size <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("aspect", "expected"), [(2.0, (1 / 6, 0.0, 2 / 3, 1.0)), (0.5, (0.0, 1 / 6, 1.0, 2 / 3))]
)
def test_a_box_that_never_fits_is_the_largest_in_the_middle(
    aspect: float, expected: tuple[float, ...]
) -> None:
    box = torch.cat(random_boxes(torch.arange(20), (1.0, 1.0), RATIO, 0, 0, torch.full((20,), aspect)), dim=1)
    torch.testing.assert_close(box, torch.tensor([expected] * 20), rtol=0, atol=1e-5)


def test_boxes_of_squares_are_those_drawn_without_an_aspect_ratio() -> None:
    indices = torch.arange(2000)
    plain, square = (random_boxes(indices, SCALE, RATIO, 1, 2, a) for a in (None, torch.ones(2000)))
    for a, b in zip(plain, square, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, (width, height) in SIZES.items():
        write_folder(tmp_path / "photos", {f"train/{name}": 3, f"val/{name}": 2}, size=(width, height))
    return tmp_path / "photos"


def folder(root: Path, cache: str = "off", fit: str = "crop", whole: bool = True) -> Folder:
    crop = {**CROP, "resized_crop": {**CROP["resized_crop"], "whole_image": whole}}
    data = Folder(
        str(root), batch_size=4, image_size=8, mean=[0.0], std=[1 / 255], split_rule="by_name", num_workers=0,
        cache=cache, cache_dir=str(root.parent / "cache"), augment=crop, fit=fit, stored_size=10,
    )  # fmt: skip
    data.setup()
    return data


@pytest.mark.parametrize("cache", ["off", "disk", "ram"])
def test_training_images_are_whole_and_validation_images_are_cropped(photos: Path, cache: str) -> None:
    for _ in range(2):  # built, then read again
        data = folder(photos, cache)
        assert data.preprocessing()["fit"] == "crop"
        for split, fit in (("train", "squash"), ("val", "crop")):
            source = data.sources[split]
            for batch in data.loader(split, shuffle=split == "train"):
                files = [photos / source.image_name(i) for i in batch.indices.tolist()]
                expected = [stored(decode(str(file), 3), 10, fit) for file in files]
                assert torch.equal(batch.images, torch.stack(expected))
                if split == "val":
                    assert batch.aspects is None
                else:
                    sizes = [SIZES[file.parent.name] for file in files]
                    torch.testing.assert_close(batch.aspects, torch.tensor([w / h for w, h in sizes]))
        images, aspects = data.training_images([4, 0])
        assert torch.equal(
            images[0], stored(decode(str(photos / data.sources["train"].image_name(4)), 3), 10, "squash")
        )
        assert aspects is not None and aspects.tolist() == pytest.approx([12 / 20, 30 / 12])


@pytest.mark.parametrize(("fit", "whole"), [("squash", True), ("pad", True), ("crop", False)])
def test_the_square_is_cropped_where_it_is_what_the_network_sees(photos: Path, fit: str, whole: bool) -> None:
    for batch in folder(photos, fit=fit, whole=whole).loader("train", shuffle=True):
        assert batch.aspects is None


def test_a_subset_keeps_the_aspect_ratios_of_its_images(photos: Path) -> None:
    source = folder(photos, "ram").sources["train"]
    part = source.subset(torch.tensor([8, 0]))  # type: ignore[union-attr]
    assert part.aspects.tolist() == pytest.approx([1.0, 30 / 12])
    assert source.first(2).aspects.tolist() == pytest.approx([30 / 12] * 2)  # type: ignore[union-attr]


def ends_seen(data: Folder, epochs: int = 40) -> tuple[float, float]:
    """Return the largest red and blue that training shows the network, of 255."""
    red = blue = 0.0
    images, aspects = data.training_images([0])
    for epoch in range(epochs):
        x: Tensor = data.pipeline.train(images, torch.tensor([0]), 0, epoch, aspects)
        red, blue = max(red, float(x[:, 0].max())), max(blue, float(x[:, 2].max()))
    return red, blue


def test_what_lies_at_the_ends_is_seen_in_its_proportions(tmp_path: Path) -> None:
    pixels = np.zeros((40, 160, 3), dtype=np.uint8)
    pixels[:, :20, 0], pixels[:, -20:, 2] = 255, 255  # red and blue ends
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    assert ends_seen(folder(tmp_path, whole=False)) == (0.0, 0.0)
    red, blue = ends_seen(folder(tmp_path))
    assert red > 200 and blue > 200
