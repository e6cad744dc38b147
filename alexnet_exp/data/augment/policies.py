"""RandAugment, TrivialAugment and colour jitter, drawn per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_exp.data.augment import operations
from alexnet_exp.data.augment.operations import Operation, apply_chosen
from alexnet_exp.data.randomness import constant, uniforms
from alexnet_exp.errors import UserError

BINS = 31  # magnitude bins, from none to the maximum


class Action(NamedTuple):
    """An operation, its strength at bin 0, and by how much it has changed at the last bin."""

    operation: Operation
    start: float = 0.0
    reach: float = 0.0
    signed: bool = False


def _space(slope: float, pixels: float, degrees: float, blend: float, bits: int) -> tuple[Action, ...]:
    """Return the operations that both policies share, up to the given maximum strengths."""
    # In torchvision's order. Draws pick by position, so reordering changes the images of every seed.
    return (
        Action(operations.identity),
        Action(operations.shear_x, 0.0, slope, True),
        Action(operations.shear_y, 0.0, slope, True),
        Action(operations.translate_x, 0.0, pixels, True),
        Action(operations.translate_y, 0.0, pixels, True),
        Action(operations.rotate, 0.0, degrees, True),
        Action(operations.brightness, 1.0, blend, True),
        Action(operations.saturation, 1.0, blend, True),
        Action(operations.contrast, 1.0, blend, True),
        Action(operations.sharpness, 1.0, blend, True),
        Action(operations.posterize, 8.0, -bits),
        Action(operations.solarize, 255.0, -255.0),
        Action(operations.auto_contrast),
        Action(operations.equalize),
    )


@lru_cache(maxsize=16)
def _strengths(space: tuple[Action, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return start (K,), change per bin (K, 31) and whether the change has a random sign (K,) of K operations."""
    start = torch.tensor([action.start for action in space], device=device)
    change = torch.stack([torch.linspace(0.0, action.reach, BINS) for action in space]).to(device)
    return start, change, torch.tensor([action.signed for action in space], device=device)


@dataclass(frozen=True)
class RandAugment:
    """A fixed number of random operations per image, all at the same magnitude.

    Source: Cubuk et al. 2020, as in torchvision.transforms.RandAugment.

    Args:
        num_ops: Operations per image.
        magnitude: Magnitude bin, 0 to 30.
    """

    num_ops: int = 2
    magnitude: int = 9

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        # The paper translates by up to 150 pixels of 331-pixel images.
        space = _space(0.3, 150.0 / 331.0 * images.shape[-1], 30.0, 0.9, 4)
        draws = uniforms(indices, 2 * self.num_ops, "randaugment", seed, epoch)
        chosen = (draws[:, : self.num_ops] * len(space)).long()  # (N, num_ops)
        return _apply(
            images, space, chosen, torch.full_like(chosen, self.magnitude), draws[:, self.num_ops :]
        )


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation per image, at a random magnitude.

    Source: Müller and Hutter 2021, wide space, as in torchvision.transforms.TrivialAugmentWide.
    """

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        space = _space(0.99, 32.0, 135.0, 0.99, 6)  # 32 pixels whatever the image size, as torchvision's
        draws = uniforms(indices, 3, "trivialaugment", seed, epoch)
        chosen, bins = (draws[:, :1] * len(space)).long(), (draws[:, 1:2] * BINS).long()
        return _apply(images, space, chosen, bins, draws[:, 2:])


def _apply(images: Tensor, space: tuple[Action, ...], chosen: Tensor, bins: Tensor, signs: Tensor) -> Tensor:
    """Apply operations `chosen` (N, S) at magnitudes `bins` (N, S), negated where `signs` (N, S) < 1/2."""
    start, change, signed = _strengths(space, images.device)
    by = change[chosen, bins]
    strengths = start[chosen] + torch.where(signed[chosen] & (signs < 0.5), -by, by)
    return apply_chosen(images, chosen, strengths, [action.operation for action in space])


@dataclass(frozen=True)
class ColourJitter:
    """Jitter brightness, contrast, saturation and hue of each image, in random order.

    Source: torchvision.transforms.ColorJitter.

    Args:
        brightness: Maximum deviation of the factor from 1; 0 disables it.
        contrast: Likewise.
        saturation: Likewise.
        hue: Maximum shift, in turns.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        used = {name: width for name, width in vars(self).items() if width}  # also names in `operations`
        limits = tuple((-w, w) if n == "hue" else (max(0.0, 1.0 - w), 1.0 + w) for n, w in used.items())
        draws = uniforms(indices, 2 * len(used), "colour jitter", seed, epoch)
        order = draws[:, len(used) :].argsort(dim=1, stable=True)  # (N, used)
        # Drawn per operation, not per position: `gather` below brings them into the order of application.
        low, high = constant(limits, images.device).T
        strengths = low + (high - low) * draws[:, : len(used)]
        changes: list[Operation] = [getattr(operations, name) for name in used]
        return apply_chosen(images, order, strengths.gather(1, order), changes)


def build_policy(options: Mapping[str, Any]) -> RandAugment | TrivialAugment | None:
    """Build the policy that the keys of conf/augment select.

    Raises:
        UserError: Settings of RandAugment without policy=randaugment.
    """
    given = {key: options[key] for key in ("num_ops", "magnitude") if options.get(key) is not None}
    name = options.get("policy") or "none"
    if name == "randaugment":
        return RandAugment(**given)
    if given:
        raise UserError(
            f"Only RandAugment uses augment.{' and augment.'.join(given)}: set augment.policy=randaugment, or "
            "augment.num_ops=null augment.magnitude=null."
        )
    return TrivialAugment() if name == "trivialaugment" else None
