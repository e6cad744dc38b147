"""Augmentation and normalisation, on the device, with parameters drawn for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

    def __call__(self, images: Tensor, mean_image: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) uint8 to (N, C, image_size, image_size) float32; the mean image is (C, H, W)."""
        mean = None if mean_image is None else self.centre(mean_image[None])
        images = self.centre(images)
        return self.finish(images.clone() if images.dtype == torch.float32 else images, mean)

    def centre(self, images: Tensor) -> Tensor:
        """Return the central square of the size the network takes, where there is a choice and `crop` asks for it."""
        size = self.image_size
        if not self.crop or images.shape[-1] <= size:
            return images
        top = round((images.shape[-1] - size) / 2)
        return images[:, :, top : top + size, top : top + size]

    def finish(self, images: Tensor, mean: Tensor | None = None) -> Tensor:
        """Cast, subtract a mean image of the same size, resize where the size differs, normalise.

        Images that are float32 already are the caller's to lose: they are worked on in place.
        """
        x = images.to(torch.float32)
        if mean is not None:
            x.sub_(mean)
        # Normalising and resizing can change places, and whichever image is smaller is normalised.
        if x.shape[-1] > self.image_size:
            return self._normalised(self._resized(x, antialias=True))
        x = self._normalised(x)
        return x if x.shape[-1] == self.image_size else self._resized(x, antialias=False)

    def _resized(self, x: Tensor, antialias: bool) -> Tensor:
        size = (self.image_size, self.image_size)
        # Antialias matters only when shrinking, and costs when enlarging.
        return functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=antialias)

    def _normalised(self, x: Tensor) -> Tensor:
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
        flip: Mirror each image with probability 1/2; 'alternating': by chance in the first epoch, then in every other.
        pad: Zeros around the stored image before a random crop of the stored size, in pixels.
        crop: Random crop of `image_size` out of a larger stored image.
        image_size: Side the network takes, in pixels.
    """

    flip: bool | str
    pad: int
    crop: bool
    image_size: int
    draw: Callable[..., Tensor] | None = field(default=None, repr=False)  # in place of `uniforms`

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same or, with `crop`, to (N, C, image_size, image_size) uint8."""
        window = self.window(indices, images.shape[-1], seed, epoch)
        return images if window is None else window.cut(images)

    def window(self, indices: Tensor, stored: int, seed: int, epoch: int) -> Window | None:
        """Draw where to cut each image and whether to mirror it; None if nothing is random.

        Args:
            indices: (N,) int64 positions in the split.
            stored: Side of the stored images.
            seed: Of the run.
            epoch: Finished epochs.
        """
        if not (self.flip or self.pad or self.crop):
            return None
        side = min(stored, self.image_size) if self.crop else stored
        draws = (self.draw or uniforms)(indices, 3, "augment", seed, epoch)  # (N, 3): down, right, mirror
        offsets = (draws[:, :2] * (stored + 2 * self.pad - side + 1)).long()
        return Window(offsets, side, self.mirrored(indices, draws[:, 2], seed, epoch), self.pad)

    def mirrored(self, indices: Tensor, draws: Tensor, seed: int, epoch: int) -> Tensor:
        """Tell which images are mirrored, (N,) bool, from numbers (N,) drawn for this epoch.

        Source: of 'alternating', K. Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024, section 3.6
        """
        if self.flip != "alternating":
            return (draws < 0.5) & bool(self.flip)
        first = (self.draw or uniforms)(indices, 1, "flip", seed)[
            :, 0
        ] < 0.5  # the epoch is no part of the key
        return first ^ (epoch % 2 == 1)


@dataclass
class Window:
    """A square for each image of a batch.

    Args:
        offsets: (N, 2) int64, down and right, in the padded image.
        side: Of the square.
        mirrored: (N,) bool.
        pad: Zeros around the images.
    """

    offsets: Tensor
    side: int
    mirrored: Tensor
    pad: int = 0

    def cut(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, side, side)."""
        if self.pad:
            images = functional.pad(images, (self.pad,) * 4)
        # Copying squares beats gathering pixels where there are many in each (227: 1.0 ms for 64 images, not 3.0;
        # 32: 2.9 ms for 512, not 0.8), and a device would be asked for each.
        crop = _crop_each if images.device.type == "cpu" and self.side >= 96 else _crop
        return crop(images, self.offsets, self.side, self.mirrored)


def _crop_each(images: Tensor, offsets: Tensor, side: int, mirrored: Tensor) -> Tensor:
    """Do the same as `_crop`, image by image."""
    cut = images.new_empty((*images.shape[:2], side, side))
    for target, image, (down, right), mirror in zip(
        cut, images, offsets.tolist(), mirrored.tolist(), strict=True
    ):
        square = image[:, down : down + side, right : right + side]
        target.copy_(square.flip(2) if mirror else square)
    return cut


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
