"""The pipeline from stored images to network input, against float64 loops over single images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import uniforms
from alexnet_exp.errors import UserError

MEAN, STD = [0.48, 0.45, 0.40], [0.22, 0.25, 0.19]
GREY_LEVELS = ([0.0] * 3, [1 / 255] * 3)  # of mean and std: pixels stay 0..255


def noise(count: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def pipeline(
    size: int, subtracted: Tensor | None = None, crop: bool = False, grey: bool = True, **options: Any
) -> Pipeline:
    mean, std = GREY_LEVELS if grey else (MEAN, STD)
    centred = crop or bool(options.get("centre_crop"))
    return Pipeline(Preprocess(size, mean, std, centred), {"crop": crop, **options}, subtracted)


def slow_window(
    image: np.ndarray, mean: np.ndarray, form: str, size: int, pad: int, crop: bool, draws: list[float]
) -> np.ndarray:
    """Subtract a mean image and cut one image, (C, S, S), pixel by pixel; zeros outside."""
    channels, stored, _ = image.shape
    side = min(stored, size) if crop else stored
    places = stored + 2 * pad - side + 1
    top, left = math.floor(draws[0] * places) - pad, math.floor(draws[1] * places) - pad
    edge = (stored - side) // 2
    out = np.zeros((channels, side, side))
    for y in range(side):
        for x in range(side):
            row, column = top + y, left + x
            across = side - 1 - x if draws[2] < 0.5 else x
            inside = 0 <= row < stored and 0 <= column < stored
            pixel = image[:, row, column].astype(float) if inside else np.zeros(channels)
            if form == "aligned":
                pixel = pixel - mean[:, row, column] if inside else pixel
            if form == "centre":
                pixel = pixel - mean[:, edge + y, edge + across]  # the mean image is never shifted or flipped
            out[:, y, across] = pixel
    return out


# ------------------------------------------------------------------------------------------------ mean image


@pytest.mark.parametrize("form", ["none", "aligned", "centre"])
@pytest.mark.parametrize(("pad", "crop"), [(0, True), (2, False), (0, False)])
def test_the_mean_image_is_subtracted_as_in_the_loop(form: str, pad: int, crop: bool) -> None:
    images, mean = noise(12, 13), noise(7, 13, seed=1).float().mean(0)
    indices = torch.arange(12) * 31 + 5
    size = 9 if crop else 13
    made = pipeline(size, None if form == "none" else mean, crop, pad=pad, flip=True, mean_image=form)
    draws = uniforms(indices, 3, "augment", 7, 2).tolist()
    result = made.train(images, indices, seed=7, epoch=2)
    for n, image in enumerate(images.numpy()):
        expected = slow_window(image, mean.double().numpy(), form, size, pad, crop, draws[n])
        np.testing.assert_allclose(result[n].double().numpy(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", ["aligned", "centre"])
def test_evaluation_subtracts_the_center_of_the_mean_image(form: str) -> None:
    images, mean = noise(3, 13), noise(7, 13, seed=1).float().mean(0)
    result = pipeline(9, mean, crop=True, mean_image=form).evaluate(images)
    torch.testing.assert_close(result, images[:, :, 2:11, 2:11] - mean[:, 2:11, 2:11], rtol=0, atol=1e-3)


def test_the_mean_image_is_subtracted_before_resizing_and_normalising() -> None:
    images, mean = noise(3, 8), noise(7, 8, seed=1).float().mean(0)
    result = pipeline(16, mean, grey=False, mean_image="centre").evaluate(images)
    large = torch.nn.functional.interpolate(images.double() - mean.double(), (16, 16), mode="bilinear")
    mean_colour, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(result.double(), (large / 255 - mean_colour) / std, rtol=0, atol=2e-5)


def test_an_aligned_mean_image_does_not_work_with_resized_crops() -> None:
    parts = {"scale": [0.08, 1.0], "ratio": [0.75, 1.33]}
    with pytest.raises(UserError, match=r"mean_image=aligned does not work with augment\.resized_crop"):
        pipeline(9, resized_crop=parts, mean_image="aligned")


# ------------------------------------------------------------------------------------------------ crops


def test_all_81_crops_of_24_pixels_out_of_32_and_their_flips_are_equally_frequent() -> None:
    count = 16_200
    places = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij"))  # (down, right)
    images = places[None].to(torch.uint8).expand(count, -1, -1, -1)
    made = Pipeline(Preprocess(24, [0.0] * 2, [1 / 255] * 2, crop=True), {"flip": True, "crop": True})
    corners = made.train(images, torch.arange(count), 0, 0)[:, :, 0, [0, 23]].round().long()
    down, first, last = corners[:, 0, 0], corners[:, 1, 0], corners[:, 1, 1]
    flipped = (first > last).long()
    kinds = (down * 9 + torch.minimum(first, last)) * 2 + flipped
    assert (int(down.min()), int(down.max()), int(first.min())) == (0, 8, 0)
    counts = torch.bincount(kinds, minlength=162).double()
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert abs(chi_square - 161) < 4 * math.sqrt(2 * 161)
    assert counts.min() > 50


def test_crops_of_224_pixels_out_of_256_reach_offsets_0_to_32_evenly() -> None:
    window = pipeline(224, crop=True, flip=True).augment.window(torch.arange(33_000), 256, seed=0, epoch=0)
    assert window is not None
    assert window.side == 224
    for offsets in window.offsets.T:
        counts = torch.bincount(offsets, minlength=33).double()
        assert len(counts) == 33
        assert abs(((counts - 1000) ** 2 / 1000).sum() - 32) < 4 * math.sqrt(2 * 32)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_center_crop_in_training_matches_evaluation(whiten: bool) -> None:
    images = noise(4, 12)
    made = pipeline(8, grey=False, centre_crop=True, whiten=whiten)
    assert torch.equal(made.train(images, torch.arange(4), 0, 0), made.evaluate(images))
    assert made.evaluate(images).shape == (4, 3, 8, 8)


def test_training_depends_only_on_seed_epoch_and_index() -> None:
    images, indices = noise(40, 12), torch.arange(40)
    made = pipeline(8, grey=False, crop=True, flip=True, colour_noise="paper")
    whole = made.train(images, indices, 1, 2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [made.train(images[part], part, 1, 2) for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((2, 2), (1, 3)):
        assert not (made.train(images, indices, seed, epoch) == whole).flatten(1).all(1).any()


# ------------------------------------------------------------------------------------------------ whitening


def slow_whiten(image: np.ndarray) -> np.ndarray:
    """tf.image.per_image_standardization: (x - mean) / max(std, 1 / sqrt(number of values))."""
    x = image.astype(np.float64)
    return (x - x.mean()) / max(x.std(), 1.0 / math.sqrt(x.size))


def test_whitening_matches_tensorflows_formula() -> None:
    images = noise(5, 28)
    images[1] = 77  # constant: no variance
    images[2] //= 128
    result = Pipeline(Preprocess(28, [0.0] * 3, [1.0] * 3), {"whiten": True}).evaluate(images)
    for n in range(5):
        expected = slow_whiten(images[n].numpy() / 255.0)
        np.testing.assert_allclose(result[n].double().numpy(), expected, rtol=0, atol=2e-4)
    assert result.flatten(1).mean(1).abs().max() < 1e-4
    assert result[0].std(correction=0).item() == pytest.approx(1.0, rel=1e-4)
    assert result[1].abs().max() < 1e-5


def test_an_image_of_low_contrast_is_divided_by_the_minimum_deviation() -> None:
    images = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    images[0, 0, 0, 0] = 101  # standard deviation 0.00056 in 0..1, the least is 1 / sqrt(48) = 0.144
    result = Pipeline(Preprocess(4, [0.0] * 3, [1.0] * 3), {"whiten": True}).evaluate(images)
    assert result[0, 0, 0, 0].item() == pytest.approx((1 / 255) * (47 / 48) * math.sqrt(48), rel=1e-3)


def test_the_crop_is_whitened_not_the_stored_image() -> None:
    images, indices = noise(6, 12), torch.arange(6)
    options = {"crop": True, "flip": True}
    cut = Pipeline(Preprocess(8, [0.0] * 3, [1.0] * 3, crop=True), options).train(images, indices, 0, 0)
    result = Pipeline(Preprocess(8, [0.0] * 3, [1.0] * 3, crop=True), {**options, "whiten": True})
    for image, whitened in zip(cut, result.train(images, indices, 0, 0), strict=True):
        np.testing.assert_allclose(whitened.numpy(), slow_whiten(image.numpy()), rtol=0, atol=2e-4)


# ------------------------------------------------------------------------------------------------ views


@pytest.mark.parametrize(("stored", "size"), [(32, 24), (256, 224), (8, 5), (6, 6)])
def test_ten_crop_is_corners_and_center_and_their_flips(stored: int, size: int) -> None:
    images = noise(2, stored)
    views = pipeline(size, crop=True).views(images, "ten_crop")
    assert views.shape == (2, 10, 3, size, size)
    end, middle = stored - size, {8: 2}.get(stored, (stored - size) // 2)
    for v, (top, left) in enumerate([(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]):
        cut = images[:, :, top : top + size, left : left + size].float()
        torch.testing.assert_close(views[:, v], cut, rtol=0, atol=1e-3)
        torch.testing.assert_close(views[:, v + 5], cut.flip(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(views[:, 4], pipeline(size, crop=True).evaluate(images), rtol=0, atol=1e-3)


def test_an_aligned_mean_image_follows_the_view_and_a_centre_one_does_not() -> None:
    images, mean = noise(2, 12), noise(7, 12, seed=1).float().mean(0)
    aligned = pipeline(8, mean, crop=True, mean_image="aligned").views(images, "ten_crop")
    fixed = pipeline(8, mean, crop=True, mean_image="centre").views(images, "ten_crop")
    corner = images[:, :, 4:, :8].float()  # below, left: the third
    torch.testing.assert_close(aligned[:, 2], corner - mean[:, 4:, :8], rtol=0, atol=1e-3)
    torch.testing.assert_close(aligned[:, 7], (corner - mean[:, 4:, :8]).flip(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(fixed[:, 2], corner - mean[:, 2:10, 2:10], rtol=0, atol=1e-3)
    torch.testing.assert_close(fixed[:, 7], corner.flip(3) - mean[:, 2:10, 2:10], rtol=0, atol=1e-3)


def test_each_view_is_whitened_separately() -> None:
    made = Pipeline(Preprocess(8, [0.0] * 3, [1.0] * 3, crop=True), {"whiten": True})
    images = noise(2, 12)
    third = made.views(images, "ten_crop")[1, 2]
    np.testing.assert_allclose(
        third.numpy(), slow_whiten(images[1, :, 4:, :8].numpy() / 255), rtol=0, atol=2e-4
    )


def test_flip_stacks_the_center_and_its_flip_and_centre_has_no_view_axis() -> None:
    made, images = pipeline(8, crop=True), noise(3, 12)
    assert torch.equal(made.views(images, "centre"), made.evaluate(images))
    both = made.views(images, "flip")
    assert torch.equal(both[:, 0], made.evaluate(images))
    assert torch.equal(both[:, 1], made.evaluate(images).flip(3))


@pytest.mark.parametrize("options", [{}, {"crop": True}, {"whiten": True}])
def test_flip_translate_is_airbenchs_six_views(options: dict[str, Any]) -> None:
    made, images = pipeline(8, grey=False, **options), noise(3, 12)
    views, centre = made.views(images, "flip_translate"), made.evaluate(images)
    assert views.shape == (3, 6, 3, 8, 8)
    for v, moved in enumerate((0, -1, 1)):
        for y in range(8):
            for x in range(8):
                row, column = (p - 2 * max(0, p - 7) for p in (abs(y + moved), abs(x + moved)))  # reflected
                assert torch.equal(views[:, v, :, y, x], centre[:, :, row, column])
        assert torch.equal(views[:, v + 3], views[:, v].flip(3))


def test_alternating_flips_apply_to_resized_crops() -> None:
    images, indices = noise(32, 12), torch.arange(32)
    parts = {"scale": [0.2, 1.0], "ratio": [0.75, 1.33]}
    made, still = (pipeline(8, flip=flip, resized_crop=parts) for flip in ("alternating", False))
    even, odd = made.augment.window(indices, 12, 0, 0), made.augment.window(indices, 12, 0, 1)
    assert even is not None and odd is not None
    assert torch.equal(even.flipped, ~odd.flipped)
    expected = still.train(images, indices, 0, 1)
    expected[odd.flipped] = expected[odd.flipped].flip(3)
    torch.testing.assert_close(made.train(images, indices, 0, 1), expected, rtol=0, atol=2e-3)


def test_ten_crop_of_images_that_are_too_small_is_refused_before_training() -> None:
    made = pipeline(32, crop=True, views="ten_crop")
    message = r"ten_crop needs stored images at least as large as the input: they have 8 pixels, the input 32"
    with pytest.raises(UserError, match=message):
        made.views(noise(1, 8), "ten_crop")
    with pytest.raises(UserError, match=message):
        made.train(noise(1, 8), torch.arange(1), 0, 0)
