"""Random erasing: a rectangle of each image becomes the data set's mean colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alexnet_exp.data.randomness import uniforms
from alexnet_exp.data.resized_crop import ATTEMPTS, first_that_fits, random_shapes


@dataclass(frozen=True)
class Erasing:
    """Erases a rectangle of some images; works on normalised ones, where the mean colour is 0.

    Source: Zhong et al. 2017, in torchvision's form (transforms.RandomErasing, value=0).

    Args:
        probability: Of an image.
        scale: Least and largest share of the area.
        ratio: Least and largest height over width, drawn evenly in its logarithm.
    """

    probability: float
    scale: Sequence[float]
    ratio: Sequence[float]

    def __call__(self, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, S, S) float to the same."""
        corner, size = self.boxes(indices, x.shape[-1], seed, epoch)
        return x.masked_fill(inside(corner, corner + size, x.shape[-1]), 0.0)

    def boxes(self, indices: Tensor, side: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw a rectangle for each image.

        Args:
            indices: (N,) int64 positions in the split.
            side: Of the images, in pixels.
            seed: Of the run.
            epoch: Finished epochs.

        Returns:
            Top left corner and size, (N, 2) int64 down and across, in pixels; size 0 where nothing is erased.
        """
        draws = uniforms(indices, 2 * ATTEMPTS + 3, "erasing", seed, epoch)
        sizes = (side * random_shapes(draws, self.scale, self.ratio)).round()
        size = first_that_fits(sizes, sizes < side, otherwise=0.0)
        size = torch.where(draws[:, -1:] < self.probability, size, 0.0)
        corner = (draws[:, -3:-1] * (side - size + 1)).long()
        return corner, size.long()


def inside(start: Tensor, end: Tensor, side: int) -> Tensor:
    """Tell which pixels lie in a rectangle of each image.

    Args:
        start: (N, 2) int64 first row and column.
        end: (N, 2) int64 first row and column after it.
        side: Of the images, in pixels.

    Returns:
        (N, 1, side, side) bool.
    """
    steps = torch.arange(side, device=start.device)
    rows, columns = ((steps >= start[:, i, None]) & (steps < end[:, i, None]) for i in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[:, None]
