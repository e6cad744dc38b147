"""Write figures.html: everything the figures show on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_exp.report.html import write_html
from alexnet_exp.runs.figures import draw as figure_images
from alexnet_exp.runs.figures import draw as figure_layers
from alexnet_exp.runs.figures.draw import three_digits


@dataclass(frozen=True)
class Kind:
    """One kind of figure.

    Args:
        title: Its heading.
        draw: Writes the PNG, from the content and a path.
        in_html: Whether figures.html shows the content itself, and not the PNG.
    """

    title: str
    draw: Callable[..., None]
    in_html: bool = False


@dataclass
class Figure:
    """A figure that was made: its kind's name, what the drawing takes, and a sentence below the heading."""

    name: str
    content: tuple[Any, ...]
    text: str


def write_page(
    figures: Sequence[Figure], folder: Path, about: Sequence[tuple[str, str]], left_out: Mapping[str, str]
) -> Path:
    """Write folder/figures.html and return its path.

    Args:
        figures: What is on it; their PNG files lie in folder/figures already.
        folder: The run directory.
        about: Lines of the header: what, value.
        left_out: Why a figure is not there, by name.
    """
    return write_html(
        folder / "figures.html",
        "figures.html",
        title=f"Figures of {dict(about).get('checkpoint', 'a network')}",
        chips=[f"{what}: {value}" for what, value in about],
        figures=figures,
        kinds=KINDS,
        sheets={f.name: _png(folder, f.name) for f in figures if not KINDS[f.name].in_html},
        overlay=figure_images.overlay,
        three_digits=three_digits,
        left_out=left_out,
    )


def _png(folder: Path, name: str) -> str:
    """Return the figure's file as a data URI."""
    content = (folder / "figures" / f"{name}.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


KINDS: dict[str, Kind] = {
    "filters": Kind("First-layer filters", figure_layers.draw_filters),
    "top5": Kind("Predictions", figure_images.draw_guesses, in_html=True),
    "nearest": Kind("Nearest training images", figure_images.draw_neighbours, in_html=True),
    "grad_cam": Kind("Evidence for the prediction (Grad-CAM)", figure_images.draw_heats, in_html=True),
    "mistakes": Kind("Most confident mistakes of each class", figure_images.draw_mistakes, in_html=True),
    "activations": Kind("Activation maps", figure_layers.draw_maps),
    "activation_histograms": Kind("Activations", figure_layers.draw_histograms),
    "weight_histograms": Kind("Weights", figure_layers.draw_histograms),
}
