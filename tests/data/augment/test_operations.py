"""Operations with a strength per image, against torchvision's on one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from alexnet_exp.data.augment import operations
from alexnet_exp.data.augment.operations import apply_chosen

# Our function, its name in torchvision's policies, and our strength for torchvision's magnitude.
PAIRS: list[tuple[str, str, Any]] = [
    ("identity", "Identity", lambda m: m),
    ("shear_x", "ShearX", lambda m: m),
    ("shear_y", "ShearY", lambda m: m),
    ("translate_x", "TranslateX", lambda m: 20 * m),
    ("translate_y", "TranslateY", lambda m: 20 * m),
    ("rotate", "Rotate", lambda m: 130 * m),
    ("brightness", "Brightness", lambda m: 1 + m),
    ("saturation", "Color", lambda m: 1 + m),
    ("contrast", "Contrast", lambda m: 1 + m),
    ("sharpness", "Sharpness", lambda m: 1 + m),
    ("posterize", "Posterize", lambda m: round(4 + 4 * m)),
    ("solarize", "Solarize", lambda m: 255 * abs(m)),
    ("auto_contrast", "AutoContrast", lambda m: m),
    ("equalize", "Equalize", lambda m: m),
]


def pictures(count: int, channels: int, side: int) -> Tensor:
    """Make smooth images of different contrast, with some noise, and a constant one."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 200 + 20
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    grain = torch.rand(count, channels, side, side, generator=generator) * 30
    images = (smooth + grain).to(torch.uint8)
    images[0] = 77
    return images


def theirs(image: Tensor, name: str, strength: float) -> Tensor:
    """Apply torchvision's operation to one image, (C, H, W)."""
    relative = {"Brightness", "Color", "Contrast", "Sharpness"}
    magnitude = strength - 1 if name in relative else strength
    return _apply_op(image, name, magnitude, InterpolationMode.NEAREST, fill=None)


def assert_alike(result: Tensor, expected: Tensor, far: float = 0.004) -> None:
    """Allow one grey level in 5 % of the values, and anything where rounding picked the neighbouring pixel."""
    assert result.dtype == torch.uint8
    apart = (result.int() - expected.int()).abs()
    assert (apart > 0).float().mean() <= 0.05
    assert (apart > 1).float().mean() <= far


@pytest.mark.parametrize(("ours", "name", "strength"), PAIRS, ids=[pair[0] for pair in PAIRS])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28), (3, 33)])
def test_each_image_gets_its_strength_as_in_torchvision(
    ours: str, name: str, strength: Any, channels: int, side: int
) -> None:
    images = pictures(16, channels, side)
    magnitudes = torch.linspace(-0.93, 0.97, 16).tolist()
    strengths = torch.tensor([float(strength(m)) for m in magnitudes])
    result = getattr(operations, ours)(images, strengths)
    expected = [theirs(image, name, s) for image, s in zip(images, strengths.tolist(), strict=True)]
    assert_alike(result, torch.stack(expected))
    if name != "Identity" and not (name == "Color" and channels == 1):
        assert (result != images).any()


def test_hue_matches_torchvision_on_each_image() -> None:
    images = pictures(11, 3, 32)
    shifts = torch.linspace(-0.5, 0.5, 11)
    expected = [reference.adjust_hue(i, s) for i, s in zip(images, shifts.tolist(), strict=True)]
    assert_alike(operations.hue(images, shifts), torch.stack(expected), far=0.0)


def test_hue_rotates_pure_colours_and_leaves_grey_unchanged() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(3, -1, 1, 1)
    turned = operations.hue(red, torch.tensor([0.0, 1 / 3, -1 / 3]))
    assert turned[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(operations.hue(levels, torch.tensor([0.3])), levels)
    assert torch.equal(operations.hue(levels[:, :1], torch.tensor([0.3])), levels[:, :1])


@pytest.mark.parametrize("name", ["brightness", "saturation", "contrast", "sharpness"])
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    images = pictures(4, 3, 16)
    assert torch.equal(getattr(operations, name)(images, torch.ones(4)), images)


@pytest.mark.parametrize("side", [1, 2])
def test_sharpness_does_not_change_images_that_are_all_border(side: int) -> None:
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    assert torch.equal(operations.sharpness(images, torch.tensor([0.0, 0.37, 1.9])), images)


@pytest.mark.parametrize("name", [pair[0] for pair in PAIRS] + ["hue"])
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    images, strengths = pictures(12, 3, 32), torch.linspace(0.1, 0.9, 12)
    operation = getattr(operations, name)
    whole = operation(images, strengths)
    alone = [operation(images[n : n + 1], strengths[n : n + 1]) for n in range(12)]
    assert torch.equal(torch.cat(alone), whole)


# ------------------------------------------------------------------------------------------------ apply_chosen


def plus(images: Tensor, strength: Tensor) -> Tensor:
    return images + strength.to(torch.uint8)[:, None, None, None]


def times(images: Tensor, strength: Tensor) -> Tensor:
    return images * strength.to(torch.uint8)[:, None, None, None]


def test_operations_are_applied_in_sequence_as_chosen_per_image() -> None:
    images = torch.arange(1, 5, dtype=torch.uint8).view(4, 1, 1, 1)
    chosen = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    strengths = torch.tensor([[10.0, 2.0], [3.0, 20.0], [1.0, 5.0], [2.0, 4.0]])
    before = images.clone()
    result = apply_chosen(images, chosen, strengths, [plus, times])
    assert result.flatten().tolist() == [(1 + 10) * 2, 2 * 3 + 20, 3 + 1 + 5, 4 * 2 * 4]
    assert torch.equal(images, before)


def test_an_operation_chosen_by_no_image_is_not_called() -> None:
    def never(images: Tensor, strength: Tensor) -> Tensor:
        raise AssertionError

    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    apply_chosen(images, torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), [plus, never])
