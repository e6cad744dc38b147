"""The PNG files of a run: valid, not blank, and safe from odd names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_exp.report import figures
from alexnet_exp.report.evaluation import Evaluation, Sample
from alexnet_exp.report.pictures import confusion_image, confusion_shades, filter_grid

HOSTILE = [
    "$x_{^",
    "<script>alert(1)</script>",
    "a & b",
    "猫 🐈",
    "bad \udcff byte",
    "long " * 40,
    "tab\there\nline",
    "",
]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def ink(path: Path) -> float:
    """Return the share of pixels that are not white."""
    return float((pixels(path) < 250).any(axis=-1).mean())


def rows_of(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch + 9,
            "train/loss": 1 / (epoch + 1),
            "val/loss": 1.2 / (epoch + 1),
            "val/top1": 1 - 1 / (epoch + 2),
        }
        for epoch in range(epochs)
    ]


def samples_of(classes: list[str], channels: int = 3, size: int = 16, count: int = 30) -> list[Sample]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return [
        Sample(image, i % len(classes), (i + 1) % len(classes), 0.9, i, f"image {i}")
        for i, image in enumerate(images)
    ]


def evaluation_of(classes: list[str], channels: int = 3) -> Evaluation:
    generator = np.random.default_rng(1)
    confusion = generator.integers(0, 5, (len(classes), len(classes))) + 20 * np.eye(len(classes), dtype=int)
    return Evaluation(
        "test", classes, confusion, samples_of(classes, channels), samples_of(classes, channels)
    )


def test_every_figure_is_drawn_and_not_blank(tmp_path):
    weight = np.random.default_rng(0).normal(size=(96, 3, 11, 11))
    made = figures.draw_all(tmp_path, rows_of(5), evaluation_of(["cat", "dog", "owl"]), weight)
    names = {path.name for path in made}
    assert names == {"curves.png", "confusion_matrix.png", "mistakes.png", "samples.png", "conv1_filters.png"}
    assert set((tmp_path / "figures").iterdir()) == set(made)  # no temporary file is left
    assert all(ink(path) > 0.005 for path in made)


def test_nothing_is_drawn_without_data(tmp_path):
    assert figures.draw_all(tmp_path, [], None, None) == []
    empty = Evaluation("test", ["a", "b"], np.zeros((2, 2)))
    only_nan = [{"epoch": 0, "step": 0, "train/loss": math.nan}]
    assert figures.draw_all(tmp_path, only_nan, empty, np.full((8, 3, 3, 3), np.nan)) == []


def test_a_longer_run_changes_the_curves(tmp_path):
    short = pixels(figures.curves(rows_of(2), tmp_path / "short.png"))
    long = pixels(figures.curves(rows_of(30), tmp_path / "long.png"))
    assert short.shape == long.shape
    assert (short != long).any()


def test_curves_with_values_that_are_not_finite_can_be_drawn(tmp_path):
    rows = rows_of(6)
    rows[2]["train/loss"], rows[3]["val/loss"] = math.nan, math.inf
    assert ink(figures.curves(rows, tmp_path / "curves.png")) > 0.005


@pytest.mark.parametrize("channels", [1, 3])
def test_odd_class_names_can_be_drawn(tmp_path, channels):
    evaluation = evaluation_of(HOSTILE, channels)
    assert ink(figures.confusion_matrix(evaluation, tmp_path / "confusion.png")) > 0.05
    assert ink(figures.mistakes(evaluation.mistakes, HOSTILE, tmp_path / "mistakes.png")) > 0.3


@pytest.mark.parametrize("count", [1, 2, 61, 1000])
def test_a_confusion_matrix_of_any_size_has_a_blue_diagonal(tmp_path, count):
    classes = [f"class {i}" for i in range(count)]
    evaluation = Evaluation("test", classes, 50 * np.eye(count, dtype=int))
    picture = pixels(figures.confusion_matrix(evaluation, tmp_path / "confusion.png")).astype(int)
    assert max(picture.shape) <= 1300
    blue = (picture[..., 2] - picture[..., 0]) > 100
    rows, columns = np.nonzero(blue)
    if count > 1:
        assert np.corrcoef(rows, columns)[0, 1] > 0.7
    assert blue.sum() > 500


def test_mistakes_are_shaded_on_their_own_scale():
    shades = confusion_shades(np.array([[96, 4, 0], [1, 99, 0], [0, 0, 0]]))
    expected = [[0.96, 1.0, 0.0], [math.sqrt(0.01 / 0.04), 0.99, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(shades, expected)


def test_a_single_mistake_among_a_thousand_classes_is_visible():
    confusion = 50 * np.eye(1000, dtype=int)
    confusion[700, 12] = 10
    image = confusion_image(confusion)
    assert image.shape == (200, 200, 3)
    assert tuple(image[140, 2]) == (204, 88, 20)
    assert (image[np.arange(200), np.arange(200), 2] > image[np.arange(200), np.arange(200), 0]).all()
    assert (image.reshape(-1, 3) == 255).all(axis=1).sum() == 200 * 199 - 1


@pytest.mark.parametrize(
    ("count", "channels", "size"), [(96, 3, 11), (64, 1, 3), (7, 3, 5), (300, 3, 7), (1, 1, 1)]
)
def test_each_filter_is_stretched_over_the_whole_range(count, channels, size):
    weight = np.random.default_rng(0).normal(size=(count, channels, size, size)) * 1e-3
    grid = filter_grid(weight)
    scale = max(1, round(44 / size))
    first = grid[: scale * size, : scale * size]
    shown = first[::scale, ::scale, :3].transpose(2, 0, 1)
    span = np.ptp(weight[0])
    reference = np.round(255 * (weight[0] - weight[0].min()) / span) if span else np.full((1, 1, 1), 128)
    np.testing.assert_array_equal(shown, np.broadcast_to(reference, shown.shape))
    np.testing.assert_array_equal(first[..., :3], shown.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1))
    opaque = (grid[..., 3] == 255).sum()
    assert opaque == min(count, 256) * (scale * size) ** 2


def test_rows_of_filters_are_full_where_possible():
    for count in (32, 64, 96, 192):
        grid = filter_grid(np.zeros((count, 3, 11, 11)))
        assert grid[-1, -1, 3] == 255
        assert grid.shape[1] >= grid.shape[0]


def test_a_failed_drawing_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = figures.conv1_filters(np.ones((4, 3, 3, 3)), tmp_path / "conv1.png")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="axes"):
        figures.conv1_filters(np.ones((4, 3, 3)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_scores_of_each_class_match_hand_counts():
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    confusion = np.zeros((4, 4), dtype=int)
    np.add.at(confusion, (labels, predictions), 1)
    cat, dog, owl, absent = Evaluation("val", ["cat", "dog", "owl", "absent"], confusion).per_class()
    assert (cat.support, cat.precision, cat.recall) == (3, 2 / 4, 2 / 3)
    assert (dog.support, dog.precision, dog.recall, dog.f1) == (2, 1 / 2, 1 / 2, 1 / 2)
    assert (owl.support, owl.precision, owl.recall, owl.f1) == (1, None, 0.0, 0.0)
    assert (absent.support, absent.precision, absent.recall) == (0, None, None)


def test_the_most_frequent_mistakes_come_first():
    evaluation = Evaluation("test", ["a", "b", "c"], np.array([[9, 1, 0], [5, 2, 3], [0, 0, 8]]))
    assert evaluation.most_confused(2) == [(1, 0, 5), (1, 2, 3)]
    assert len(evaluation.most_confused(100)) == 3
    assert (evaluation.correct, evaluation.total) == (19, 28)


def test_a_confusion_matrix_must_match_its_classes():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        Evaluation("test", ["a", "b"], np.zeros((3, 3)))
