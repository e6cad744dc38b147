"""What the figures of a network show: plain numpy, no networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Picture:
    """An image, uint8 (H, W, 1) or (H, W, 3), with the class it shows and its name in the data set."""

    image: np.ndarray
    label: str
    name: str


@dataclass
class Guess:
    """An image and the classes that the network finds most probable, the best first."""

    picture: Picture
    bars: list[tuple[str, float]]

    @property
    def right(self) -> bool:
        return self.bars[0][0] == self.picture.label


@dataclass
class Neighbours:
    """An image and those nearest to it, with their Euclidean distances, the nearest first."""

    picture: Picture
    found: list[tuple[Picture, float]]


def three_digits(distance: float) -> str:
    """Return 0.05 as '0.0500' and 1 as '1.00': distances stand side by side."""
    return f"{distance:#.3g}".rstrip(".")


@dataclass
class Heat:
    """What in an image speaks for a class.

    Args:
        picture: What the network saw of the image.
        heat: (f * H, f * W) float, 0 to 1: a whole number of values for each pixel of the picture.
        said: The class.
        probability: Of the class.
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
    """The maps of one layer for one image: the strongest of `total`, (n, h, w) float, in the order of the channels."""

    layer: str
    maps: np.ndarray
    total: int


@dataclass
class Histogram:
    """How often each value occurs in a layer: `edges` has one more than `counts`; `note` is a line of figures."""

    name: str
    counts: np.ndarray
    edges: np.ndarray
    note: str


def histogram(name: str, values: np.ndarray, note: str = "", bins: int = 60) -> Histogram:
    """Count the finite values in equal bins from the smallest to the largest."""
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return Histogram(name, np.zeros(bins), np.linspace(0, 1, bins + 1), "no finite value")
    counts, edges = np.histogram(values, bins=bins)
    return Histogram(name, counts, edges, note)
