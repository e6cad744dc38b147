"""Predictions as a picture in the manner of the AlexNet paper's figure 4: the image, and a bar for each class."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from alexnet_exp.data.decode import decode
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.figure_canvas import page, show
from alexnet_exp.tracking.figures import INK, MUTED, TRAIN, plain
from alexnet_exp.tracking.pictures import to_pil
from alexnet_exp.tracking.predict_page import GONE, Answer

MAX_PICTURES, COLUMNS, MAX_BARS = 24, 6, 5
SIDE = 256  # pixels of a thumbnail at most


def draw_predictions(answers: Sequence[Answer], path: Path, left_out: int = 0) -> None:
    """Draw images with their most probable classes on one page.

    Args:
        answers: At most 24.
        path: The PNG to write.
        left_out: Images that are not on the page, for its last line.
    """
    columns = min(COLUMNS, len(answers))
    lines = math.ceil(len(answers) / columns)
    bars = min(MAX_BARS, max(len(answer.bars) for answer in answers))
    with page(path, max(2.1 * columns, 4.2), (2.3 + 0.2 * bars) * lines + 0.3) as figure:
        grid = figure.add_gridspec(lines, columns)
        for i, answer in enumerate(answers):
            _draw(figure, grid[i // columns, i % columns], answer, bars)
        if left_out:
            text = f"The first {len(answers)} of {len(answers) + left_out:,} images"
            figure.supxlabel(text, fontsize=9, color=MUTED)


def _draw(figure: Figure, place: SubplotSpec, answer: Answer, bars: int) -> None:
    inner = place.subgridspec(2, 1, height_ratios=[1.7, 0.2 * bars], hspace=0.02)
    above, below = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    if answer.image is None:
        above.text(0.5, 0.5, GONE, ha="center", va="center", fontsize=8, color=MUTED)
        above.axis("off")
    else:
        show(above, answer.image)
    above.set_title(plain(os.path.basename(answer.path), 24), fontsize=8, color=INK, parse_math=False)
    said = answer.bars[:bars]
    heights = range(len(said))
    below.barh(heights, [p for _, p in said], height=0.86, color=TRAIN, alpha=0.35)
    for height, (name, p) in zip(heights, said, strict=True):
        text = f"{plain(name, 22)}  {p:.0%}"
        below.text(0.02, height, text, va="center", fontsize=8, color=INK, parse_math=False)
    below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5), xticks=[], yticks=[])
    for side in below.spines.values():
        side.set_visible(False)


def thumbnail(path: str) -> np.ndarray | None:
    """Return the whole image, upright, (H, W, 3) uint8 of at most 256 pixels a side; None if it is gone by now."""
    try:
        picture = to_pil(decode(path, 3, enough=SIDE).permute(1, 2, 0).numpy())
    except UserError:
        return None
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)
