"""Mixup and CutMix: each image is mixed with another of its batch, and so are their labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_exp.data.augment.geometry import inside
from alexnet_exp.data.randomness import uniforms


class Mixing(NamedTuple):
    """Mixing parameters of a batch.

    partners: (N,) int64 positions in the batch. shares: (N,) float32 weight of the image and of its own label; the
    partner's is 1 - share. start, end: (N, 2) int64 first and last (exclusive) row and column of the rectangle that
    CutMix takes from the partner. cut: (N,) bool, CutMix instead of Mixup.
    """

    partners: Tensor
    shares: Tensor
    start: Tensor
    end: Tensor
    cut: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Mix (N, C, S, S) float images."""
        outside = (~inside(self.start, self.end, x.shape[-1])).to(x.dtype)
        shares = self.shares.to(x.dtype)[:, None, None, None]
        own = torch.where(self.cut[:, None, None, None], outside, shares)  # (N, 1, S, S)
        # lerp is exact at weights 0 and 1: CutMix copies pixels without rounding.
        return torch.lerp(x[self.partners], x, own)


@dataclass(frozen=True)
class Mixer:
    """Draw the parameters of Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) for each image.

    With both enabled, each image flips a coin. Partners are neighbours in the shuffled batch: first and second, third
    and fourth. Each rank mixes within its own slice, so results do not depend on the number of ranks as long as every
    slice starts at an even position (such as batch 128 on 1, 2 or 4 ranks).

    Args:
        mixup: alpha of the Beta(alpha, alpha) distribution of the share; 0 disables Mixup.
        cutmix: The same for CutMix.
        side: Side of the network's input in pixels.
    """

    mixup: float
    cutmix: float
    side: int

    def draw(self, indices: Tensor, seed: int, epoch: int) -> Mixing:
        """Draw the mixing of a batch, given its (N,) int64 positions in the split."""
        # (N, 4): mix or cut, share, row and column of the center
        draws = uniforms(indices, 4, "mixing", seed, epoch)
        cut = draws[:, 0] < (0.0 if not self.cutmix else 0.5 if self.mixup else 1.0)
        # One uniform number serves both: an image is either mixed or cut.
        alphas = {alpha for alpha in (self.mixup, self.cutmix) if alpha}
        quantiles = {alpha: beta_quantile(alpha, draws[:, 1]) for alpha in alphas}
        start, end = self._rectangles(quantiles[self.cutmix or self.mixup], draws[:, 2:], cut)
        area = (end - start).prod(1)
        # The share of a label is that of the pixels: the rectangle may have been clipped at the border.
        shares = torch.where(cut, 1.0 - area / self.side**2, quantiles[self.mixup or self.cutmix])
        # ^ 1 swaps 0 and 1, 2 and 3, ...: every image is a partner once, and no random number is needed in a shuffled
        # batch.
        partners = torch.arange(len(indices), device=indices.device) ^ 1
        # The last image of an odd batch pairs with the previous one.
        partners = torch.where(partners < len(indices), partners, max(len(indices) - 2, 0))
        return Mixing(partners, shares, start, end, cut)

    def _rectangles(self, shares: Tensor, places: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """Center a square of area 1 - share on a random pixel, clipped at the border; empty unless `cut`."""
        half = (self.side * (1.0 - shares).sqrt()).long() // 2
        centre = (self.side * places).long()  # (N, 2)
        start, end = (centre - half[:, None]).clamp(min=0), (centre + half[:, None]).clamp(max=self.side)
        return start, torch.where(cut[:, None], end, start)


def beta_quantile(alpha: float, share: Tensor) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) at probabilities `share` in 0..1.

    torch's own sampler draws from the global generator; mixing must be a function of (seed, epoch, index).
    """
    places, below = _beta_table(alpha, share.device)
    lower = torch.minimum(share, 1.0 - share)  # the distribution is symmetric
    right = torch.searchsorted(below, lower, right=True).clamp(1, len(below) - 1)
    left = right - 1
    part = (lower - below[left]) / (below[right] - below[left])
    place = (places[left] + part * (places[right] - places[left])) ** (1.0 / min(alpha, 1.0))
    return torch.where(share < 0.5, place, 1.0 - place)


@lru_cache(maxsize=16)
def _beta_table(alpha: float, device: torch.device, steps: int = 4096) -> tuple[Tensor, Tensor]:
    """Tabulate the CDF from 0 to 1/2 as (points x ** min(alpha, 1), CDF there)."""
    # With alpha < 1 the density has a pole at 0, which the substitution x ** alpha removes.
    power = min(alpha, 1.0)
    places = torch.linspace(0.0, 0.5**power, steps, dtype=torch.float64)
    x = places ** (1.0 / power)
    density = x ** (alpha - power) * (1.0 - x) ** (alpha - 1.0)
    below = torch.cumulative_trapezoid(density, places)
    below = torch.cat([below.new_zeros(1), below])
    below = 0.5 * below / below[-1]
    return places.float().to(device), below.float().to(device)
