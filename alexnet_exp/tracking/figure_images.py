"""Figures made of images: top-5 bars, neighbours, mistakes by class, what speaks for a class."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from alexnet_exp.tracking.figure_canvas import page, show
from alexnet_exp.tracking.figure_data import ClassMistakes, Guess, Heat, Neighbours, three_digits
from alexnet_exp.tracking.figures import INK, MUTED, TRAIN, VAL, plain

COLUMNS = 4


def draw_guesses(guesses: list[Guess], path: Path) -> None:
    """Draw images over their true class and five bars, the true class in another colour: the paper's figure 4, left."""
    columns = min(COLUMNS, len(guesses))
    rows, bars = math.ceil(len(guesses) / columns), max(len(guess.bars) for guess in guesses)
    with page(path, max(2.3 * columns, 2.6), (2.4 + 0.21 * bars) * rows) as figure:
        grid = figure.add_gridspec(rows, columns)
        for i, guess in enumerate(guesses):
            _guess(figure, grid[i // columns, i % columns], guess, bars)


def _guess(figure: Figure, place: SubplotSpec, guess: Guess, bars: int) -> None:
    inner = place.subgridspec(2, 1, height_ratios=[1.9, 0.21 * bars], hspace=0.02)
    above, below = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    show(above, guess.picture.image)
    above.set_title(plain(guess.picture.label, 24), fontsize=9, color=INK, parse_math=False)
    for height, (name, p) in enumerate(guess.bars):
        colour = VAL if name == guess.picture.label else TRAIN
        below.barh(height, p, height=0.86, color=colour, alpha=0.4)
        text = f"{plain(name, 22)}  {p:.0%}"
        below.text(0.02, height, text, va="center", fontsize=8, color=INK, parse_math=False)
    below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))
    below.axis("off")


def draw_neighbours(rows: list[Neighbours], path: Path) -> None:
    """Draw each image with the training images nearest to it in its row: the paper's figure 4, right."""
    columns = 1 + max(len(row.found) for row in rows)
    with page(path, 1.35 * columns, 1.55 * len(rows)) as figure:
        axes = figure.subplots(len(rows), columns, squeeze=False, width_ratios=[1.15] + [1] * (columns - 1))
        for line, row in zip(axes, rows, strict=True):
            for cell in line:
                cell.axis("off")
            show(line[0], row.picture.image)
            _title(line[0], row.picture.label, INK, "bold")
            for cell, (picture, distance) in zip(line[1:], row.found, strict=False):
                show(cell, picture.image)
                text = f"{plain(picture.label, 12)} · {three_digits(distance)}"
                _title(cell, text, TRAIN if picture.label == row.picture.label else VAL)


def _title(axes: Axes, text: str, colour: str, weight: str = "normal") -> None:
    axes.set_title(plain(text, 24), fontsize=7.5, color=colour, fontweight=weight, parse_math=False, pad=3)


def draw_mistakes(classes: list[ClassMistakes], path: Path) -> None:
    """Draw the most confident mistakes of each class in a row."""
    columns = max(len(each.guesses) for each in classes)
    with page(path, 1.1 + 1.4 * columns, 1.6 * len(classes)) as figure:
        widths = [0.75] + [1] * columns
        axes = figure.subplots(len(classes), columns + 1, squeeze=False, width_ratios=widths)
        for line, each in zip(axes, classes, strict=True):
            for cell in line:
                cell.axis("off")
            text = f"{plain(each.name, 16)}\n{each.wrong:,} of {each.total:,}\nwrong"
            line[0].text(0.0, 0.5, text, va="center", fontsize=9, color=INK, parse_math=False)
            for cell, guess in zip(line[1:], each.guesses, strict=False):
                show(cell, guess.picture.image)
                name, p = guess.bars[0]
                _title(cell, f"{plain(name, 16)} {p:.0%}", VAL)


def draw_heats(heats: list[Heat], path: Path) -> None:
    """Draw each image beside itself under its heat."""
    columns = min(COLUMNS, len(heats))
    rows = math.ceil(len(heats) / columns)
    with page(path, 3.0 * columns, 1.78 * rows) as figure:
        axes = figure.subplots(rows, 2 * columns, squeeze=False)
        for cell in axes.ravel():
            cell.axis("off")
        for i, heat in enumerate(heats):
            left, right = axes[i // columns, 2 * (i % columns) :][:2]
            show(left, heat.picture.image)
            show(right, overlay(heat))
            _title(left, heat.picture.label, MUTED)
            _title(right, f"{plain(heat.said, 16)} {heat.probability:.0%}", INK)


def overlay(heat: Heat) -> np.ndarray:
    """Lay heat over its image, which is grey there; (H, W, 3) uint8, as large as the heat."""
    from matplotlib import colormaps

    factor = len(heat.heat) // len(heat.picture.image)
    grey = heat.picture.image.mean(-1, keepdims=True).repeat(factor, axis=0).repeat(factor, axis=1) / 255
    colours = colormaps["inferno"](heat.heat)[..., :3]
    mixed = grey * 0.45 + 0.55 * colours
    return np.round(255 * mixed.clip(0, 1)).astype(np.uint8)
