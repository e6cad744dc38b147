"""A network with its preprocessing, in operations that every runtime has.

The resize and center crop of `data.decode.stored` are done as two matrix products: height and width stay dynamic in the
exported graph, and no runtime uses its own resize. The products repeat torch's arithmetic for uint8 exactly: 15-bit
weights, and pixels rounded after each of the two directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alexnet_exp.data.augment.pipeline import Pipeline

_LONGEST = 16  # longest side as a multiple of the shorter one, as in `stored`


class FromImages(nn.Module):
    """Map uint8 images (N, H, W, 3) of any size to probabilities (N, K).

    Args:
        model: Maps (N, C, image_size, image_size) float32 to logits (N, K).
        pipeline: The checkpoint's preprocessing.
        stored_size: Side of the square after the first resize, in pixels.
        channels: 1 or 3.
        fit: How an image becomes this square; see `stored`.
    """

    def __init__(
        self, model: nn.Module, pipeline: Pipeline, stored_size: int, channels: int, fit: str = "crop"
    ) -> None:
        super().__init__()
        self.model = model
        self.pipeline = pipeline
        self.stored_size, self.channels, self.fit = stored_size, channels, fit

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W)
        if self.channels == 1:
            x = _luma(x)
        # Sizes as sums: x.shape would be Python integers, frozen in the exported graph.
        height, width = (torch.ones_like(x[0, 0]).sum(axis)[0] for axis in (0, 1))
        other = torch.maximum(height, width) if self.fit == "pad" else torch.minimum(height, width)
        across, down = (
            self._weights(side, other, line) for side, line in ((width, x[0, 0, 0]), (height, x[0, 0, :, 0]))
        )
        x = _round_pixels(x.double() @ across.T)  # (N, C, H, S); exact sums need more bits than float32 has
        x = _round_pixels(down @ x)  # (N, C, S, S)
        return self.model(self.pipeline.evaluate(x.float())).softmax(1)

    def _weights(self, side: Tensor, other: Tensor, pixels: Tensor) -> Tensor:
        """Return the weights of an antialiased bilinear resize with crop or padding along one axis, (S, side) float64.

        Args:
            side: Length of the axis in pixels.
            other: Length of the axis that becomes S: the shorter one, or the longer one with padding.
            pixels: One line of the image along the axis, (side,).
        """
        size = self.stored_size
        used = side.double()
        if self.fit == "crop":
            used = torch.minimum(side, _LONGEST * other).double()
        resized = torch.full_like(used, size)
        if self.fit != "squash":
            resized = torch.floor(size * used / other.double()).clamp(min=1.0)
        scale = used / resized
        # torch.round rounds halves to even, as Python's round does in `stored`.
        # First pixel of the crop, after resizing; negative with padding.
        first = torch.round((resized - size) / 2)
        offset = torch.round((side.double() - used) / 2)
        steps = torch.arange(-1, size, dtype=torch.float64) + first
        # (1 + S,): with a row for the image's edge, whose weight is the largest and sets the 15-bit scale.
        steps = torch.cat([torch.zeros_like(steps[:1]), steps[1:]])
        centres = (steps + 0.5) * scale
        places = torch.ones_like(pixels, dtype=torch.float64).cumsum(0) - 0.5 - offset  # (side,)
        distances = (places - centres[:, None]).abs() / scale.clamp(min=1.0)
        inside = (places > 0) & (places < used)
        weights = (1.0 - distances).clamp(min=0.0) * inside
        if self.fit == "pad":
            weights = weights * ((steps >= 0) & (steps < resized))[:, None]
        return _in_15_bits(weights / weights.sum(1, keepdim=True).clamp(min=1e-9))[1:]


def _in_15_bits(weights: Tensor) -> Tensor:
    """Round weights to fixed point, with the finest scale at which the largest fits in 15 bits."""
    powers = 2.0 ** torch.arange(1, 23, dtype=torch.float64)
    fitting = (torch.floor(0.5 + weights.max() * powers) < 2**15).sum()
    unit = 2.0 ** fitting.double()
    return torch.floor(0.5 + weights * unit) / unit


def _round_pixels(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp(0.0, 255.0)


def _luma(x: Tensor) -> Tensor:
    """Return the ITU-R 601 luma as `data.decode.luma`; exact in float32, since the sums stay below 2^24."""
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:3]
    return torch.floor((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536)
