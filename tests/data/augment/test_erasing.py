"""Random erasing, against torchvision's rectangles and a slow loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomErasing

from alexnet_exp.data.augment.geometry import Erasing, Preprocess, inside
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import uniforms

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)


def slow_erase(image: Tensor, draws: list[float], erasing: Erasing) -> Tensor:
    """Erase a rectangle of one image, (C, S, S), as torchvision does with these numbers."""
    side, image = image.shape[-1], image.clone()
    if draws[22] >= erasing.probability:
        return image
    low, high = (math.log(r) for r in erasing.ratio)
    for area, shape in zip(draws[:10], draws[10:20], strict=True):
        pixels = side**2 * (erasing.scale[0] + (erasing.scale[1] - erasing.scale[0]) * area)
        ratio = math.exp(low + (high - low) * shape)
        height, width = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if height < side and width < side:
            top, left = (
                math.floor(draws[20] * (side - height + 1)),
                math.floor(draws[21] * (side - width + 1)),
            )
            for y in range(top, top + height):
                for x in range(left, left + width):
                    image[:, y, x] = 0.0
            break
    return image


@pytest.mark.parametrize("side", [9, 16])
@pytest.mark.parametrize(
    ("scale", "ratio"), [(SCALE, RATIO), ((0.3, 1.0), (0.2, 5.0)), ((1.0, 1.0), (1.0, 1.0))]
)
def test_erasing_matches_a_loop_over_the_images(
    side: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, indices = torch.rand(40, 3, side, side, generator=generator) + 1, torch.arange(40) * 31 + 5
    erasing = Erasing(0.6, scale, ratio)
    draws = uniforms(indices, 23, "erasing", 7, 2).tolist()
    expected = torch.stack([slow_erase(image, d, erasing) for image, d in zip(x, draws, strict=True)])
    before = x.clone()
    assert torch.equal(erasing(x, indices, seed=7, epoch=2), expected)
    assert torch.equal(x, before)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic."""
    values = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def test_rectangles_are_distributed_as_torchvisions() -> None:
    count, side = 4000, 1000
    torch.manual_seed(0)
    image = torch.empty(1).expand(3, side, side)
    drawn = [RandomErasing.get_params(image, list(SCALE), list(RATIO), [0.0])[:4] for _ in range(count)]
    theirs = torch.tensor(drawn, dtype=torch.float64).T
    corner, size = Erasing(1.0, SCALE, RATIO).boxes(torch.arange(count), side, seed=0, epoch=0)
    for ours, expected in zip(torch.cat([corner, size], dim=1).T, theirs, strict=True):
        # Two samples of one distribution exceed this less than once in a million.
        assert distance(ours.double(), expected) < 2.7 * math.sqrt(2 / count)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_requested_fraction_of_images_is_erased(probability: float) -> None:
    _, size = Erasing(probability, SCALE, RATIO).boxes(torch.arange(10_000), 32, seed=0, epoch=0)
    erased = (size > 0).all(1).float().mean()
    assert abs(erased - probability) <= 4 * math.sqrt(probability * (1 - probability) / 10_000)


def test_erasing_depends_only_on_seed_epoch_and_index() -> None:
    x, indices = torch.ones(40, 1, 16, 16), torch.arange(40)
    erasing = Erasing(1.0, SCALE, RATIO)
    whole = erasing(x, indices, 1, 2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for size in (1, 7):
        assert torch.equal(torch.cat([erasing(x[p], p, 1, 2) for p in order.split(size)]), whole[order])
    for seed, epoch in ((2, 2), (1, 3)):
        assert (erasing(x, indices, seed, epoch) == whole).flatten(1).all(1).float().mean() < 0.1


def test_inside_includes_the_start_and_excludes_the_end() -> None:
    mask = inside(torch.tensor([[1, 0], [2, 2]]), torch.tensor([[3, 1], [2, 2]]), side=4)
    assert mask.shape == (2, 1, 4, 4)
    assert mask.nonzero().tolist() == [[0, 0, 1, 0], [0, 0, 2, 0]]


def test_the_erased_part_has_the_mean_colour_after_normalisation() -> None:
    images = torch.full((20, 3, 12, 12), 255, dtype=torch.uint8)
    prepare = Preprocess(12, [0.3, 0.4, 0.5], [0.2, 0.25, 0.3])
    plain = Pipeline(prepare, {}).train(images, torch.arange(20), 0, 0)
    options = {"erasing": {"probability": 1.0, "scale": SCALE, "ratio": RATIO}}
    erased = Pipeline(prepare, options).train(images, torch.arange(20), 0, 0)
    gone = erased == 0
    assert torch.equal(gone.all(1), gone.any(1))  # in all channels
    share = gone.float().mean((1, 2, 3))
    assert share.min() > 0 and share.max() < 0.5
    assert torch.equal(erased[~gone], plain[~gone])
    assert torch.equal(Pipeline(prepare, options).evaluate(images), plain)
