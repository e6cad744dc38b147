"""RandAugment, TrivialAugment and colour jitter against torchvision, one image at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_operations import assert_alike, pictures, theirs
from torch import Tensor
from torchvision.transforms import RandAugment as TheirRandAugment
from torchvision.transforms import TrivialAugmentWide
from torchvision.transforms.v2 import functional as reference

from alexnet_exp.data.augment import policies
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.augment.policies import ColourJitter, RandAugment, TrivialAugment, build_policy
from alexnet_exp.data.randomness import uniforms
from alexnet_exp.errors import UserError

RELATIVE = ("Brightness", "Color", "Contrast", "Sharpness")


def slow_action(image: Tensor, space: dict[str, Any], draw: float, level: int, sign: float) -> Tensor:
    """Apply the operation of torchvision's `space` selected by a number in 0..1."""
    name = list(space)[math.floor(draw * len(space))]
    magnitudes, signed = space[name]
    magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
    magnitude *= -1 if signed and sign < 0.5 else 1
    return theirs(image, name, 1 + magnitude if name in RELATIVE else magnitude)


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_trivialaugment_matches_a_loop_over_the_images(channels: int, side: int) -> None:
    images, indices = pictures(64, channels, side), torch.arange(64) * 31 + 5
    space = TrivialAugmentWide()._augmentation_space(31)
    expected = [
        slow_action(image, space, choice, math.floor(level * 31), sign)
        for image, (choice, level, sign) in zip(
            images, uniforms(indices, 3, "trivialaugment", 7, 2).tolist(), strict=True
        )
    ]
    assert_alike(TrivialAugment()(images, indices, seed=7, epoch=2), torch.stack(expected))


@pytest.mark.parametrize(("num_ops", "magnitude"), [(1, 30), (2, 9), (3, 15)])
def test_randaugment_matches_a_loop_over_the_images(num_ops: int, magnitude: int) -> None:
    images, indices = pictures(64, 3, 32), torch.arange(64) * 31 + 5
    space = TheirRandAugment()._augmentation_space(31, (32, 32))
    draws = uniforms(indices, 2 * num_ops, "randaugment", 7, 2).tolist()
    expected = []
    for image, numbers in zip(images, draws, strict=True):
        for step in range(num_ops):
            image = slow_action(image, space, numbers[step], magnitude, numbers[num_ops + step])
        expected.append(image)
    result = RandAugment(num_ops, magnitude)(images, indices, seed=7, epoch=2)
    assert_alike(
        result, torch.stack(expected), far=0.01
    )  # later operations amplify a difference of one level


def slow_jitter(image: Tensor, widths: dict[str, float], draws: list[float]) -> Tensor:
    """Change one image, (3, H, W), in the order of the second half of its numbers."""
    names = list(widths)
    for place in sorted(range(len(names)), key=lambda i: draws[len(names) + i]):
        name, width = names[place], widths[names[place]]
        low = -width if name == "hue" else max(0.0, 1 - width)
        high = width if name == "hue" else 1 + width
        image = getattr(reference, f"adjust_{name}")(image, low + (high - low) * draws[place])
    return image


@pytest.mark.parametrize(
    "widths",
    [
        {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        {"contrast": 1.5, "hue": 0.5},
        {"saturation": 0.8},
    ],
)
def test_colour_jitter_matches_a_loop_over_the_images(widths: dict[str, float]) -> None:
    images, indices = pictures(48, 3, 32), torch.arange(48) * 31 + 5
    draws = uniforms(indices, 2 * len(widths), "colour jitter", 7, 2).tolist()
    expected = torch.stack([slow_jitter(i, widths, d) for i, d in zip(images, draws, strict=True)])
    apart = (ColourJitter(**widths)(images, indices, seed=7, epoch=2).int() - expected.int()).abs()
    assert apart.float().mean() < 0.1
    assert (apart > 2).float().mean() < 0.01  # later operations amplify a difference of one level


CHANGES = [
    RandAugment(2, 9),
    TrivialAugment(),
    ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_depends_only_on_seed_epoch_and_index(change: Any) -> None:
    images, indices = pictures(60, 3, 16), torch.arange(60)
    before = images.clone()
    whole = change(images, indices, 1, 2)
    assert torch.equal(images, before)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for size in (1, 7):
        parts = [change(images[part], part, 1, 2) for part in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((2, 2), (1, 3)):
        same = (change(images, indices, seed, epoch) == whole).flatten(1).all(1)
        assert same.float().mean() < 0.4  # an operation may do nothing


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_an_image_in_a_batch_are_changed_differently(change: Any) -> None:
    images = pictures(2, 3, 16)[1:].expand(64, -1, -1, -1)
    assert len(change(images, torch.arange(64), 0, 0).unique(dim=0)) > 20


@pytest.mark.parametrize(("policy", "kinds"), [(RandAugment(2, 9), 14), (TrivialAugment(), 14)])
def test_operations_are_equally_frequent_and_half_of_the_signs_negative(
    policy: Any, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(policies, "apply_chosen", lambda images, *drawn: seen.extend(drawn[:2]))
    policy(torch.zeros(14_000, 3, 1, 1, dtype=torch.uint8), torch.arange(14_000), 0, 0)
    chosen, strengths = seen
    for column in chosen.T:
        counts = torch.bincount(column, minlength=kinds).double()
        expected = len(column) / kinds
        assert abs(((counts - expected) ** 2 / expected).sum() - 13) < 4 * math.sqrt(2 * 13)
    slopes = strengths[chosen == 1]
    slopes = slopes[slopes != 0]
    assert abs((slopes < 0).float().mean() - 0.5) < 4 * 0.5 / math.sqrt(len(slopes))


# ------------------------------------------------------------------------------------------------ settings


def test_the_settings_select_the_policy_and_null_is_torchvisions_default() -> None:
    assert build_policy({"policy": "none", "num_ops": None}) is None
    assert build_policy({"policy": "trivialaugment"}) == TrivialAugment()
    theirs_by_default = TheirRandAugment()
    ours = RandAugment(theirs_by_default.num_ops, theirs_by_default.magnitude)
    assert build_policy({"policy": "randaugment", "num_ops": None, "magnitude": None}) == ours
    assert build_policy({"policy": "randaugment", "num_ops": 3, "magnitude": 0}) == RandAugment(3, 0)


@pytest.mark.parametrize("policy", ["none", "trivialaugment"])
def test_settings_of_randaugment_without_it_are_refused(policy: str) -> None:
    with pytest.raises(
        UserError, match=r"Only RandAugment uses augment\.num_ops and augment\.magnitude: set"
    ):
        build_policy({"policy": policy, "num_ops": 2, "magnitude": 0})


def pipeline(**options: Any) -> Pipeline:
    return Pipeline(Preprocess(16, [0.0] * 3, [1 / 255] * 3), options)


@pytest.mark.parametrize("pad", [0, 2])
def test_policy_and_jitter_come_after_the_crop_and_before_normalisation(pad: int) -> None:
    images, indices = pictures(24, 3, 16), torch.arange(24)
    jitter = {"brightness": 0.3, "hue": 0.1}
    made = pipeline(flip=True, pad=pad, policy="trivialaugment", colour_jitter=jitter)
    cut = pipeline(flip=True, pad=pad).augment(images, indices, 3, 1)
    changed = ColourJitter(**jitter)(TrivialAugment()(cut, indices, 3, 1), indices, 3, 1)
    torch.testing.assert_close(made.train(images, indices, 3, 1), changed.float(), rtol=0, atol=1e-3)
    assert torch.equal(made.evaluate(images), pipeline().evaluate(images))


def test_policies_work_on_resized_crops_rounded_to_grey_levels() -> None:
    images, indices = pictures(24, 3, 20), torch.arange(24)
    parts = {"scale": [0.2, 1.0], "ratio": [0.75, 1.33]}
    resized = pipeline(resized_crop=parts).train(images, indices, 3, 1)
    expected = TrivialAugment()(resized.round().to(torch.uint8), indices, 3, 1).float()
    result = pipeline(resized_crop=parts, policy="trivialaugment").train(images, indices, 3, 1)
    assert ((result - expected).abs() > 1e-3).float().mean() < 0.001  # ties may round either way


def test_saturation_and_hue_of_grey_images_cannot_be_jittered() -> None:
    grey = Preprocess(16, [0.5], [0.2])
    with pytest.raises(UserError, match=r"saturation and hue need three channels; set data\.channels=3"):
        Pipeline(grey, {"colour_jitter": {"brightness": 0.2, "hue": 0.1}})
    Pipeline(grey, {"colour_jitter": {"brightness": 0.2, "hue": 0.0}}).train(
        torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.arange(2), 0, 0
    )
