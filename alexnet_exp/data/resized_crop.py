"""A random part of each image, resized: torchvision's RandomResizedCrop for a batch, with a part for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.randomness import uniforms

ATTEMPTS = 10  # as torchvision: the first of ten drawn shapes that fits, else the whole image


def random_boxes(
    indices: Tensor, scale: Sequence[float], ratio: Sequence[float], seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Draw a part of a square for each image.

    Args:
        indices: (N,) int64 positions in the split.
        scale: Least and largest share of the area.
        ratio: Least and largest width over height, drawn evenly in its logarithm.
        seed: Of the run.
        epoch: Finished epochs.

    Returns:
        Top left corner (N, 2) as (x, y) and size (N, 2) as (width, height), in shares of the side.
    """
    draws = uniforms(indices, 2 * ATTEMPTS + 2, "resized crop", seed, epoch)
    sizes = random_shapes(draws, scale, ratio)
    size = first_that_fits(sizes, sizes <= 1.0, otherwise=1.0)
    return draws[:, -2:] * (1.0 - size), size


def random_shapes(draws: Tensor, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Make ten rectangles for each image from its first twenty numbers.

    Args:
        draws: (N, 20 or more) evenly distributed in 0..1.
        scale: Least and largest share of the area.
        ratio: Least and largest first side over second, drawn evenly in its logarithm.

    Returns:
        (N, 10, 2) sides, in shares of the image's.
    """
    areas = scale[0] + (scale[1] - scale[0]) * draws[:, :ATTEMPTS]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    return torch.stack([(areas * ratios).sqrt(), (areas / ratios).sqrt()], dim=2)


def first_that_fits(sizes: Tensor, fits: Tensor, otherwise: float) -> Tensor:
    """Take the first of several sizes (N, 10, 2) both sides of which fit, or `otherwise`; return (N, 2)."""
    fits = fits.all(2)
    first = fits.float().argmax(1)
    chosen = sizes[torch.arange(len(sizes), device=sizes.device), first]
    return torch.where(fits.any(1, keepdim=True), chosen, otherwise)


def resized_crop(images: Tensor, corner: Tensor, size: Tensor, side: int, mirrored: Tensor) -> Tensor:
    """Cut a part out of each image and resize it, bilinearly.

    Args:
        images: (N, C, H, W), any real dtype.
        corner: (N, 2) top left, in shares of the side.
        size: (N, 2) width and height, in shares of the side.
        side: Of the result, in pixels.
        mirrored: (N,) bool.

    Returns:
        (N, C, side, side) float32.
    """
    steps = (torch.arange(side, device=images.device) + 0.5) / side  # centres of the new pixels, in 0..1
    across = torch.where(mirrored[:, None], 1.0 - steps, steps)
    x = corner[:, :1] + size[:, :1] * across  # (N, side)
    y = corner[:, 1:] + size[:, 1:] * steps
    grid = torch.stack(
        [x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3
    )  # (N, side, side, 2)
    return functional.grid_sample(
        images.float(), 2.0 * grid - 1.0, mode="bilinear", padding_mode="border", align_corners=False
    )
