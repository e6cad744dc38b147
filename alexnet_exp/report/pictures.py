"""Turn arrays into images: filter grids, confusion matrices, thumbnails, data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from alexnet_exp.tracking.confusion import row_shares

MAX_FILTERS = 256
MAX_CELLS = 200  # per row of a drawn confusion matrix
HIT = np.array([31, 94, 168], dtype=np.float64)
MISS = np.array([204, 88, 20], dtype=np.float64)


def is_picture_of_filters(weight: np.ndarray | None) -> bool:
    """Return whether a first layer's weight (out, in, kH, kW) can be drawn: 1 or 3 input channels, finite."""
    return (
        weight is not None
        and weight.ndim == 4
        and weight.shape[0] > 0
        and weight.shape[1] in (1, 3)
        and bool(np.isfinite(weight).all())
    )


def filter_grid(weight: np.ndarray) -> np.ndarray:
    """Arrange the filters of a first layer in a grid, each scaled from its own minimum to its maximum.

    Args:
        weight: (out, in, kH, kW) with `in` 1 or 3; only the first 256 filters are drawn.

    Returns:
        (H, W, 4) uint8: filters enlarged by an integer factor, with transparent gaps.
    """
    tiles = _normalised_tiles(weight[:MAX_FILTERS])  # (n, kH, kW, 3)
    scale = max(1, round(44 / tiles.shape[2]))  # filters about 44 pixels wide
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = tiles.shape[:3]
    columns, gap = _columns(count), 4
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width, :3] = tile
        grid[top : top + height, left : left + width, 3] = 255
    return grid


def _columns(count: int) -> int:
    """Return the number of columns: full rows if possible, in a grid about twice as wide as high."""
    wanted = math.sqrt(2 * count)  # a divisor of `count` near it leaves no gap in the last row
    full = [columns for columns in range(1, count + 1) if count % columns == 0 and 0.7 < columns / wanted < 2]
    return min(full, key=lambda columns: abs(columns - wanted), default=min(count, math.ceil(wanted)))


def _normalised_tiles(weight: np.ndarray) -> np.ndarray:
    tiles = np.asarray(weight, dtype=np.float64).transpose(0, 2, 3, 1)
    low = tiles.min(axis=(1, 2, 3), keepdims=True)
    span = tiles.max(axis=(1, 2, 3), keepdims=True) - low
    flat = span == 0  # a constant filter becomes mid grey
    tiles = np.where(flat, 0.5, (tiles - low) / np.where(flat, 1.0, span))
    return np.broadcast_to(np.round(255 * tiles).astype(np.uint8), (*tiles.shape[:3], 3))


def confusion_shades(confusion: np.ndarray) -> np.ndarray:
    """Return the colour intensity of each cell, (K, K) in 0..1.

    Hits by their share of the row; mistakes by the square root of their share relative to the most frequent
    mistake, since on the scale of the hits they would be invisible.
    """
    shares = row_shares(confusion)
    diagonal: np.ndarray = np.eye(len(confusion), dtype=bool)
    worst = shares[~diagonal].max(initial=0.0)
    mistakes = np.sqrt(shares / worst) if worst > 0 else np.zeros_like(shares)
    return np.where(diagonal, shares, mistakes)


def needs_white_text(shade: float, hit: bool) -> bool:
    """Return whether white text reads better than black on a confusion cell of this shade."""
    return shade > (0.8 if hit else 0.93)


def grouping(num_classes: int) -> int:
    """Return the number of classes per row of a drawn matrix; a single cell among a million would be invisible."""
    return math.ceil(num_classes / MAX_CELLS)


def confusion_image(confusion: np.ndarray) -> np.ndarray:
    """Draw a confusion matrix, hits in blue and mistakes in orange on white, one pixel per cell.

    Args:
        confusion: (K, K) counts; cells that share a pixel show the strongest of their shades.

    Returns:
        (N, N, 3) uint8, where N is K or the number of groups of classes.
    """
    group = grouping(len(confusion))
    padded = np.pad(confusion_shades(confusion), (0, -len(confusion) % group))
    count = len(padded) // group
    # The maximum, not the mean: a rare mistake must not fade away.
    shades = padded.reshape(count, group, count, group).max(axis=(1, 3))[..., None]
    colours = np.where(np.eye(count, dtype=bool)[..., None], HIT, MISS)
    return np.round(255 + shades * (colours - 255)).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    """Convert (H, W, 1), (H, W, 3) or (H, W, 4) uint8 to a PIL image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def data_uri(image: np.ndarray, max_side: int = 224) -> str:
    """Convert (H, W, C) uint8 to a data URI: small images as lossless PNG, large ones as JPEG thumbnails."""
    picture = to_pil(image)
    if max(picture.size) <= 96 or picture.mode == "RGBA":
        return encode(picture, "PNG")
    # JPEG only for large images: its artefacts would hide the pixels of small ones.
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return encode(picture, "JPEG")


def encode(picture: Image.Image, format: str) -> str:
    """Encode an image as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format=format, quality=85, optimize=True)  # PNG ignores quality
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
