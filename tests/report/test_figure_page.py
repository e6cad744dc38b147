"""figures.html: well-formed, self-contained, and safe from hostile names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alexnet_exp.runs.figures.draw import (
    ClassMistakes,
    Guess,
    Heat,
    Maps,
    Neighbours,
    Picture,
    histogram,
    overlay,
)
from alexnet_exp.runs.figures.page import KINDS, Figure, write_page
from tests.report.test_report import ATTACK, QUOTES, Page


def picture(channels: int = 3) -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, channels), dtype=np.uint8)
    return Picture(pixels, ATTACK, QUOTES)


def made(folder: Path, channels: int = 3) -> Path:
    """Draw every kind of figure, of images with hostile names, and write the page."""
    image = picture(channels)
    guess = Guess(image, [(ATTACK, 0.7), (QUOTES, 0.2)])
    content = {
        "filters": ([np.random.default_rng(0).normal(size=(4, channels, 3, 3))],),
        "top5": ([guess] * 5,),
        "nearest": ([Neighbours(image, [(image, 1.5), (image, 2.5)])],),
        "grad_cam": ([Heat(image, np.linspace(0, 1, 576).reshape(24, 24), QUOTES, 0.5)],),
        "mistakes": ([ClassMistakes(ATTACK, 1, 3, [guess])],),
        "activations": (image, [Maps(ATTACK, np.ones((3, 5, 5), np.float32), 3)]),
        "activation_histograms": ([histogram(ATTACK, np.arange(9.0))],),
        "weight_histograms": ([histogram(QUOTES, np.arange(9.0))],),
    }
    assert set(content) == set(KINDS)
    figures = [Figure(name, content[name], f"About {ATTACK}") for name in KINDS]
    for figure in figures:
        KINDS[figure.name].draw(*figure.content, folder / "figures" / f"{figure.name}.png")
    return write_page(figures, folder, [("checkpoint", ATTACK)], {"grad_cam": f"no {ATTACK}"})


@pytest.mark.parametrize("channels", [1, 3])
def test_page_shows_every_figure_and_escapes_names(tmp_path: Path, channels: int):
    page = Page(made(tmp_path, channels))
    scripts = [attributes for name, attributes in page.attributes if name == "script"]
    assert len(scripts) == 1
    assert not any(key.startswith("on") for _, attributes in page.attributes for key in attributes)
    sources = [attributes.get("src") or "" for name, attributes in page.attributes if name == "img"]
    assert len(sources) > 10
    assert all(source.startswith("data:image/") for source in sources)
    text = "".join(page.text)
    for kind in KINDS.values():
        assert kind.title in text
    assert f"no {ATTACK}" in text
    assert "https://" not in page.source


def test_overlay_is_dark_without_heat_and_bright_with_it():
    heat = np.zeros((24, 24))
    heat[:12] = 1.0
    grey = Picture(np.full((24, 24, 3), 128, np.uint8), "a", "b")
    over = overlay(Heat(grey, heat, "a", 1.0)).astype(int).sum(-1)
    assert over.shape == (24, 24)
    assert over[:12].min() > over[12:].max() + 200


def test_overlay_has_the_resolution_of_the_heat_map():
    over = overlay(Heat(picture(), np.linspace(0, 1, 72 * 72).reshape(72, 72), "a", 1.0))
    assert over.shape == (72, 72, 3)
