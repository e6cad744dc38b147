"""Imbalanced classes: class weights in the loss, a balanced order, and metrics that weigh all classes equally."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import checkpoint, resume, rows, run, same, train_until
from test_classifier import classifier, images
from test_mixed_labels import mixing_classifier, soft_targets
from torch import Tensor
from torch.nn import functional

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data.loaders import ArrayLoader, Batch, BatchPlan
from alexnet_exp.data.randomness import balanced_order
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import UserError
from alexnet_exp.training.metrics import ClassificationMeter, class_weights

UNEVEN = torch.tensor([0] * 20 + [1] * 5 + [3] * 2)  # class 2 has no images
NAMES = ("a", "b", "c", "d")


# ---------------------------------------------------------------------------------------------- weights


def test_automatic_weights_balance_the_classes_and_average_1_over_the_images() -> None:
    weights = class_weights("auto", NAMES, UNEVEN)
    assert weights is not None
    per_image = torch.tensor(weights)[UNEVEN]
    assert float(per_image.mean()) == pytest.approx(1)
    assert [float(per_image[i == UNEVEN].sum()) for i in (0, 1, 3)] == pytest.approx([9, 9, 9])


def test_given_weights_are_used_unchanged_and_other_classes_have_weight_1() -> None:
    assert class_weights({"b": 3, "d": 0.5}, NAMES, UNEVEN) == (1, 3, 1, 0.5)
    assert class_weights({7: 2.0}, tuple("0123456789"), UNEVEN) == (1,) * 7 + (2, 1, 1)
    with pytest.raises(UserError, match=r"there is no class dog\. Did you mean dogs"):
        class_weights({"dog": 2}, ("cats", "dogs"), UNEVEN)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_is_divided_by_the_number_of_images(smoothing: float) -> None:
    x, y = images(7)
    weights = [0.1 * (i + 1) for i in range(10)]
    made = classifier(label_smoothing=smoothing, class_weights=weights)
    loss = made.training_step(Batch(x, y, torch.arange(7), 7, 7), 0)
    logits = made.model(x)
    each = [
        functional.cross_entropy(logits[i : i + 1], y[i : i + 1], label_smoothing=smoothing) for i in range(7)
    ]
    expected = sum(weights[y[i]] * float(each[i].detach()) for i in range(7)) / 7
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_each_label_of_a_mixed_image_has_its_own_weight() -> None:
    x, y = images(8)
    weights = [0.1 * (i + 1) for i in range(10)]
    made, data = mixing_classifier(class_weights=weights)
    targets = soft_targets(data, y, torch.arange(8)) * torch.tensor(weights)
    expected = -(targets * made.model(x).log_softmax(1)).sum() / 8
    loss = made.training_step(Batch(x, y, torch.arange(8), 8, 8), 0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_validation_is_not_weighted() -> None:
    x, y = images(8)
    made = classifier(class_weights=[5.0] * 10)
    made.validation_step(Batch(x, y, torch.arange(8), 8, 8), 0)
    plain_loss = float(functional.cross_entropy(made.model(x).detach(), y))
    assert made.val_meter.compute()["loss"] == pytest.approx(plain_loss, rel=1e-5)


# ---------------------------------------------------------------------------------------------- balanced order


def epochs(labels: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    return [balanced_order(labels, seed, epoch) for epoch in range(count)]


def test_a_balanced_epoch_has_every_class_equally_often_and_the_same_length() -> None:
    for order in epochs(UNEVEN, 4):
        counts = torch.bincount(UNEVEN[order % 27], minlength=4).tolist()
        assert len(order) == 27 and counts == [9, 9, 0, 9]


def test_all_images_of_a_class_are_seen_equally_often_over_the_epochs() -> None:
    labels = torch.tensor([0] * 17 + [1] * 4 + [2] * 8)  # 29 is not divisible by 3
    seen = Counter((torch.cat(epochs(labels, 12)) % 29).tolist())
    for label in range(3):
        of_class = [seen[i] for i in range(29) if labels[i] == label]
        assert max(of_class) - min(of_class) <= 1 and min(of_class) > 0
        assert abs(sum(of_class) - 29 * 12 / 3) < 1


def test_every_batch_is_balanced() -> None:
    plan = BatchPlan(27, 6, 0, labels=UNEVEN)
    for part in list(plan)[:-1]:
        assert torch.bincount(UNEVEN[plan.positions(part.indices)], minlength=4).tolist() == [2, 2, 0, 2]


def test_repeats_of_an_image_in_an_epoch_are_augmented_differently() -> None:
    (order,) = epochs(UNEVEN, 1)
    assert order.unique().numel() == 27  # augmentation is drawn by these indices
    last = order[order % 27 == 26].tolist()
    assert len(last) in (4, 5) and last == [26 + 27 * i for i in range(len(last))]


def test_a_balanced_order_depends_only_on_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = balanced_order(UNEVEN, 3, 5)
    torch.manual_seed(2)
    assert torch.equal(first, balanced_order(UNEVEN, 3, 5))
    assert (
        len({tuple(balanced_order(UNEVEN, seed, epoch).tolist()) for seed in (3, 4) for epoch in (5, 6)}) == 4
    )


def test_ranks_share_balanced_batches() -> None:
    alone = list(BatchPlan(27, 8, 0, labels=UNEVEN))
    ranks = [list(BatchPlan(27, 8, 0, rank, 3, labels=UNEVEN)) for rank in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices[: part.size] for part in parts]), whole.indices)


def test_a_balanced_batch_has_the_images_of_its_positions() -> None:
    pictures = torch.arange(27, dtype=torch.uint8).view(-1, 1, 1, 1)
    loader = ArrayLoader(
        ArraySource(pictures, UNEVEN, NAMES, "made train"), BatchPlan(27, 8, 0, labels=UNEVEN)
    )
    for batch in loader:
        assert batch.images.flatten().tolist() == (batch.indices % 27).tolist()
        assert torch.equal(batch.labels, UNEVEN[batch.indices % 27])


# ---------------------------------------------------------------------------------------------- metrics


def test_balanced_accuracy_and_macro_f1_are_means_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 6, generator=generator)
    logits[:, 4] -= 100  # has images, but is never predicted
    labels = torch.randint(0, 5, (60,), generator=generator)  # class 5 has no images, but is predicted
    meter = ClassificationMeter(6, confusion=True)
    for some, of_them in zip(logits.split(25), labels.split(25), strict=True):
        meter.update(functional.cross_entropy(some, of_them, reduction="none"), some, of_them)
    found, said, truth = meter.compute(), logits.argmax(1).numpy(), labels.numpy()
    recalls, f1s = [], []
    for c in range(6):
        hits = int(((said == c) & (truth == c)).sum())
        precision = hits / max(1, int((said == c).sum()))
        recall = hits / max(1, int((truth == c).sum()))
        recalls += [recall] if (truth == c).any() else []
        f1s.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"] == pytest.approx(np.mean(f1s))
    assert len(recalls) == 5 and f1s[4] == f1s[5] == 0


# ---------------------------------------------------------------------------------------------- runs

BOTH = ["trainer.max_epochs=2", "data.balanced=true", "class_weights={3: 2.0, 8: 0.5}", "label_smoothing=0.1"]


def test_a_run_with_class_weights_and_a_balanced_order_resumes_bit_for_bit(tmp_path: Path) -> None:
    result = run(tmp_path / "whole", *BOTH, "callbacks.checkpoint.monitor=val/macro_f1", "scheduler=plateau",
                 "scheduler.monitor=val/balanced_accuracy", "scheduler.mode=max")  # fmt: skip
    assert result["best"]["metric"] == "val/macro_f1"
    assert {f"{s}/{m}" for s in ("val", "test") for m in ("macro_f1", "balanced_accuracy")} <= set(
        result["metrics"]
    )
    assert result["class_weights"]["3"] == 2.0 and result["class_weights"]["0"] == 1.0
    recalls = [row["recall"] for row in result["per_class"] if row["images"]]
    assert np.mean(recalls) == pytest.approx(result["metrics"]["test/balanced_accuracy"])
    assert "balanced accuracy" in (tmp_path / "whole" / "report.html").read_text()
    run(tmp_path / "plain", *BOTH)
    train_until(tmp_path / "cut", 10, *BOTH, "callbacks.checkpoint.every_n_steps=1")
    resume(tmp_path / "cut")
    a, b = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "cut")
    assert same(a["state_dict"], b["state_dict"]) and rows(tmp_path / "plain") == rows(tmp_path / "cut")
    with pytest.raises(UserError, match="would change class_weights"):
        resume(tmp_path / "cut", "class_weights=auto", "trainer.max_epochs=3")


def test_a_run_older_than_these_settings_and_metrics_is_resumed(tmp_path: Path) -> None:
    run(tmp_path, "data.val_size=20")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del settings["class_weights"], settings["data"]["balanced"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    new = {"val/balanced_accuracy", "val/macro_f1", "test/balanced_accuracy", "test/macro_f1"}
    with (tmp_path / "metrics.csv").open(newline="") as file:
        before = list(csv.DictReader(file))
    kept = [name for name in before[0] if name not in new]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(before)
    assert resume(tmp_path, "trainer.max_epochs=2") is not None
    found = rows(tmp_path)
    validated = [row for row in found if "val/loss" in row]
    assert ["val/macro_f1" in row for row in validated] == [False, True]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "finished"


def test_automatic_weights_with_a_balanced_order_are_refused() -> None:
    with pytest.raises(UserError, match="choose one of them"):
        check_config(plain(compose("train", ["class_weights=auto", "data.balanced=true"])))
    check_config(plain(compose("train", ["class_weights={3: 2.0}", "data.balanced=true"])))
