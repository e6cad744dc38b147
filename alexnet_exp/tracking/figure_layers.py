"""Figures of layers: filters of the first convolution, activation maps, histograms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alexnet_exp.tracking.figure_canvas import page, show
from alexnet_exp.tracking.figure_data import Histogram, Maps, Picture
from alexnet_exp.tracking.figures import MUTED, TRAIN, plain
from alexnet_exp.tracking.pictures import filter_grid

TILES = 16  # maps in a row
TILE = 48  # pixels of a map's side, at least


def draw_filters(towers: list[np.ndarray], path: Path) -> None:
    """Draw the filters of the first convolution, as figure 3 of the AlexNet paper does.

    Args:
        towers: (out, in, kH, kW) with in 1 or 3, for each of the towers that the network is built of.
        path: The PNG to write.
    """
    grids = [filter_grid(weight) for weight in towers]
    width = max(grid.shape[1] for grid in grids) / 90
    heights = [grid.shape[0] / 90 + 0.3 for grid in grids]
    with page(path, width + 0.3, sum(heights)) as figure:
        cells: list[Axes] = list(figure.subplots(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0])
        for i, (cell, grid) in enumerate(zip(cells, grids, strict=True), start=1):
            show(cell, grid)
            if len(grids) > 1:
                cell.set_title(f"Tower {i}", loc="left", fontsize=9, color=MUTED, pad=4)


def draw_maps(picture: Picture, layers: list[Maps], path: Path) -> None:
    """Draw an image and, layer by layer, what it becomes."""
    sheets = [sheet(layer.maps) for layer in layers]
    heights = [2.0] + [9.6 * len_ratio(each) + 0.35 for each in sheets]
    with page(path, 9.8, sum(heights)) as figure:
        axes: list[Axes] = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        show(axes[0], picture.image)
        axes[0].set_title(plain(picture.label, 60), fontsize=9, parse_math=False)
        for cell, layer, image in zip(axes[1:], layers, sheets, strict=True):
            height, width = layer.maps.shape[1:]
            cell.imshow(image, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            cell.axis("off")
            few = "" if len(layer.maps) == layer.total else f", the {len(layer.maps)} strongest"
            text = f"{layer.layer}: {layer.total} maps of {height} × {width}{few}"
            cell.set_title(text, loc="left", fontsize=9, color=MUTED, pad=4)


def len_ratio(image: np.ndarray) -> float:
    """Return height over width."""
    return image.shape[0] / image.shape[1]


def sheet(maps: np.ndarray) -> np.ndarray:
    """Lay maps out in rows of sixteen, on one scale from 0 to almost the largest value.

    Args:
        maps: (n, h, w).

    Returns:
        (H, W) in 0..1, NaN between the maps.
    """
    count, height, width = maps.shape
    high = float(np.quantile(maps, 0.998)) or float(maps.max())
    scaled = (np.maximum(maps, 0) / high).clip(0, 1) if high > 0 else np.zeros_like(maps)
    factor = max(1, round(TILE / max(height, width)))
    scaled = scaled.repeat(factor, axis=1).repeat(factor, axis=2)
    tile_h, tile_w, gap = scaled.shape[1], scaled.shape[2], max(2, height * factor // 16)
    rows = math.ceil(count / TILES)
    laid = np.full((rows * (tile_h + gap) - gap, TILES * (tile_w + gap) - gap), np.nan)
    for i, tile in enumerate(scaled):
        top, left = (i // TILES) * (tile_h + gap), (i % TILES) * (tile_w + gap)
        laid[top : top + tile_h, left : left + tile_w] = tile
    return laid


def draw_histograms(histograms: list[Histogram], path: Path) -> None:
    """Draw one small histogram for each layer, counts on a logarithmic scale."""
    columns = min(4, len(histograms))
    rows = math.ceil(len(histograms) / columns)
    with page(path, 2.6 * columns, 1.75 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for cell in axes[len(histograms) :]:
            cell.axis("off")
        for cell, each in zip(axes, histograms, strict=False):
            cell.stairs(each.counts, each.edges, fill=True, color=TRAIN, alpha=0.75)
            cell.set_yscale("symlog", linthresh=1)
            cell.set_title(each.name, loc="left", fontsize=8.5, parse_math=False, pad=4)
            cell.set_xlabel(each.note, fontsize=7)
            cell.tick_params(which="both", length=0, labelsize=7)
            cell.set_yticks([], minor=False)
            cell.locator_params(axis="x", nbins=5)
            cell.spines[["top", "right", "left"]].set_visible(False)
