"""RandAugment, TrivialAugment and colour jitter: operations that are drawn for each image."""

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

BINS = 31  # of strength, from none to the greatest


class Action(NamedTuple):
    """An operation, and its strength at bin 0 and at the last."""

    operation: Operation
    start: float = 0.0
    reach: float = 0.0
    signed: bool = False


def _space(slope: float, pixels: float, degrees: float, blend: float, bits: int) -> tuple[Action, ...]:
    """List the operations of both policies, which differ in how far they go."""
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
    """Return start (K,), change by bin (K, 31) and whether a change has a sign (K,) of K operations."""
    start = torch.tensor([action.start for action in space], device=device)
    change = torch.stack([torch.linspace(0.0, action.reach, BINS) for action in space]).to(device)
    return start, change, torch.tensor([action.signed for action in space], device=device)


@dataclass(frozen=True)
class RandAugment:
    """So many operations for each image, all of one strength; which and of which sign is drawn.

    Source: Cubuk et al. 2020, in torchvision's form (transforms.RandAugment).

    Args:
        num_ops: Operations for each image.
        magnitude: Bin of strength, 0 to 30.
    """

    num_ops: int = 2
    magnitude: int = 9

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        space = _space(0.3, 150.0 / 331.0 * images.shape[-1], 30.0, 0.9, 4)
        draws = uniforms(indices, 2 * self.num_ops, "randaugment", seed, epoch)
        chosen = (draws[:, : self.num_ops] * len(space)).long()
        return _applied(
            images, space, chosen, torch.full_like(chosen, self.magnitude), draws[:, self.num_ops :]
        )


@dataclass(frozen=True)
class TrivialAugment:
    """One operation for each image, of any strength.

    Source: Müller and Hutter 2021, the wide space, in torchvision's form (transforms.TrivialAugmentWide).
    """

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        space = _space(0.99, 32.0, 135.0, 0.99, 6)
        draws = uniforms(indices, 3, "trivialaugment", seed, epoch)
        chosen, bins = (draws[:, :1] * len(space)).long(), (draws[:, 1:2] * BINS).long()
        return _applied(images, space, chosen, bins, draws[:, 2:])


def _applied(
    images: Tensor, space: tuple[Action, ...], chosen: Tensor, bins: Tensor, signs: Tensor
) -> Tensor:
    """Apply the operations `chosen` (N, S) with strength `bins` (N, S), downwards where `signs` (N, S) < 1/2."""
    start, change, signed = _strengths(space, images.device)
    downwards = signed[chosen] & (signs < 0.5)
    by = change[chosen, bins]
    strengths = start[chosen] + torch.where(downwards, -by, by)
    return apply_chosen(images, chosen, strengths, [action.operation for action in space])


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue of each image, in an order drawn for it.

    Source: torchvision.transforms.ColorJitter.

    Args:
        brightness: Greatest change of the factor 1; 0 leaves brightness alone.
        contrast: Likewise.
        saturation: Likewise.
        hue: Greatest shift, in turns.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same."""
        used = {name: width for name, width in vars(self).items() if width}
        limits = tuple(_limits(name, width) for name, width in used.items())
        draws = uniforms(indices, 2 * len(used), "colour jitter", seed, epoch)
        order = draws[:, len(used) :].argsort(dim=1, stable=True)  # (N, used)
        low, high = constant(limits, images.device).T
        strengths = low + (high - low) * draws[:, : len(used)]
        changes: list[Operation] = [getattr(operations, name) for name in used]
        return apply_chosen(images, order, strengths.gather(1, order), changes)


def _limits(name: str, width: float) -> tuple[float, float]:
    return (-width, width) if name == "hue" else (max(0.0, 1.0 - width), 1.0 + width)


def build_policy(options: Mapping[str, Any]) -> RandAugment | TrivialAugment | None:
    """Make the policy that the keys of conf/augment ask for.

    Raises:
        UserError: For settings of RandAugment without it.
    """
    given = {key: options[key] for key in ("num_ops", "magnitude") if options.get(key) is not None}
    name = options.get("policy") or "none"
    if name == "randaugment":
        return RandAugment(**given)
    if given:
        raise UserError(
            f"Only RandAugment has augment.{' and augment.'.join(given)}: say augment.policy=randaugment, or "
            "augment.num_ops=null augment.magnitude=null."
        )
    return TrivialAugment() if name == "trivialaugment" else None
