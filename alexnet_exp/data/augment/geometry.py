"""Crops, flips, erasing and normalisation on the device, with parameters drawn per image."""

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
    """Deterministic preprocessing: stored uint8 images to network input.

    Args:
        image_size: Side of the network's input in pixels.
        mean: Per channel, for pixels in 0..1.
        std: Per channel, likewise.
        crop: Center-crop larger stored images instead of resizing them.
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
        # `finish` casts other dtypes to a new tensor, but would overwrite the caller's floats.
        return self.finish(images.clone() if images.dtype == torch.float32 else images, mean)

    def centre(self, images: Tensor) -> Tensor:
        """Center-crop (N, C, S, S) to `image_size` if `crop` is set and the images are larger."""
        size = self.image_size
        if not self.crop or images.shape[-1] <= size:
            return images
        top = round((images.shape[-1] - size) / 2)
        return images[:, :, top : top + size, top : top + size]

    def finish(self, images: Tensor, mean: Tensor | None = None) -> Tensor:
        """Cast to float32, subtract a mean image of the same size, resize if needed, normalise.

        Overwrites float32 `images`.
        """
        x = images.to(torch.float32)
        if mean is not None:
            x.sub_(mean)
        # Normalising and resizing commute: normalise whichever is smaller, before or after the resize.
        if x.shape[-1] > self.image_size:
            return self._normalise(self._resize(x, antialias=True))
        x = self._normalise(x)
        return x if x.shape[-1] == self.image_size else self._resize(x, antialias=False)

    def _resize(self, x: Tensor, antialias: bool) -> Tensor:
        size = (self.image_size, self.image_size)
        # Antialiasing changes nothing when enlarging, but costs time.
        return functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=antialias)

    def _normalise(self, x: Tensor) -> Tensor:
        mean, scale = self._constants_on(x.device)
        return x.sub_(mean).mul_(scale)  # in place: half the time of another copy on CPU

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            # Scaled to pixels in 0..255, so that normalising needs no division by 255.
            self._constants[device] = (255.0 * mean, 1.0 / (255.0 * std))
        return self._constants[device]


@dataclass
class Augment:
    """Random crop and horizontal flip of stored uint8 images.

    Args:
        flip: Flip each image with probability 1/2; 'alternating': at random in the first epoch, then every other epoch.
        pad: Zero padding before a random crop of the stored size, in pixels.
        crop: Random crop of `image_size` out of a larger stored image.
        image_size: Side of the network's input in pixels.
        draw: Replaces `uniforms`, with the same numbers.
    """

    flip: bool | str
    pad: int
    crop: bool
    image_size: int
    draw: Callable[..., Tensor] | None = field(default=None, repr=False)

    def __call__(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, H, W) uint8 to the same shape or, with `crop`, to (N, C, image_size, image_size)."""
        window = self.window(indices, images.shape[-1], seed, epoch)
        return images if window is None else window.cut(images)

    def window(self, indices: Tensor, stored: int, seed: int, epoch: int) -> Window | None:
        """Draw the crop and flip of each image; None if neither is enabled.

        Args:
            indices: (N,) int64 positions in the split.
            stored: Side of the stored images in pixels.
            seed: Seed of the run.
            epoch: Finished epochs.
        """
        if not (self.flip or self.pad or self.crop):
            return None
        side = min(stored, self.image_size) if self.crop else stored
        draws = (self.draw or uniforms)(indices, 3, "augment", seed, epoch)  # (N, 3): down, right, flip
        # + 1: the number of positions. The draws stay below 1, so the product never reaches it.
        offsets = (draws[:, :2] * (stored + 2 * self.pad - side + 1)).long()
        return Window(offsets, side, self.flips(indices, draws[:, 2], seed, epoch), self.pad)

    def flips(self, indices: Tensor, draws: Tensor, seed: int, epoch: int) -> Tensor:
        """Return which images to flip, (N,) bool, given uniform numbers (N,) drawn for this epoch.

        Source of 'alternating': K. Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024, section 3.6
        """
        if self.flip != "alternating":
            return (draws < 0.5) & bool(self.flip)
        # Keyed without the epoch: each image keeps its first draw, and every odd epoch inverts it.
        return ((self.draw or uniforms)(indices, 1, "flip", seed)[:, 0] < 0.5) ^ (epoch % 2 == 1)


@dataclass
class Window:
    """A square crop for each image of a batch.

    Args:
        offsets: (N, 2) int64, down and right, in the padded image.
        side: Side of the crop in pixels.
        flipped: (N,) bool, flip horizontally.
        pad: Zero padding around the images in pixels.
    """

    offsets: Tensor
    side: int
    flipped: Tensor
    pad: int = 0

    def cut(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, side, side)."""
        if self.pad:
            images = functional.pad(images, (self.pad,) * 4)
        # On CPU, slicing image by image beats one gather for large crops (64 of 227: 1.0 ms instead of 3.0) and
        # loses for small ones (512 of 32: 2.9 instead of 0.8). On a GPU, reading the offsets would sync.
        crop = _crop_each if images.device.type == "cpu" and self.side >= 96 else _crop
        return crop(images, self.offsets, self.side, self.flipped)


def _crop_each(images: Tensor, offsets: Tensor, side: int, flipped: Tensor) -> Tensor:
    """Do the same as `_crop`, image by image."""
    cut = images.new_empty((*images.shape[:2], side, side))
    for target, image, (down, right), flip in zip(
        cut, images, offsets.tolist(), flipped.tolist(), strict=True
    ):
        square = image[:, down : down + side, right : right + side]
        target.copy_(square.flip(2) if flip else square)
    return cut


def _crop(images: Tensor, offsets: Tensor, side: int, flipped: Tensor) -> Tensor:
    """Cut a square of `side` pixels at `offsets` (N, 2) out of each image; flip it where `flipped` (N,)."""
    count, channels, height, width = images.shape
    steps = torch.arange(side, device=images.device)
    tops = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
    rows = tops + offsets[:, :1, None] + steps  # (N, C, side), numbered over the whole batch
    columns = offsets[:, 1:] + torch.where(flipped[:, None], side - 1 - steps, steps)  # (N, side)
    # Rows first: they are contiguous copies, and leave less for the slower gather.
    strips = images.flatten(0, 2).index_select(0, rows.flatten()).view(count, channels * side, width)
    cut = strips.gather(2, columns[:, None].expand(-1, channels * side, -1))
    return cut.unflatten(1, (channels, side))


ATTEMPTS = 10  # as in torchvision: use the first of ten drawn shapes that fits, else the whole image


def random_boxes(
    indices: Tensor,
    scale: Sequence[float],
    ratio: Sequence[float],
    seed: int,
    epoch: int,
    aspects: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the box of a random resized crop for each image.

    Args:
        indices: (N,) int64 positions in the split.
        scale: Minimum and maximum fraction of the area.
        ratio: Minimum and maximum width over height, drawn log-uniformly.
        seed: Seed of the run.
        epoch: Finished epochs.
        aspects: (N,) width over height of each image before it was resized to a square; None: squares. The ratio is
            that of the box in the image, not in the square.

    Returns:
        Top left corner (N, 2) as (x, y) and size (N, 2) as (width, height), as fractions of the sides.
    """
    draws = uniforms(indices, 2 * ATTEMPTS + 2, "resized crop", seed, epoch)
    sizes = random_shapes(draws, scale, ratio)
    if aspects is None:
        size = first_that_fits(sizes, sizes <= 1.0, otherwise=1.0)
        return draws[:, -2:] * (1.0 - size), size
    # A box of area a and ratio r in an image W x H is sqrt(a r / (W/H)) of its width and sqrt(a W/H / r) of its height.
    wide = aspects.to(sizes.dtype).sqrt()
    sizes = sizes * torch.stack([1.0 / wide, wide], dim=1)[:, None]
    # As in torchvision, a box that never fits is the largest in the middle whose ratio is allowed.
    largest = torch.stack([ratio[1] / aspects, aspects / ratio[0]], dim=1).to(sizes.dtype).clamp(max=1.0)
    fits = (sizes <= 1.0).all(2).any(1, keepdim=True)  # (N, 1)
    size = torch.where(fits, first_that_fits(sizes, sizes <= 1.0, otherwise=1.0), largest)
    return torch.where(fits, draws[:, -2:], 0.5) * (1.0 - size), size


def random_shapes(draws: Tensor, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Turn the first 20 numbers of each image into 10 candidate rectangles.

    Args:
        draws: (N, 20 or more), uniform in 0..1.
        scale: Minimum and maximum fraction of the area.
        ratio: Minimum and maximum first side over second, drawn log-uniformly.

    Returns:
        (N, 10, 2) sides, as fractions of the image's.
    """
    areas = scale[0] + (scale[1] - scale[0]) * draws[:, :ATTEMPTS]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    return torch.stack([(areas * ratios).sqrt(), (areas / ratios).sqrt()], dim=2)


def first_that_fits(sizes: Tensor, fits: Tensor, otherwise: float) -> Tensor:
    """Return the first of the sizes (N, 10, 2) of which both sides fit, else `otherwise`: (N, 2)."""
    # Chosen without a branch, so that no result has to be read back from the device.
    fits = fits.all(2)
    first = fits.float().argmax(1)
    chosen = sizes[torch.arange(len(sizes), device=sizes.device), first]
    return torch.where(fits.any(1, keepdim=True), chosen, otherwise)


def resized_crop(images: Tensor, corner: Tensor, size: Tensor, side: int, flipped: Tensor) -> Tensor:
    """Crop a box out of each image and resize it bilinearly, without antialiasing.

    Args:
        images: (N, C, H, W), any real dtype.
        corner: (N, 2) top left as (x, y), as fractions of the side.
        size: (N, 2) width and height, as fractions of the side.
        side: Side of the result in pixels.
        flipped: (N,) bool, flip horizontally.

    Returns:
        (N, C, side, side) float32.
    """
    steps = (torch.arange(side, device=images.device) + 0.5) / side  # centers of the new pixels, in 0..1
    across = torch.where(flipped[:, None], 1.0 - steps, steps)
    x = corner[:, :1] + size[:, :1] * across  # (N, side)
    y = corner[:, 1:] + size[:, 1:] * steps
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)  # (N, side, side, 2)
    # -1 and 1 are the edges of the image, not the centers of its outer pixels. A box at the edge of the image reaches
    # half a pixel past those centers: `border` repeats them there.
    return functional.grid_sample(
        images.float(), 2.0 * grid - 1.0, mode="bilinear", padding_mode="border", align_corners=False
    )


@dataclass(frozen=True)
class Erasing:
    """Erase a rectangle of some images. Expects normalised images, in which 0 is the mean colour.

    Source: Zhong et al. 2017, as in torchvision.transforms.RandomErasing with value=0.

    Args:
        probability: Probability that an image is erased.
        scale: Minimum and maximum fraction of the area.
        ratio: Minimum and maximum height over width, drawn log-uniformly.
    """

    probability: float
    scale: Sequence[float]
    ratio: Sequence[float]

    def __call__(self, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Map (N, C, S, S) float to the same shape."""
        corner, size = self.boxes(indices, x.shape[-1], seed, epoch)
        return x.masked_fill(inside(corner, corner + size, x.shape[-1]), 0.0)

    def boxes(self, indices: Tensor, side: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw a rectangle for each image.

        Args:
            indices: (N,) int64 positions in the split.
            side: Side of the images in pixels.
            seed: Seed of the run.
            epoch: Finished epochs.

        Returns:
            Top left corner and size, (N, 2) int64 as (down, across) in pixels; size 0 where nothing is erased.
        """
        draws = uniforms(indices, 2 * ATTEMPTS + 3, "erasing", seed, epoch)
        sizes = (side * random_shapes(draws, self.scale, self.ratio)).round()
        size = first_that_fits(sizes, sizes < side, otherwise=0.0)
        size = torch.where(draws[:, -1:] < self.probability, size, 0.0)
        corner = (draws[:, -3:-1] * (side - size + 1)).long()
        return corner, size.long()


def inside(start: Tensor, end: Tensor, side: int) -> Tensor:
    """Return the mask of a rectangle in each image.

    Args:
        start: (N, 2) int64 first row and column.
        end: (N, 2) int64 last row and column, exclusive.
        side: Side of the images in pixels.

    Returns:
        (N, 1, side, side) bool.
    """
    steps = torch.arange(side, device=start.device)
    rows, columns = ((steps >= start[:, i, None]) & (steps < end[:, i, None]) for i in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[:, None]
