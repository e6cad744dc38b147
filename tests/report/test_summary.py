"""A run in words: its title, its images, and the accuracy with what it rests on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.run import write_report
from alexnet_exp.report.summary import accuracy, images, title
from alexnet_exp.tracking.metrics import wilson
from tests.report.test_report import Page, make_run

DIGITS = {"choices": {"model": "alexnet_cifar", "data": "digits"}, "weights": "none", "test_weights": "best"}
PHOTOS = {
    "choices": {"model": "caffe_cifar_quick", "data": "folder"},
    "data": {"root": "my/photos/"},
    "weights": "caffe_cifar_quick",
}
BEST = {"metric": "val/top1", "value": 0.875, "epoch": 7, "step": 70}


@pytest.mark.parametrize(("share", "total"), [(350 / 355, 355), (7 / 8, 8), (0.5, 2), (0.1, 10_000)])
def test_the_interval_ends_where_the_share_is_two_standard_errors_away(share: float, total: int) -> None:
    for end in wilson(share, total):
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / total))


def test_the_interval_of_none_and_all_stays_within_0_and_1() -> None:
    low, high = wilson(0.0, 10)
    assert low == 0.0 and high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert wilson(1.0, 10) == (pytest.approx(1 - high), pytest.approx(1.0))


def test_the_title_says_what_was_trained_on_what() -> None:
    assert title({}, DIGITS) == "alexnet_cifar trained on digits"
    assert title({}, PHOTOS) == "caffe_cifar_quick fine-tuned on the folder photos"
    assert (
        title({"split": "val", "data": "digits train"}, {}) == "Evaluation on the validation images of digits"
    )
    assert title({}, {"seed": 0}) is None


def test_the_images_of_every_split_are_counted_and_few_classes_named() -> None:
    splits = {name: {"images": count, "classes": 2} for name, count in (("train", 1200), ("val", 8))}
    assert images({"splits": splits, "classes": ["cat", "dog"]}) == (
        "1,200 training and 8 validation images of 2 classes: cat, dog"
    )
    three = splits | {"test": {"images": 9, "classes": 2}}
    assert images({"splits": three, "classes": ["cat", "dog", "unused 2"]}) == (
        "1,200 training, 8 validation and 9 test images of 2 classes"
    )
    assert images({"images": {"test": 9}}) is None


def evaluated(split: str, correct: int, total: int) -> Evaluation:
    return Evaluation(split, ["cat", "dog"], np.array([[correct, total - correct], [0, 0]]))


@pytest.mark.parametrize(
    ("evaluation", "result", "settings", "line"),
    [
        pytest.param(
            evaluated("test", 350, 355), {"best": BEST | {"value": 0.9944}, "epochs": 30}, DIGITS,
            "98.59 % of 355 test images (95 % interval 96.7 to 99.4 %); weights of epoch 7 of 30, the best by "
            "validation accuracy (99.44 %)", id="test",
        ),
        pytest.param(
            evaluated("val", 7, 8), {"best": BEST, "epochs": 9}, DIGITS,
            "87.50 % of 8 validation images (95 % interval 52.9 to 97.8 %); weights of epoch 7 of 9, the best by "
            "validation accuracy. There are no test images. These images also chose the epoch: expect less on new "
            "ones.", id="val",
        ),
        pytest.param(
            evaluated("val", 7, 8), {"best": BEST, "epochs": 9}, DIGITS | {"test_weights": "last"},
            "87.50 % of 8 validation images (95 % interval 52.9 to 97.8 %); weights of epoch 9, the last", id="last",
        ),
        pytest.param(
            None, {"metrics": {"val/top1": 0.5}, "best": BEST, "epochs": 9, "images": {"val": 8}}, DIGITS,
            "87.50 % of 8 validation images (95 % interval 52.9 to 97.8 %); weights of epoch 7 of 9, the best by "
            "validation accuracy. There are no test images. These images also chose the epoch: expect less on new "
            "ones.", id="not tested",
        ),
        pytest.param(
            None, {"metrics": {"val/top1": 0.5}, "best": BEST | {"metric": "val/loss"}, "epochs": 9}, DIGITS,
            "50.00 % of the validation images; weights of epoch 9, the last", id="best by another metric",
        ),
        pytest.param(
            evaluated("test", 1, 4), {"split": "test", "data": "digits test"}, {},
            "25.00 % of 4 test images (95 % interval 4.6 to 69.9 %)", id="evaluation",
        ),
        pytest.param(
            evaluated("test", 1, 4), {"best": BEST | {"epoch": 0}, "epochs": 0}, DIGITS,
            "25.00 % of 4 test images (95 % interval 4.6 to 69.9 %); weights of step 70, the best by validation "
            "accuracy (87.50 %)", id="inside the first epoch",
        ),
    ],
)  # fmt: skip
def test_the_accuracy_says_on_how_many_images_and_of_which_epoch_it_is(
    evaluation: Evaluation | None, result: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    found = accuracy(result, settings, evaluation)
    assert found is not None and found.line == line


def test_validation_images_are_not_said_to_be_all_where_the_test_was_left_out() -> None:
    found = accuracy({"metrics": {"val/top1": 0.5}, "best": BEST, "images": {"val": 8, "test": 9}}, DIGITS)
    assert found is not None
    assert found.caveat == "These images also chose the epoch: expect less on new ones."


def test_the_interval_is_that_of_the_literature() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, table I): 81 of 263, 0.2553 to 0.3662; 0 of 20, 0 to 0.1611.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@pytest.mark.parametrize(
    ("trainer", "weights"),
    [
        ({}, "epoch 7 of 9, the best by validation accuracy"),
        ({"val_check_interval": 0.25}, f"step {BEST.get('step', 70)}, the best by validation accuracy"),
        ({"max_steps": 100}, f"step {BEST.get('step', 70)}, the best by validation accuracy"),
    ],
)
def test_weights_from_inside_of_an_epoch_are_named_by_their_step(
    trainer: dict[str, Any], weights: str
) -> None:
    best = {"step": 70, **BEST}
    found = accuracy(
        {"metrics": {"val/top1": 0.5}, "best": best, "epochs": 9}, {**DIGITS, "trainer": trainer}
    )
    assert found is not None and found.weights == weights


def test_the_last_weights_of_a_run_that_ends_by_steps_are_named_by_their_step() -> None:
    result = {"metrics": {"test/top1": 0.5}, "epochs": 2, "steps": 100}
    found = accuracy(result, {**DIGITS, "test_weights": "last", "trainer": {"max_steps": 100}})
    assert found is not None and found.weights == "step 100, the last"


def test_limited_batches_have_no_interval() -> None:
    settings = {**DIGITS, "trainer": {"limit_val_batches": 0.1}}
    found = accuracy({"metrics": {"val/top1": 0.5}, "best": BEST, "images": {"val": 1000}}, settings)
    assert found is not None and found.total is None and not found.interval


def test_validation_images_chose_nothing_where_the_training_loss_did() -> None:
    best = {**BEST, "metric": "train/loss", "value": 0.1}
    found = accuracy({"metrics": {"val/top1": 0.5}, "best": best, "images": {"val": 8}}, DIGITS)
    assert found is not None and not found.caveat


def test_a_run_without_validation_and_test_has_no_accuracy() -> None:
    assert accuracy({"metrics": {"train/top1": 0.9}, "epochs": 1}, DIGITS) is None


def test_the_report_begins_with_what_was_trained_and_how_good_it_is(tmp_path: Path) -> None:
    splits = {"train": {"images": 32, "classes": 2}, "val": {"images": 8, "classes": 2}}
    result = {"status": "finished", "best": BEST, "epochs": 9, "splits": splits, "classes": ["cat", "dog"]}
    run = make_run(tmp_path / "2026-11-30_a", [], result, config=PHOTOS)
    words = Page(write_report(run, evaluated("val", 7, 8))).words
    beginning = words[: words.index("Curves")]
    for part in (
        "alexnet_exp · 2026-11-30_a caffe_cifar_quick fine-tuned on the folder photos finished",
        "32 training and 8 validation images of 2 classes: cat, dog",
        "87.50 % accuracy on 8 validation images",
        "95 % interval 52.9 to 97.8 %",
        "Weights of epoch 7 of 9, the best by validation accuracy. There are no test images.",
    ):
        assert part in beginning, part
