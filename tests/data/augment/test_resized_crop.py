"""RandomResizedCrop for a batch, against torchvision's boxes and slow pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop

from alexnet_exp.data.augment.geometry import Preprocess, random_boxes, resized_crop
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import uniforms

SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)
OPTIONS = {"flip": True, "crop": True, "resized_crop": {"scale": SCALE, "ratio": RATIO}}


def noise(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def slow_crop(image: Tensor, corner: list[float], size: list[float], side: int, flipped: bool) -> Tensor:
    """Crop and resize one image, (C, S, S), pixel by pixel, in float64."""
    stored, x = image.shape[-1], image.double()
    out = torch.zeros(len(image), side, side, dtype=torch.float64)

    def around(share: float) -> tuple[int, int, float]:
        place = min(
            max(share * stored - 0.5, 0.0), stored - 1.0
        )  # clamped to the centers of the border pixels
        low = min(int(place), stored - 1)
        return low, min(low + 1, stored - 1), place - low

    for row in range(side):
        for column in range(side):
            top, bottom, down = around(corner[1] + size[1] * (row + 0.5) / side)
            left, right, across = around(corner[0] + size[0] * (column + 0.5) / side)
            upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
            lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
            out[:, row, side - 1 - column if flipped else column] = (1 - down) * upper + down * lower
    return out


def distance(a: Tensor, b: Tensor) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic."""
    values = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


# ------------------------------------------------------------------------------------------------ boxes


@pytest.mark.parametrize(("scale", "ratio"), [(SCALE, RATIO), ((0.5, 1.0), (0.5, 2.0))])
def test_boxes_are_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count, side = 4000, 10_000  # so large that torchvision's rounding to pixels does not matter
    image = torch.empty(1).expand(3, side, side)
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    top, left, height, width = torch.tensor(drawn, dtype=torch.float64).T / side
    corner, size = random_boxes(torch.arange(count), scale, ratio, seed=0, epoch=0)
    ours = {
        "area": size.prod(1), "ratio": size[:, 0] / size[:, 1], "x": corner[:, 0], "y": corner[:, 1],
        "right": corner[:, 0] + size[:, 0],
    }  # fmt: skip
    theirs = {"area": height * width, "ratio": width / height, "x": left, "y": top, "right": left + width}
    for name, values in ours.items():
        # Two samples of one distribution exceed this less than once in a million.
        assert distance(values.double(), theirs[name]) < 2.7 * math.sqrt(2 / count), name


def test_boxes_lie_inside_the_image_and_within_their_limits() -> None:
    corner, size = random_boxes(torch.arange(20_000), SCALE, RATIO, seed=1, epoch=0)
    assert (corner >= 0).all()
    assert (corner + size <= 1 + 1e-6).all()
    area, ratio = size.prod(1), size[:, 0] / size[:, 1]
    assert SCALE[0] - 1e-6 <= area.min() < 0.081
    assert 0.98 < area.max() <= 1 + 1e-6
    assert RATIO[0] - 1e-5 <= ratio.min() < 0.751
    assert 1.33 < ratio.max() <= RATIO[1] + 1e-5


def test_a_shape_that_never_fits_gives_the_whole_image() -> None:
    corner, size = random_boxes(torch.arange(100), (1.0, 1.0), RATIO, seed=0, epoch=0)
    assert torch.equal(size, torch.ones(100, 2))
    assert torch.equal(corner, torch.zeros(100, 2))


def test_a_box_depends_only_on_seed_epoch_and_index() -> None:
    def boxes(indices: Tensor, seed: int, epoch: int) -> Tensor:
        return torch.cat(random_boxes(indices, SCALE, RATIO, seed, epoch), dim=1)

    whole = boxes(torch.arange(40), 1, 2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([boxes(part, 1, 2) for part in order.split(7)]), whole[order])
    for seed, epoch in ((2, 2), (1, 3)):
        assert not (boxes(torch.arange(40), seed, epoch) == whole).all(1).any()


# ------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize(("stored", "side"), [(11, 6), (6, 9), (8, 8)])
def test_pixels_match_a_slow_loop(stored: int, side: int) -> None:
    images = noise(8, stored)
    corner, size = random_boxes(torch.arange(8), SCALE, RATIO, seed=3, epoch=0)
    flipped = torch.arange(8) % 2 == 1
    result = resized_crop(images, corner, size, side, flipped)
    assert result.dtype == torch.float32
    for n in range(8):
        expected = slow_crop(images[n], corner[n].tolist(), size[n].tolist(), side, bool(flipped[n]))
        torch.testing.assert_close(result[n].double(), expected, rtol=0, atol=2e-3)  # of 255


@pytest.mark.parametrize("side", [5, 16, 23])
def test_the_whole_image_is_resized_as_by_torch_without_antialias(side: int) -> None:
    images = noise(3, 16)
    result = resized_crop(images, torch.zeros(3, 2), torch.ones(3, 2), side, torch.zeros(3, dtype=torch.bool))
    expected = functional.interpolate(images.float(), (side, side), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)


def test_a_box_of_whole_pixels_matches_crop_and_resize_away_from_its_border() -> None:
    images = noise(2, 16)
    corner, size = torch.tensor([[0.25, 0.5]]).expand(2, 2), torch.tensor([[0.5, 0.25]]).expand(2, 2)
    result = resized_crop(images, corner, size, 12, torch.zeros(2, dtype=torch.bool))
    cut = images[:, :, 8:12, 4:12].float()
    expected = functional.interpolate(cut, (12, 12), mode="bilinear", align_corners=False)
    # At the border, pixels outside the box blend in: three of the 12 rows lie within half a pixel.
    torch.testing.assert_close(result[:, :, 2:-2, 1:-1], expected[:, :, 2:-2, 1:-1], rtol=0, atol=2e-3)


def test_a_flipped_box_is_the_flip_of_the_box() -> None:
    images = noise(6, 20)
    corner, size = random_boxes(torch.arange(6), SCALE, RATIO, seed=0, epoch=0)
    yes = torch.ones(6, dtype=torch.bool)
    plain, flipped = (resized_crop(images, corner, size, 14, m) for m in (~yes, yes))
    torch.testing.assert_close(flipped, plain.flip(3), rtol=0, atol=2e-3)
    assert not torch.allclose(flipped, plain)


# ------------------------------------------------------------------------------------------------ in the pipeline


def test_training_uses_boxes_with_half_of_them_flipped_and_evaluation_the_center() -> None:
    images, indices = noise(16, 20), torch.arange(16) + 3
    made = Pipeline(Preprocess(14, [0.5] * 3, [0.25] * 3, crop=True), OPTIONS)
    corner, size = random_boxes(indices, SCALE, RATIO, 5, 2)
    flipped = uniforms(indices, 3, "augment", 5, 2)[:, 2] < 0.5
    assert 0 < flipped.sum() < 16
    result = made.train(images, indices, seed=5, epoch=2)
    for n in range(16):
        cut = slow_crop(images[n], corner[n].tolist(), size[n].tolist(), 14, bool(flipped[n]))
        torch.testing.assert_close(result[n].double(), (cut / 255 - 0.5) / 0.25, rtol=0, atol=1e-4)
    centre = images[:, :, 3:17, 3:17].double()
    torch.testing.assert_close(made.evaluate(images).double(), (centre / 255 - 0.5) / 0.25, rtol=0, atol=1e-5)


def test_without_flip_no_box_is_flipped() -> None:
    images, indices = noise(16, 20), torch.arange(16)
    made = Pipeline(Preprocess(14, [0.0] * 3, [1 / 255] * 3), {**OPTIONS, "flip": False})
    expected = resized_crop(
        images, *random_boxes(indices, SCALE, RATIO, 0, 0), 14, torch.zeros(16, dtype=torch.bool)
    )
    torch.testing.assert_close(made.train(images, indices, 0, 0), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("stored", [20, 14, 9])
def test_the_center_of_the_mean_image_is_subtracted_from_every_box(stored: int) -> None:
    images, indices = noise(4, stored), torch.arange(4)
    mean = noise(5, stored).float().mean(0)
    made = Pipeline(
        Preprocess(14, [0.0] * 3, [1 / 255] * 3, crop=True), {**OPTIONS, "mean_image": "centre"}, mean
    )
    plain = Pipeline(Preprocess(14, [0.0] * 3, [1 / 255] * 3, crop=True), OPTIONS)
    edge = max(0, stored - 14) // 2
    centre = mean[None, :, edge : stored - edge, edge : stored - edge]
    if stored < 14:
        centre = functional.interpolate(centre, (14, 14), mode="bilinear", align_corners=False)
    difference = plain.train(images, indices, 0, 0) - made.train(images, indices, 0, 0)
    torch.testing.assert_close(difference, centre.expand(4, -1, -1, -1), rtol=0, atol=1e-3)
