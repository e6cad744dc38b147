"""PCA colour noise against a float64 loop with its own constants."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from alexnet_exp.data.augment.colour import colour_shift
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import uniforms
from alexnet_exp.errors import UserError

# The components as in the sources: scale, then (R, G, B) of the vector.
PAPER = [  # eigenvalues of pixels in 0..1
    (0.2175, (-0.5675, -0.5808, -0.5836)),
    (0.0188, (0.7192, -0.0045, -0.6948)),
    (0.0045, (0.4009, -0.8140, 0.4203)),
]
SOURCE = [  # standard deviations of pixels in 0..255
    (121.78006 / 255, (-0.56351045, -0.57618440, -0.59200296)),
    (37.09389 / 255, (-0.71257945, -0.02354167, 0.70119634)),
    (19.72083 / 255, (0.41795513, -0.81698062, 0.39731118)),
]
FORMS = {"paper": PAPER, "source": SOURCE}


def slow_shift(index: int, form: str, seed: int, epoch: int) -> list[float]:
    """Return the colour of one image, for pixels in 0..1: Box-Muller, component by component."""
    draws = uniforms(torch.tensor([index]), 6, "colour", seed, epoch)[0].tolist()
    colour = [0.0, 0.0, 0.0]
    for k, (spread, vector) in enumerate(FORMS[form]):
        normal = math.sqrt(-2 * math.log1p(-draws[k])) * math.cos(2 * math.pi * draws[3 + k])
        for channel in range(3):
            colour[channel] += vector[channel] * (0.1 * normal) * spread
    return colour


def pipeline(**options: object) -> Pipeline:
    return Pipeline(Preprocess(6, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), options)


def noise(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("form", FORMS)
def test_colours_match_a_loop_over_the_images(form: str) -> None:
    indices = torch.tensor([0, 7, 123_456, 1_281_166])
    expected = torch.tensor([slow_shift(int(i), form, 3, 5) for i in indices], dtype=torch.float64)
    shift = colour_shift(indices, form, 3, 5)
    assert shift.shape == (4, 3, 1, 1)
    torch.testing.assert_close(shift[:, :, 0, 0].double(), expected, rtol=1e-4, atol=1e-6)


def test_the_sources_noise_has_a_deviation_of_seven_and_a_half_grey_levels() -> None:
    spread = 255 * colour_shift(torch.arange(40_000), "source", 0, 0).flatten(1).std(0)
    assert spread.tolist() == pytest.approx([7.40, 7.20, 7.70], rel=0.02)


def test_the_papers_noise_along_the_first_component_is_half_of_the_sources() -> None:
    for form, grey_levels in (("paper", 5.55), ("source", 12.18)):
        first = torch.tensor(FORMS[form][0][1])
        along = 255 * colour_shift(torch.arange(40_000), form, 0, 0).flatten(1) @ first
        assert float(along.std()) == pytest.approx(grey_levels, rel=0.02)


def test_the_factors_of_the_components_are_independent_standard_normals() -> None:
    shifts = colour_shift(torch.arange(40_000), "paper", 1, 2).flatten(1).double()
    matrix = torch.tensor(
        [[0.1 * spread * v for v in vector] for spread, vector in PAPER], dtype=torch.float64
    )
    factors = shifts @ torch.linalg.inv(matrix)
    assert factors.mean(0).abs().max() < 4 / math.sqrt(40_000)
    assert (torch.corrcoef(factors.T) - torch.eye(3)).abs().max() < 4 / math.sqrt(40_000)
    for sigma in (0.5, 1.0, 2.0):
        within = 2 * statistics.NormalDist().cdf(sigma) - 1
        share = (factors.abs() < sigma).double().mean(0)
        assert (share - within).abs().max() < 4 * math.sqrt(within * (1 - within) / 40_000)


def test_the_colour_depends_only_on_seed_epoch_and_index() -> None:
    indices = torch.arange(50)
    whole = colour_shift(indices, "source", 1, 2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        torch.cat([colour_shift(part, "source", 1, 2) for part in order.split(7)]), whole[order]
    )
    for seed, epoch in ((2, 2), (1, 3)):
        assert not (colour_shift(indices, "source", seed, epoch) == whole).any()
    assert len(whole.flatten(1).unique(dim=0)) == 50


@pytest.mark.parametrize("form", FORMS)
def test_all_pixels_of_an_image_shift_by_one_colour_before_normalisation(form: str) -> None:
    images, indices = noise(5), torch.arange(5) + 11
    result = pipeline(colour_noise=form).train(images, indices, seed=4, epoch=1)
    for n, index in enumerate(indices.tolist()):
        colour = torch.tensor(slow_shift(index, form, 4, 1), dtype=torch.float64).view(3, 1, 1)
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
        )
        expected = (images[n].double() / 255 - mean + colour) / std
        if form == "source":
            expected /= 1.1  # the released code shrinks the result
        torch.testing.assert_close(result[n].double(), expected, rtol=0, atol=2e-5)


def test_the_noise_ends_after_its_epochs_and_is_absent_from_evaluation() -> None:
    noisy, plain = pipeline(colour_noise="source", colour_noise_epochs=67), pipeline()
    images, indices = noise(4), torch.arange(4)
    clean = plain.evaluate(images)
    for epoch in (0, 66):
        assert not torch.allclose(noisy.train(images, indices, 0, epoch), clean)
    for epoch in (67, 90):
        assert torch.equal(noisy.train(images, indices, 0, epoch), clean)
    assert torch.equal(noisy.evaluate(images), clean)


def test_colour_noise_on_grey_images_is_refused() -> None:
    made = Pipeline(Preprocess(6, [0.4], [0.2]), {"colour_noise": "paper"})
    with pytest.raises(UserError, match=r"colour_noise needs three channels"):
        made.train(noise(2)[:, :1], torch.arange(2), 0, 0)


def test_contrast_is_that_of_a_loop_over_images_and_channels_and_never_reaches_the_test() -> None:
    images, indices = noise(6), torch.arange(6) + 3
    made = pipeline(contrast=[0.2, 1.8]).train(images, indices, seed=2, epoch=5)
    clean = pipeline().evaluate(images)
    factors = set()
    for n, index in enumerate(indices.tolist()):
        factor = 0.2 + 1.6 * uniforms(torch.tensor([index]), 1, "contrast", 2, 5).item()
        factors.add(factor)
        for channel in range(3):
            x = clean[n, channel].double()
            expected = x.mean() + factor * (x - x.mean())
            torch.testing.assert_close(made[n, channel].double(), expected, rtol=0, atol=2e-5)
    assert len(factors) == 6 and 0.2 <= min(factors) < max(factors) < 1.8
    assert torch.equal(pipeline(contrast=[0.2, 1.8]).evaluate(images), clean)
