"""What each figure contains, and how it is drawn as a PNG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from alexnet_exp.report.figures import INK, MUTED, TRAIN, VAL, page, plain, show
from alexnet_exp.report.pictures import filter_grid

COLUMNS = 4


def draw_guesses(guesses: list[Guess], path: Path) -> None:
    """Draw images with their top-5 bars, the true class highlighted, as in figure 4 (left) of the paper."""
    columns = min(COLUMNS, len(guesses))
    rows, bars = math.ceil(len(guesses) / columns), max(len(guess.bars) for guess in guesses)
    with page(path, max(2.3 * columns, 2.6), (2.4 + 0.21 * bars) * rows) as figure:
        grid = figure.add_gridspec(rows, columns)
        for i, guess in enumerate(guesses):
            _draw_guess(figure, grid[i // columns, i % columns], guess, bars)


def _draw_guess(figure: Figure, place: SubplotSpec, guess: Guess, bars: int) -> None:
    inner = place.subgridspec(2, 1, height_ratios=[1.9, 0.21 * bars], hspace=0.02)
    above, below = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    show(above, guess.picture.image)
    # parse_math=False: matplotlib would take a class called $x$ for a formula.
    above.set_title(plain(guess.picture.label, 24), fontsize=9, color=INK, parse_math=False)
    for height, (name, p) in enumerate(guess.bars):
        colour = VAL if name == guess.picture.label else TRAIN
        below.barh(height, p, height=0.86, color=colour, alpha=0.4)
        text = f"{plain(name, 22)}  {p:.0%}"
        below.text(0.02, height, text, va="center", fontsize=8, color=INK, parse_math=False)
    below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))  # top down, with room for all bars
    below.axis("off")


def draw_neighbours(rows: list[Neighbours], path: Path) -> None:
    """Draw each image and its nearest training images in a row, as in figure 4 (right) of the paper."""
    columns = max(len(row.found) for row in rows)
    with page(path, 1.35 * (1 + columns), 1.55 * len(rows)) as figure:
        for line, row in zip(_cells(figure, len(rows), [1.15] + [1] * columns), rows, strict=True):
            show(line[0], row.picture.image)
            _title(line[0], row.picture.label, INK, "bold")
            for cell, (picture, distance) in zip(line[1:], row.found, strict=False):
                show(cell, picture.image)
                text = f"{plain(picture.label, 12)} · {three_digits(distance)}"
                _title(cell, text, TRAIN if picture.label == row.picture.label else VAL)


def _cells(figure: Figure, rows: int, widths: Sequence[float]) -> np.ndarray:
    """Return rows of axes without frames; those that stay empty then show nothing."""
    axes: np.ndarray = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for cell in axes.ravel():
        cell.axis("off")
    return axes


def _title(axes: Axes, text: str, colour: str, weight: str = "normal") -> None:
    axes.set_title(plain(text, 24), fontsize=7.5, color=colour, fontweight=weight, parse_math=False, pad=3)


def draw_mistakes(classes: list[ClassMistakes], path: Path) -> None:
    """Draw the most confident mistakes, one row per class."""
    columns = max(len(each.guesses) for each in classes)
    with page(path, 1.1 + 1.4 * columns, 1.6 * len(classes)) as figure:
        for line, each in zip(_cells(figure, len(classes), [0.75] + [1] * columns), classes, strict=True):
            text = f"{plain(each.name, 16)}\n{each.wrong:,} of {each.total:,}\nwrong"
            line[0].text(0.0, 0.5, text, va="center", fontsize=9, color=INK, parse_math=False)
            for cell, guess in zip(line[1:], each.guesses, strict=False):
                show(cell, guess.picture.image)
                name, p = guess.bars[0]
                _title(cell, f"{plain(name, 16)} {p:.0%}", VAL)


def draw_heats(heats: list[Heat], path: Path) -> None:
    """Draw each image next to its heat map."""
    columns = min(COLUMNS, len(heats))
    rows = math.ceil(len(heats) / columns)
    with page(path, 3.0 * columns, 1.78 * rows) as figure:
        axes = _cells(figure, rows, [1] * (2 * columns))
        for i, heat in enumerate(heats):
            left, right = axes[i // columns, 2 * (i % columns) :][:2]  # two cells per image
            show(left, heat.picture.image)
            show(right, overlay(heat))
            _title(left, heat.picture.label, MUTED)
            _title(right, f"{plain(heat.said, 16)} {heat.probability:.0%}", INK)


def overlay(heat: Heat) -> np.ndarray:
    """Blend a heat map with its image in grey; (H, W, 3) uint8, as large as the heat map."""
    from matplotlib import colormaps

    factor = len(heat.heat) // len(heat.picture.image)
    grey = heat.picture.image.mean(-1, keepdims=True).repeat(factor, axis=0).repeat(factor, axis=1) / 255
    colours = colormaps["inferno"](heat.heat)[..., :3]
    mixed = grey * 0.45 + 0.55 * colours  # the image stays recognisable under the brightest heat
    return np.round(255 * mixed.clip(0, 1)).astype(np.uint8)


TILES = 16  # maps per row
TILE = 48  # minimum side of a drawn map in pixels


def draw_filters(towers: list[np.ndarray], path: Path) -> None:
    """Draw the filters of the first convolution, as in figure 3 of the AlexNet paper.

    Args:
        towers: (out, in, kH, kW) with `in` 1 or 3, for each tower of the network.
        path: PNG to write.
    """
    grids = [filter_grid(weight) for weight in towers]
    width = max(grid.shape[1] for grid in grids) / 90  # inches, at 90 pixels per inch
    heights = [grid.shape[0] / 90 + 0.3 for grid in grids]
    with page(path, width + 0.3, sum(heights)) as figure:
        cells: list[Axes] = list(figure.subplots(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0])
        for i, (cell, grid) in enumerate(zip(cells, grids, strict=True), start=1):
            show(cell, grid)
            if len(grids) > 1:
                cell.set_title(f"Tower {i}", loc="left", fontsize=9, color=MUTED, pad=4)


def draw_maps(picture: Picture, layers: list[Maps], path: Path) -> None:
    """Draw an image and its activation maps, layer by layer."""
    sheets = [sheet(layer.maps) for layer in layers]
    heights = [2.0] + [9.6 * each.shape[0] / each.shape[1] + 0.35 for each in sheets]  # inches
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


def sheet(maps: np.ndarray) -> np.ndarray:
    """Arrange maps in rows of sixteen, on a common scale from 0 to almost the largest value.

    Args:
        maps: (n, h, w).

    Returns:
        (H, W) in 0..1, NaN between the maps.
    """
    count, height, width = maps.shape
    # Not the maximum: a single extreme value would darken everything else.
    high = float(np.quantile(maps, 0.998)) or float(maps.max())  # the quantile of sparse maps is 0
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
    """Draw one small histogram per layer, with counts on a logarithmic scale."""
    columns = min(4, len(histograms))
    rows = math.ceil(len(histograms) / columns)
    with page(path, 2.6 * columns, 1.75 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for cell in axes[len(histograms) :]:
            cell.axis("off")
        for cell, each in zip(axes, histograms, strict=False):
            cell.stairs(each.counts, each.edges, fill=True, color=TRAIN, alpha=0.75)
            cell.set_yscale("symlog", linthresh=1)  # linear below 1, so that empty bins can be drawn
            cell.set_title(each.name, loc="left", fontsize=8.5, parse_math=False, pad=4)
            cell.set_xlabel(each.note, fontsize=7)
            cell.tick_params(which="both", length=0, labelsize=7)
            cell.set_yticks([], minor=False)
            cell.locator_params(axis="x", nbins=5)
            cell.spines[["top", "right", "left"]].set_visible(False)


@dataclass
class Picture:
    """An image, uint8 (H, W, 1) or (H, W, 3), with its true class and its name in the data set."""

    image: np.ndarray
    label: str
    name: str


@dataclass
class Guess:
    """An image and the most probable classes with their probabilities, the best first."""

    picture: Picture
    bars: list[tuple[str, float]]

    @property
    def right(self) -> bool:
        return self.bars[0][0] == self.picture.label


@dataclass
class Neighbours:
    """An image and its nearest neighbours with their Euclidean distances, the nearest first."""

    picture: Picture
    found: list[tuple[Picture, float]]


def three_digits(distance: float) -> str:
    """Format 0.05 as '0.0500' and 1 as '1.00', so that distances side by side are easy to compare."""
    return f"{distance:#.3g}".rstrip(".")


@dataclass
class Heat:
    """The evidence for a class in an image.

    Args:
        picture: The image as the network saw it.
        heat: (f * H, f * W) float in 0..1, for an integer factor f.
        said: The predicted class.
        probability: Its probability.
    """

    picture: Picture
    heat: np.ndarray
    said: str
    probability: float


@dataclass
class ClassMistakes:
    """The most confident mistakes of one class: `wrong` of its `total` images were misclassified."""

    name: str
    wrong: int
    total: int
    guesses: list[Guess]


@dataclass
class Maps:
    """Activation maps of one layer for one image: the strongest of `total`, (n, h, w) float, in channel order."""

    layer: str
    maps: np.ndarray
    total: int


@dataclass
class Histogram:
    """The values of a layer: counts (bins,), edges (bins + 1,), and a line of statistics."""

    name: str
    counts: np.ndarray
    edges: np.ndarray
    note: str


def histogram(name: str, values: np.ndarray, note: str = "", bins: int = 60) -> Histogram:
    """Count the finite values in equal bins between their minimum and maximum."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return Histogram(name, np.zeros(bins), np.linspace(0, 1, bins + 1), "no finite value")
    counts, edges = np.histogram(values, bins=bins)
    return Histogram(name, counts, edges, note)
