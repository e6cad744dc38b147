from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from alexnet_exp.data.augment import geometry as augment
from alexnet_exp.data.augment.geometry import Augment, Preprocess
from alexnet_exp.data.loaders import BatchPlan
from alexnet_exp.data.randomness import uniforms

OPTIONS = [
    {"flip": True, "pad": 0, "crop": False},
    {"flip": False, "pad": 1, "crop": False},
    {"flip": True, "pad": 4, "crop": False},
    {"flip": False, "pad": 0, "crop": True},
    {"flip": True, "pad": 0, "crop": True},
    {"flip": True, "pad": 2, "crop": True},
]


def noise(count: int, channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def slow_augment(image: np.ndarray, options: dict, image_size: int, draws: list[float]) -> np.ndarray:
    """Crop and flip one image, (C, H, W), pixel by pixel."""
    channels, stored, _ = image.shape
    pad = options["pad"]
    side = min(stored, image_size) if options["crop"] else stored
    places = stored + 2 * pad - side + 1
    top, left = math.floor(draws[0] * places) - pad, math.floor(draws[1] * places) - pad
    out = np.zeros((channels, side, side), dtype=np.uint8)
    for y in range(side):
        for x in range(side):
            row, column = top + y, left + x
            if 0 <= row < stored and 0 <= column < stored:
                flip = options["flip"] and draws[2] < 0.5
                out[:, y, side - 1 - x if flip else x] = image[:, row, column]
    return out


def spread(counts: Tensor) -> float:
    """Return the chi-square statistic against equal counts, in standard deviations from its mean."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


# ------------------------------------------------------------------------------------------------ Augment


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "stored", "image_size"), [(12, 13, 10), (12, 13, 13), (12, 13, 40), (3, 99, 97)]
)
def test_a_batch_matches_a_loop_over_its_images(
    options: dict, channels: int, count: int, stored: int, image_size: int
):
    images, indices = noise(count, channels, side=stored), torch.arange(count) * 31 + 5
    draws = uniforms(indices, 3, "augment", 7, 2).tolist()
    expected = np.stack(
        [slow_augment(image, options, image_size, d) for image, d in zip(images.numpy(), draws, strict=True)]
    )
    result = Augment(**options, image_size=image_size)(images, indices, seed=7, epoch=2)
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), expected)


def test_without_options_the_batch_is_returned_unchanged():
    images = noise(4, 3, 8)
    assert Augment(False, 0, False, image_size=6)(images, torch.arange(4), 0, 0) is images


@pytest.mark.parametrize("options", OPTIONS)
def test_the_input_is_not_modified(options: dict):
    images = noise(8, 3, 13)
    before = images.clone()
    Augment(**options, image_size=10)(images, torch.arange(8), 0, 0)
    assert torch.equal(images, before)


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_of_an_image_in_a_batch_are_cropped_differently(options: dict):
    images = noise(1, 3, 13).expand(64, -1, -1, -1)
    result = Augment(**options, image_size=10)(images, torch.arange(64), 0, 0)
    possible = (9 if options["pad"] == 1 else 16) if options["pad"] or options["crop"] else 2
    assert len(result.unique(dim=0)) >= min(possible, 64) * 0.9


def test_a_crop_depends_on_seed_epoch_and_index_but_not_on_the_batch():
    images, indices = noise(64, 3, 13), torch.arange(64)
    cut = Augment(True, 4, False, image_size=13)
    whole = cut(images, indices, seed=0, epoch=0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    parts = [cut(images[part], part, seed=0, epoch=0) for part in order.split(5)]
    assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((0, 1), (1, 0)):
        same = (cut(images, indices, seed, epoch) == whole).flatten(1).all(1)
        assert same.float().mean() < 0.1


def test_two_ranks_together_see_the_batches_of_one():
    images = noise(23, 3, 13)
    cut = Augment(True, 4, False, image_size=13)

    def batches(rank: int, world_size: int) -> list[Tensor]:
        plan = BatchPlan(23, 6, seed=0, rank=rank, world_size=world_size, epoch=3)
        return [cut(images[s.indices], s.indices, 0, 3)[: s.size] for s in plan]

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert len(alone) == len(first) == len(second) == 4
    for together, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(torch.cat([a, b]), together)


def test_half_of_the_images_are_flipped_in_each_epoch():
    images = torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8).expand(20_000, 1, 2, 2)
    for epoch in range(3):
        result = Augment(True, 0, False, image_size=2)(images, torch.arange(20_000), 0, epoch)
        assert abs(result[:, 0, 0, 0].float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def flipped(cut: Augment, indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return which indices are flipped, seen on images of two pixels."""
    pair = torch.tensor([0, 1], dtype=torch.uint8).expand(len(indices), 1, 2, 2)
    return cut(pair, indices, seed, epoch)[:, 0, 0, 0] == 1


def test_alternating_flips_each_image_in_every_other_epoch():
    cut, indices = Augment("alternating", 0, False, image_size=2), torch.arange(20_000) * 3
    first = flipped(cut, indices, seed=4, epoch=0)
    assert torch.equal(first, uniforms(indices, 1, "flip", 4)[:, 0] < 0.5)
    assert abs(first.float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(20_000)
    for epoch in range(1, 6):
        assert torch.equal(flipped(cut, indices, seed=4, epoch=epoch), first ^ (epoch % 2 == 1))
    other_run = flipped(cut, indices, seed=5, epoch=0) == first
    assert abs(other_run.float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_alternating_does_not_change_the_crops():
    images, indices = noise(64, 3, 13), torch.arange(64)
    plain = Augment(False, 4, False, image_size=13)(images, indices, 0, 1)
    turning = Augment("alternating", 4, False, image_size=13)
    turned = flipped(Augment("alternating", 0, False, image_size=2), indices, 0, 1)[:, None, None, None]
    assert torch.equal(turning(images, indices, 0, 1), torch.where(turned, plain.flip(3), plain))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    parts = [turning(images[part], part, 0, 1) for part in order.split(5)]
    assert torch.equal(torch.cat(parts), turning(images, indices, 0, 1)[order])


@pytest.mark.parametrize(
    ("flip", "pad", "crop", "cuts"), [(False, 2, False, 25), (True, 2, False, 50), (True, 0, True, 32)]
)
def test_every_position_and_flip_is_equally_frequent(flip: bool, pad: int, crop: bool, cuts: int):
    image = torch.arange(1, 82, dtype=torch.uint8).view(1, 1, 9, 9).expand(10_000, -1, -1, -1)
    result = Augment(flip, pad, crop, image_size=6)(image, torch.arange(10_000), 0, 0)
    distinct, counts = result.flatten(1).unique(dim=0, return_counts=True)
    assert len(distinct) == cuts
    assert abs(spread(counts)) < 4


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("side", [*range(1, 18), 31, 32, 33, 63, 64, 65])
def test_the_smallest_and_largest_draws_stay_inside_the_image(
    monkeypatch: pytest.MonkeyPatch, draw: float, side: int
):
    monkeypatch.setattr(
        augment, "uniforms", lambda indices, count, *key: torch.full((len(indices), count), draw)
    )
    image = noise(1, 1, side)
    result = Augment(False, 0, True, image_size=1)(image, torch.arange(1), 0, 0)
    assert result.item() == image[0, 0, *((0, 0) if draw == 0 else (side - 1, side - 1))]


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS)
def test_cuda_matches_the_cpu(options: dict):
    images, indices = noise(64, 3, 32), torch.arange(64)
    cut, prepare = Augment(**options, image_size=28), Preprocess(28, [0.5] * 3, [0.2] * 3)
    expected = cut(images, indices, 0, 0)
    result = cut(images.cuda(), indices.cuda(), 0, 0)
    assert torch.equal(result.cpu(), expected)
    torch.testing.assert_close(prepare(result).cpu(), prepare(expected), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------ Preprocess


MEAN, STD = [0.48, 0.45, 0.40], [0.22, 0.25, 0.19]


def slow_preprocess(images: Tensor, size: int, mean: list[float], std: list[float]) -> Tensor:
    """Resize and normalise with torchvision, in float64."""
    x = images.double() / 255
    if x.shape[-1] != size:
        x = reference.resize(x, [size, size], antialias=True)
    return reference.normalize(x, mean, std)


@pytest.mark.parametrize(
    ("stored", "size"), [(32, 32), (8, 32), (32, 67), (28, 32), (64, 48), (67, 32), (33, 1)]
)
def test_resize_and_normalise_match_torchvision_in_float64(stored: int, size: int):
    images = noise(5, 3, stored)
    result = Preprocess(size, MEAN, STD)(images)
    assert result.dtype == torch.float32
    expected = slow_preprocess(images, size, MEAN, STD)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)


def test_grey_images_use_one_mean_and_std():
    images = noise(5, 1, 32)
    expected = slow_preprocess(images, 32, [0.3], [0.4])
    torch.testing.assert_close(Preprocess(32, [0.3], [0.4])(images).double(), expected, rtol=0, atol=2e-5)


def test_black_and_white_become_the_values_computed_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    result = Preprocess(4, [0.5, 0.0, 0.25], [0.5, 1.0, 0.25])(images)
    assert result[0, :, 0, 0].tolist() == [-1.0, 0.0, -1.0]
    assert result[1, :, 3, 3].tolist() == pytest.approx([1.0, 1.0, 3.0], abs=1e-6)


@pytest.mark.parametrize(("stored", "size"), [(36, 32), (35, 32), (256, 227), (7, 2)])
def test_crop_matches_torchvisions_center_crop(stored: int, size: int):
    images = noise(3, 3, stored)
    expected = slow_preprocess(reference.center_crop(images, [size, size]), size, MEAN, STD)
    result = Preprocess(size, MEAN, STD, crop=True)(images)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stored", [24, 32])
def test_crop_enlarges_stored_images_that_are_too_small(stored: int):
    images = noise(3, 3, stored)
    assert torch.equal(Preprocess(32, MEAN, STD, crop=True)(images), Preprocess(32, MEAN, STD)(images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_preprocessing_does_not_modify_its_input(dtype: torch.dtype):
    images = noise(3, 3, 8).to(dtype)
    before = images.clone()
    Preprocess(8, MEAN, STD)(images)
    assert torch.equal(images, before)


def test_intermediate_floats_are_not_copied_again():
    images = noise(3, 3, 8).float()
    assert Preprocess(8, MEAN, STD).finish(images).data_ptr() == images.data_ptr()


def test_the_whole_pipeline_matches_a_torchvision_loop():
    images, indices = noise(6, 3, 20), torch.arange(6)
    options = {"flip": True, "pad": 0, "crop": True}
    draws = uniforms(indices, 3, "augment", 0, 0).tolist()
    cuts = [slow_augment(image, options, 16, d) for image, d in zip(images.numpy(), draws, strict=True)]
    result = Preprocess(16, MEAN, STD, crop=True)(Augment(**options, image_size=16)(images, indices, 0, 0))
    expected = slow_preprocess(torch.from_numpy(np.stack(cuts)), 16, MEAN, STD)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-5)
