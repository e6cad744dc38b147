"""Predictions as a picture in the manner of the AlexNet paper's figure 4: the image, and a bar for each class."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from alexnet_exp.data.decode import decode
from alexnet_exp.tracking.figures import INK, MUTED, STYLE, TRAIN, plain
from alexnet_exp.tracking.pictures import to_pil
from alexnet_exp.tracking.records import replacing

MAX_PICTURES, COLUMNS, MAX_BARS = 24, 6, 5
SIDE = 256  # pixels of a thumbnail at most

Bars = list[tuple[str, float]]


def draw_predictions(rows: list[tuple[str, Bars]], path: Path, left_out: int = 0) -> Path:
    """Draw images with their most probable classes on one page.

    Args:
        rows: Path of an image, and class names with probabilities, the most probable first; at most 24.
        path: The PNG to write.
        left_out: Images that are not on the page, for its last line.
    """
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    bars = min(MAX_BARS, max(len(said) for _, said in rows))
    size = (max(2.1 * columns, 4.2), (2.3 + 0.2 * bars) * lines + 0.3)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; that is no reason to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=size, dpi=120, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(lines, columns)
        for i, (image, said) in enumerate(rows):
            _draw(figure, grid[i // columns, i % columns], image, said[:bars], bars)
        if left_out:
            figure.supxlabel(
                f"The first {len(rows)} of {len(rows) + left_out:,} images", fontsize=9, color=MUTED
            )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    return path


def _draw(figure: Figure, place: SubplotSpec, image: str, said: Bars, bars: int) -> None:
    inner = place.subgridspec(2, 1, height_ratios=[1.7, 0.2 * bars], hspace=0.02)
    above, below = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    above.imshow(thumbnail(image), interpolation="nearest")
    above.set_title(plain(os.path.basename(image), 24), fontsize=8, color=INK, parse_math=False)
    above.axis("off")
    heights = range(len(said))
    below.barh(heights, [p for _, p in said], height=0.86, color=TRAIN, alpha=0.35)
    for height, (name, p) in zip(heights, said, strict=True):
        text = f"{plain(name, 22)}  {p:.0%}"
        below.text(0.02, height, text, va="center", fontsize=8, color=INK, parse_math=False)
    below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5), xticks=[], yticks=[])
    for side in below.spines.values():
        side.set_visible(False)


def thumbnail(path: str) -> np.ndarray:
    """Return the whole image, upright, (H, W, 3) uint8 of at most 256 pixels a side."""
    picture = to_pil(decode(path, 3, enough=SIDE).permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)
