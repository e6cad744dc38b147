"""Figures of layers: what is drawn where, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_exp.runs.figures.draw import (
    TILES,
    Maps,
    Picture,
    draw_filters,
    draw_histograms,
    draw_maps,
    histogram,
    sheet,
    three_digits,
)


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    with Image.open(path) as image:
        return image.size


def of_colour(channel: int) -> np.ndarray:
    """Two filters of one colour except for a corner."""
    weight = np.zeros((2, 3, 3, 3))
    weight[:, channel] = 1
    weight[:, :, 0, 0] = 0
    return weight


def rows_of(path: Path, channel: int) -> np.ndarray:
    """Rows of a PNG that hold a pure colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    others = [i for i in range(3) if i != channel]
    return np.flatnonzero(((pixels[..., channel] > 250) & (pixels[..., others] < 5).all(-1)).any(1))


def test_filters_of_the_second_tower_are_drawn_below_the_first(tmp_path: Path):
    draw_filters([of_colour(0), of_colour(2)], tmp_path / "filters.png")
    red, blue = rows_of(tmp_path / "filters.png", 0), rows_of(tmp_path / "filters.png", 2)
    assert len(red)
    assert len(blue)
    assert red.max() + 10 < blue.min()


def test_grey_filters_are_drawn(tmp_path: Path):
    draw_filters([np.random.default_rng(0).normal(size=(8, 1, 5, 5))], tmp_path / "filters.png")
    assert size(tmp_path / "filters.png")[0] > 100


def test_sheet_shows_every_map_on_one_scale():
    maps = np.stack([np.full((60, 60), value) for value in range(TILES + 1)]).astype(np.float32)
    laid = sheet(maps)
    gaps = np.isnan(laid)
    assert sorted(set(np.round(laid[~gaps], 4))) == [round(v / TILES, 4) for v in range(TILES + 1)]
    assert (~gaps).sum() == maps.size
    assert laid[0, 0] == 0.0
    assert laid[-1, 0] == 1.0  # the seventeenth starts a second row


def test_sheet_of_dead_maps_is_dark():
    assert np.nanmax(sheet(np.zeros((3, 4, 4)))) == 0.0


def test_histogram_counts_every_finite_value():
    values = np.array([1.0, 2.0, np.nan, 3.0, np.inf, -5.0])
    found = histogram("x", values)
    assert found.counts.sum() == 4
    assert found.edges[0] == -5.0
    assert found.edges[-1] == 3.0


def test_histograms_of_nan_only_and_of_one_value_can_be_drawn(tmp_path: Path):
    draw_histograms([histogram("a", np.array([np.nan])), histogram("$b$", np.ones(5))], tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_maps_are_drawn_below_their_image(tmp_path: Path):
    picture = Picture(np.zeros((20, 20, 1), np.uint8), "猫 $x$", "x.png")
    layers = [
        Maps("conv1", np.ones((3, 9, 9), np.float32), 64),
        Maps("conv2", np.ones((20, 2, 2), np.float32), 20),
    ]
    draw_maps(picture, layers, tmp_path / "maps.png")
    assert size(tmp_path / "maps.png")[1] > 200


def test_distances_have_three_digits_each():
    assert [three_digits(x) for x in (0.05, 1.0, 1.6, 12.34, 123.4, 1234.5, 1.23e-7)] == [
        "0.0500", "1.00", "1.60", "12.3", "123", "1.23e+03", "1.23e-07",
    ]  # fmt: skip
