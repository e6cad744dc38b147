"""Write figures.html: all figures on one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_exp.report.html import write_html
from alexnet_exp.runs.figures import draw


@dataclass(frozen=True)
class Kind:
    """One kind of figure.

    Args:
        title: Heading.
        draw: Writes the PNG, given the content and a path.
        in_html: figures.html renders the content as HTML instead of embedding the PNG.
    """

    title: str
    draw: Callable[..., None]
    in_html: bool = False


@dataclass
class Figure:
    """A computed figure: name of its kind, arguments of `Kind.draw`, and a sentence below the heading."""

    name: str
    content: tuple[Any, ...]
    text: str


def write_page(
    figures: Sequence[Figure], folder: Path, about: Sequence[tuple[str, str]], left_out: Mapping[str, str]
) -> Path:
    """Write folder/figures.html and return its path.

    Args:
        figures: The figures, whose PNG files are already in folder/figures.
        folder: The run directory.
        about: Header lines as (name, value).
        left_out: Skipped figures: name -> reason.
    """
    return write_html(
        folder / "figures.html",
        "figures.html",
        title=f"Figures of {dict(about).get('checkpoint', 'a network')}",
        chips=[f"{what}: {value}" for what, value in about],
        figures=figures,
        kinds=KINDS,
        sheets={f.name: _png(folder, f.name) for f in figures if not KINDS[f.name].in_html},
        overlay=draw.overlay,
        three_digits=draw.three_digits,
        left_out=left_out,
    )


def _png(folder: Path, name: str) -> str:
    """Return the PNG of a figure as a data URI."""
    content = (folder / "figures" / f"{name}.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


KINDS: dict[str, Kind] = {
    "filters": Kind("First-layer filters", draw.draw_filters),
    "top5": Kind("Predictions", draw.draw_guesses, in_html=True),
    "nearest": Kind("Nearest training images", draw.draw_neighbours, in_html=True),
    "grad_cam": Kind("Evidence for the prediction (Grad-CAM)", draw.draw_heats, in_html=True),
    "mistakes": Kind("Most confident mistakes of each class", draw.draw_mistakes, in_html=True),
    "activations": Kind("Activation maps", draw.draw_maps),
    "activation_histograms": Kind("Activations", draw.draw_histograms),
    "weight_histograms": Kind("Weights", draw.draw_histograms),
}
