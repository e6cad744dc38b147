"""Turn arrays into pictures: filter grids, confusion colours, thumbnails, PNG and data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from alexnet_exp.tracking.confusion import row_shares

MAX_FILTERS = 256
MAX_CELLS = 200  # in a row of a confusion picture
HIT = np.array([31, 94, 168], dtype=np.float64)
MISS = np.array([204, 88, 20], dtype=np.float64)


def is_picture_of_filters(weight: np.ndarray | None) -> bool:
    """Return whether a first layer's weight (out, in, kH, kW) can be shown: 1 or 3 input channels, finite."""
    return (
        weight is not None
        and weight.ndim == 4
        and weight.shape[0] > 0
        and weight.shape[1] in (1, 3)
        and bool(np.isfinite(weight).all())
    )


def filter_grid(weight: np.ndarray) -> np.ndarray:
    """Lay the filters of a first layer out as a grid, each stretched from its own minimum to its maximum.

    Args:
        weight: (out, in, kH, kW) with in 1 or 3; at most the first 256 filters are shown.

    Returns:
        (H, W, 4) uint8: the filters enlarged by whole pixels, transparent between them.
    """
    tiles = _normalised_tiles(weight[:MAX_FILTERS])  # (n, kH, kW, 3)
    scale = max(1, round(44 / tiles.shape[2]))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = tiles.shape[:3]
    columns = _columns(count)
    gap = 4
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width, :3] = tile
        grid[top : top + height, left : left + width, 3] = 255
    return grid


def _columns(count: int) -> int:
    """Return the length of a row: full rows if possible, in a grid about twice as wide as high."""
    wanted = math.sqrt(2 * count)
    full = [columns for columns in range(1, count + 1) if count % columns == 0 and 0.7 < columns / wanted < 2]
    return min(full, key=lambda columns: abs(columns - wanted), default=min(count, math.ceil(wanted)))


def _normalised_tiles(weight: np.ndarray) -> np.ndarray:
    tiles = np.asarray(weight, dtype=np.float64).transpose(0, 2, 3, 1)
    low = tiles.min(axis=(1, 2, 3), keepdims=True)
    span = tiles.max(axis=(1, 2, 3), keepdims=True) - low
    flat = span == 0
    tiles = np.where(flat, 0.5, (tiles - low) / np.where(flat, 1.0, span))
    return np.broadcast_to(np.round(255 * tiles).astype(np.uint8), (*tiles.shape[:3], 3))


def confusion_shades(confusion: np.ndarray) -> np.ndarray:
    """Return (K, K) in 0..1: how strong each cell is drawn.

    Hits by their share of the row; mistakes by the square root of theirs, against the most frequent
    mistake, since on the same scale as the hits they could not be seen.
    """
    shares = row_shares(confusion)
    diagonal: np.ndarray = np.eye(len(confusion), dtype=bool)
    worst = shares[~diagonal].max(initial=0.0)
    mistakes = np.sqrt(shares / worst) if worst > 0 else np.zeros_like(shares)
    return np.where(diagonal, shares, mistakes)


def needs_white_text(shade: float, hit: bool) -> bool:
    """Return whether white is easier to read than black on a confusion cell of this shade."""
    return shade > (0.8 if hit else 0.93)


def grouping(num_classes: int) -> int:
    """Return how many classes share a row of the picture: a lone cell among a million would not be seen."""
    return math.ceil(num_classes / MAX_CELLS)


def confusion_image(confusion: np.ndarray) -> np.ndarray:
    """Draw hits in blue and mistakes in orange on white, one pixel a cell.

    Args:
        confusion: (K, K) counts; cells that share a pixel give it the strongest of their shades.

    Returns:
        (N, N, 3) uint8 with N = K, or the number of groups of classes.
    """
    shades = _strongest(confusion_shades(confusion), grouping(len(confusion)))[..., None]
    colours = np.where(np.eye(len(shades), dtype=bool)[..., None], HIT, MISS)
    return np.round(255 + shades * (colours - 255)).astype(np.uint8)


def _strongest(shades: np.ndarray, group: int) -> np.ndarray:
    padded = np.pad(shades, (0, -len(shades) % group))
    count = len(padded) // group
    return padded.reshape(count, group, count, group).max(axis=(1, 3))


def to_pil(image: np.ndarray) -> Image.Image:
    """Return an image for (H, W, 1), (H, W, 3) or (H, W, 4) uint8."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def data_uri(image: np.ndarray, max_side: int = 224) -> str:
    """Return an image (H, W, C) uint8 as a data URI: small ones as exact PNG, large ones as thumbnail."""
    picture = to_pil(image)
    if max(picture.size) <= 96 or picture.mode == "RGBA":
        return encode(picture, "PNG")
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return encode(picture, "JPEG")


def encode(picture: Image.Image, format: str) -> str:
    """Return a picture as a data URI in the given format."""
    buffer = io.BytesIO()
    picture.save(buffer, format=format, quality=85, optimize=True)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
