"""Mixup and CutMix: each image takes part of another one of its batch, and its label with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_exp.data.augment.geometry import inside
from alexnet_exp.data.randomness import uniforms


class Mixing(NamedTuple):
    """What each image of a batch is mixed with.

    partners: (N,) int64 positions in the batch. shares: (N,) float32, of the image itself, which is also the share of
    its own label; the rest is the partner's. start, end: (N, 2) int64, first row and column of the rectangle that
    CutMix takes from the partner, and first ones after it. cut: (N,) bool, CutMix rather than Mixup.
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
        return torch.lerp(x[self.partners], x, own)  # exact where `own` is 0 or 1


@dataclass(frozen=True)
class Mixer:
    """Draws the parameters of Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) for each image.

    With both, a coin decides for each image. The partner is the neighbour in the batch, which the loader has shuffled:
    the first with the second, the third with the fourth. A rank mixes within its own slice, so results do not depend
    on the number of ranks as long as every slice starts at an even position (batch 128 on 1, 2 or 4 ranks, say).

    Args:
        mixup: Both parameters of the Beta distribution of the share; 0 for no Mixup.
        cutmix: The same for CutMix.
        side: Of the network's input, in pixels.
    """

    mixup: float
    cutmix: float
    side: int

    def draw(self, indices: Tensor, seed: int, epoch: int) -> Mixing:
        """Draw for the images at `indices`, (N,) int64 positions in the split."""
        draws = uniforms(indices, 4, "mixing", seed, epoch)
        cut = draws[:, 0] < (0.0 if not self.cutmix else 0.5 if self.mixup else 1.0)
        alphas = {alpha for alpha in (self.mixup, self.cutmix) if alpha}
        quantiles = {alpha: beta_quantile(alpha, draws[:, 1]) for alpha in alphas}
        start, end = self._rectangles(quantiles[self.cutmix or self.mixup], draws[:, 2:], cut)
        area = (end - start).prod(1)
        shares = torch.where(cut, 1.0 - area / self.side**2, quantiles[self.mixup or self.cutmix])
        return Mixing(_neighbours(len(indices), indices.device), shares, start, end, cut)

    def _rectangles(self, shares: Tensor, places: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """Lay a square of area 1 - share around a random pixel; what sticks out is lost."""
        half = (self.side * (1.0 - shares).sqrt()).long() // 2
        centre = (self.side * places).long()  # (N, 2)
        start, end = (centre - half[:, None]).clamp(min=0), (centre + half[:, None]).clamp(max=self.side)
        return start, torch.where(cut[:, None], end, start)


def _neighbours(count: int, device: torch.device) -> Tensor:
    """Pair positions; the last of an odd number takes the one before it."""
    partners = torch.arange(count, device=device) ^ 1
    return torch.where(partners < count, partners, max(count - 2, 0))


def beta_quantile(alpha: float, share: Tensor) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) at `share` (0..1)."""
    places, below = _beta_table(alpha, share.device)
    lower = torch.minimum(share, 1.0 - share)  # the distribution is symmetric
    right = torch.searchsorted(below, lower, right=True).clamp(1, len(below) - 1)
    left = right - 1
    part = (lower - below[left]) / (below[right] - below[left])
    place = (places[left] + part * (places[right] - places[left])) ** (1.0 / min(alpha, 1.0))
    return torch.where(share < 0.5, place, 1.0 - place)


@lru_cache(maxsize=16)
def _beta_table(alpha: float, device: torch.device, steps: int = 4096) -> tuple[Tensor, Tensor]:
    """Integrate the density from 0 to 1/2, over x ** min(alpha, 1): there it has no pole."""
    power = min(alpha, 1.0)
    places = torch.linspace(0.0, 0.5**power, steps, dtype=torch.float64)
    x = places ** (1.0 / power)
    density = x ** (alpha - power) * (1.0 - x) ** (alpha - 1.0)
    below = torch.cumulative_trapezoid(density, places)
    below = torch.cat([below.new_zeros(1), below])
    below = 0.5 * below / below[-1]
    return places.float().to(device), below.float().to(device)
