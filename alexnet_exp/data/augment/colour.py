"""AlexNet's PCA colour noise, in its two forms: the paper's and the released code's; and TensorFlow's contrast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alexnet_exp.data.randomness import constant, uniforms

STRENGTH = 0.1  # standard deviation of the random factors
# Eigenvalues of ImageNet's RGB in 0..1, largest first, and eigenvectors as columns.
# Source: tensorpack, examples/ImageNetModels/alexnet.py
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
# Standard deviations of RGB in 0..255 in the data files of the 2012 code, largest first.
# Source: cuda-convnet2 make-data/input_meta, color_pca
DEVIATIONS = (121.78006, 37.09389, 19.72083)
DEVIATION_VECTORS = (
    (-0.56351045, -0.71257945, 0.41795513),
    (-0.57618440, -0.02354167, -0.81698062),
    (-0.59200296, 0.70119634, 0.39731118),
)


def colour_shift(indices: Tensor, form: str, seed: int, epoch: int) -> Tensor:
    """Draw a colour per image, to be added to all of its pixels.

    Args:
        indices: (N,) int64 positions in the split.
        form: 'paper': eigenvectors times random factor times eigenvalue; 'source': times standard deviation.
        seed: Seed of the run.
        epoch: Finished epochs.

    Returns:
        (N, 3, 1, 1) float32, for pixels in 0..1.

    Source: Krizhevsky et al. 2012, section 4.1; convdata of the released code.
    """
    spread = EIGENVALUES if form == "paper" else tuple(d / 255.0 for d in DEVIATIONS)
    vectors = EIGENVECTORS if form == "paper" else DEVIATION_VECTORS
    factors = STRENGTH * _normals(indices, 3, "colour", seed, epoch)  # (N, 3)
    weighted = factors * constant(spread, indices.device)
    first, second, third = constant(vectors, indices.device).T
    # Not a matrix product, whose rounding depends on the batch size.
    shift = weighted[:, :1] * first + weighted[:, 1:2] * second + weighted[:, 2:] * third
    return shift[:, :, None, None]


def scale_contrast(x: Tensor, indices: Tensor, limits: Sequence[float], seed: int, epoch: int) -> Tensor:
    """Scale the contrast of each image about its channel means, by one factor for all channels, without clipping.

    Args:
        x: (N, C, H, W) float32, normalised or not.
        indices: (N,) int64 positions in the split.
        limits: Smallest and largest factor.
        seed: Seed of the run.
        epoch: Finished epochs.

    Source: `tf.image.random_contrast`.
    """
    least, most = limits
    factor = least + (most - least) * uniforms(indices, 1, "contrast", seed, epoch)[:, :, None, None]
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _normals(indices: Tensor, count: int, *key: int | str) -> Tensor:
    """Draw `count` standard normal numbers per image (Box-Muller)."""
    draws = uniforms(indices, 2 * count, *key)
    radius = torch.sqrt(-2.0 * torch.log1p(-draws[:, :count]))  # draws < 1, so it is finite
    return radius * torch.cos(2.0 * math.pi * draws[:, count:])
