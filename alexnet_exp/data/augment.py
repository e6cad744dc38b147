"""Augmentation and normalisation, on the device, with parameters drawn for each image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.randomness import uniforms


@dataclass
class Preprocess:
    """From stored uint8 images to what the network reads; the same for every image.

    Args:
        image_size: Side the network takes, in pixels.
        mean: Per channel, of pixels in 0..1.
        std: Per channel.
        crop: Take the centre of a larger stored image instead of resizing all of it.
    """

    image_size: int
    mean: list[float]
    std: list[float]
    crop: bool = False
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) uint8 to (N, C, image_size, image_size) float32."""
        size = self.image_size
        if self.crop and images.shape[-1] > size:
            top = round((images.shape[-1] - size) / 2)
            images = images[:, :, top : top + size, top : top + size]
        return self.finish(images)

    def finish(self, images: Tensor) -> Tensor:
        """Cast, resize where the size differs, normalise."""
        x = images.to(torch.float32, copy=True)
        if x.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            # Antialias matters only when shrinking, and costs when enlarging.
            x = functional.interpolate(
                x, size, mode="bilinear", align_corners=False, antialias=x.shape[-1] > self.image_size
            )
        mean, scale = self._constants_on(x.device)
        return x.sub_(mean).mul_(scale)  # in place: half the time of one more copy on a CPU

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            self._constants[device] = (255.0 * mean, 1.0 / (255.0 * std))
        return self._constants[device]


@dataclass
class Augment:
    """Random crop and mirror image at the stored size, in uint8.

    Args:
        flip: Mirror each image with probability 1/2.
        pad: Zeros around the stored image before a random crop of the stored size, in pixels.
        crop: Random crop of `image_size` out of a larger stored image.
        image_size: Side the network takes, in pixels.
    """

    flip: bool
    pad: int
    crop: bool
    image_size: int

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same or, with `crop`, to (N, C, image_size, image_size) uint8."""
        if not (self.flip or self.pad or self.crop):
            return images
        if self.pad:
            images = functional.pad(images, (self.pad,) * 4)
        padded = images.shape[-1]
        side = min(padded - 2 * self.pad, self.image_size) if self.crop else padded - 2 * self.pad
        draws = uniforms(indices, 3, "augment", seed, epoch)  # (N, 3): down, right, mirror
        offsets = (draws[:, :2] * (padded - side + 1)).long()
        mirrored = (draws[:, 2] < 0.5) & self.flip
        return _crop(images, offsets, side, mirrored)


def _crop(images: Tensor, offsets: Tensor, side: int, mirrored: Tensor) -> Tensor:
    """Cut a square of `side` pixels at `offsets` (N, 2) out of each image; mirror it where `mirrored` (N,)."""
    count, channels, height, width = images.shape
    steps = torch.arange(side, device=images.device)
    tops = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
    rows = tops + offsets[:, :1, None] + steps  # (N, C, side), counted over the whole batch
    columns = offsets[:, 1:] + torch.where(mirrored[:, None], side - 1 - steps, steps)  # (N, side)
    # Rows first: they are copied whole, so that the slow gather reads no more than it must.
    strips = images.flatten(0, 2).index_select(0, rows.flatten()).view(count, channels * side, width)
    cut = strips.gather(2, columns[:, None].expand(-1, channels * side, -1))
    return cut.unflatten(1, (channels, side))
