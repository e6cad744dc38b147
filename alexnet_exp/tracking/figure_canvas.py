"""A matplotlib page without pyplot, in our colours, for names in any script."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alexnet_exp.tracking.figures import STYLE
from alexnet_exp.tracking.records import replacing


@contextmanager
def page(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure, in inches, that is saved as PNG when all is drawn."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; that is no reason to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, uint8 (H, W, 1|3|4), pixel by pixel and without axes."""
    picture = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
