"""Image operations on uint8 batches with a separate strength per image.

torchvision's functions take one strength per batch; these give the same pixels, up to one grey level of rounding.
Sums over pixels are integer sums: in floats their rounding, and so the result, would depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.randomness import constant

# (N, C, H, W) uint8 images and (N,) float32 strengths -> (N, C, H, W) uint8.
Operation = Callable[[Tensor, Tensor], Tensor]


def apply_chosen(
    images: Tensor, chosen: Tensor, strengths: Tensor, operations: Sequence[Operation]
) -> Tensor:
    """Apply S operations in sequence to each image, as chosen per image.

    Images with the same operation are processed together.

    Args:
        images: (N, C, H, W) uint8; not modified.
        chosen: (N, S) int64, positions in `operations`.
        strengths: (N, S) float32.
        operations: The operations to choose from.

    Returns:
        (N, C, H, W) uint8.
    """
    # A copy, because without a crop these are still the images of the caller.
    images = images.clone(memory_format=torch.contiguous_format)
    known = torch.arange(len(operations), device=images.device)
    counts = (chosen[..., None] == known).sum(0).tolist()  # (S, operations): the only device sync
    # Sorted and split by those counts: indexing with a mask per operation would sync each time.
    order = chosen.argsort(dim=0, stable=True)
    for step, sizes in enumerate(counts):
        for operation, group in zip(operations, order[:, step].split(sizes), strict=True):
            if len(group):
                changed = operation(images[group], strengths[group, step])
                images.index_copy_(0, group, changed)
    return images


def identity(images: Tensor, strength: Tensor) -> Tensor:
    return images


# ------------------------------------------------------------------------------------------------ colour


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros((), device=images.device), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    total = grey.sum((1, 2, 3), keepdim=True, dtype=torch.int64)
    return _blend(total.float() / grey[0].numel(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by a 3x3 kernel of ones around a five; border pixels are unchanged."""
    x = images.to(torch.int16)  # sums reach 13 * 255, times 2
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (2 * sums + 13) // 26  # sums / 13, rounded to nearest
    return _blend(smooth, images, factor)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue.

    Args:
        images: (N, C, H, W) uint8.
        shift: (N,) in turns; 1 is a full turn.

    Returns:
        (N, C, H, W) uint8; images with one channel unchanged.
    """
    if images.shape[1] == 1:
        return images
    x = images.float() / 255.0
    red, green, blue = x.unbind(1)
    most = x.amax(1)
    chroma = most - x.amin(1)
    span = torch.where(chroma == 0, 1.0, chroma)  # grey has no hue: avoids 0 / 0
    angle = torch.where(most == green, 2.0 + (blue - red) / span, 4.0 + (red - green) / span)
    # Red comes last, so it wins ties, then green: torchvision's order.
    angle = torch.where(most == red, (green - blue) / span, angle) + 6.0 * shift[:, None, None]  # in sixths
    # HSV back to RGB without branches: each channel is a trapezoid over the hue, shifted by a third of a turn.
    starts = constant((5.0, 3.0, 1.0), images.device).view(1, 3, 1, 1)
    k = (starts + angle[:, None]) % 6.0  # (N, 3, H, W)
    turned = most[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return (turned * 255.999).to(torch.uint8)  # as torchvision: equal intervals for all 256 levels


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` highest of the 8 bits."""
    dropped = 2 ** (8 - bits.round().to(torch.int16))  # int16: 2 ** 8 does not fit in uint8
    return images & (256 - dropped).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels of at least `threshold` (0..255)."""
    return torch.where(images >= threshold[:, None, None, None], 255 - images, images)


def auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as library  # takes a second to import

    return library.autocontrast(images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as library

    return library.equalize(images)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate from `other` (factor 0) to the images (factor 1), or extrapolate beyond them."""
    mixed = other + factor[:, None, None, None] * (images - other)
    return mixed.clamp_(0.0, 255.0).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Return luma as whole numbers, (N, 1, H, W) float32; images with one channel unchanged."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()  # torchvision's coefficients


# ------------------------------------------------------------------------------------------------ geometry


def shear_x(images: Tensor, slope: Tensor) -> Tensor:
    x, y = _centers(images)
    return _sample(images, x + slope[:, None, None] * y, y)


def shear_y(images: Tensor, slope: Tensor) -> Tensor:
    x, y = _centers(images)
    return _sample(images, x, y + slope[:, None, None] * x)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    x, y = _centers(images)
    return _sample(images, x - pixels.trunc()[:, None, None], y)  # whole pixels, as torchvision's int()


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    x, y = _centers(images)
    return _sample(images, x, y - pixels.trunc()[:, None, None])


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the center."""
    across, down = images.shape[3] / 2, images.shape[2] / 2
    x, y = _centers(images)
    angle = torch.deg2rad(degrees)[:, None, None]
    cos, sin, x, y = angle.cos(), angle.sin(), x - across, y - down
    # For an output pixel, its source: the inverse of the rotation.
    return _sample(images, cos * x - sin * y + across, sin * x + cos * y + down)


def _centers(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel centers from the top left corner: x (1, 1, W) and y (1, H, 1)."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    return x.view(1, 1, width), y.view(1, height, 1)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample the nearest pixel at (x, y) for each output pixel, black outside.

    Args:
        images: (N, C, H, W) uint8.
        x: Pixels from the left edge; broadcasts to (N, H, W).
        y: Pixels from the top, likewise.
    """
    count, _, height, width = images.shape
    # grid_sample's coordinates run from -1 to 1, edge to edge.
    x, y = (place.expand(count, height, width) for place in (x * (2 / width) - 1, y * (2 / height) - 1))
    grid = torch.stack([x, y], dim=3)
    # grid_sample takes no uint8; sampling the nearest pixel keeps the values exact.
    nearest = functional.grid_sample(
        images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return nearest.to(torch.uint8)
