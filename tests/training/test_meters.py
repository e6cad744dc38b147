from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.training.metrics import ClassificationMeter


def draw(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def fill(meter: ClassificationMeter, logits: Tensor, labels: Tensor, sizes: list[int]) -> None:
    for some, of_them in zip(logits.split(sizes), labels.split(sizes), strict=True):
        meter.update(functional.cross_entropy(some, of_them, reduction="none"), some, of_them)


def expected(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Count with numpy, image by image."""
    scores, truth = logits.double().numpy(), labels.numpy()
    losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(scores, truth, strict=True)]
    ranked = [list(np.argsort(-row)) for row in scores]
    top = {k: np.mean([label in row[:k] for row, label in zip(ranked, truth, strict=True)]) for k in (1, 5)}
    return {"loss": float(np.mean(losses)), "top1": float(top[1]), "top5": float(top[5])}


@pytest.mark.parametrize("classes", [6, 10, 1000])
def test_every_image_of_uneven_batches_counts_equally(classes: int) -> None:
    logits, labels = draw(101, classes)
    meter = ClassificationMeter(classes)
    fill(meter, logits, labels, [40, 40, 0, 20, 1])
    assert meter.compute() == pytest.approx(expected(logits, labels), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_few_classes_have_no_top5(classes: int) -> None:
    logits, labels = draw(20, classes)
    meter = ClassificationMeter(classes)
    fill(meter, logits, labels, [20])
    assert meter.compute().keys() == {"loss", "top1"}


def test_a_reset_meter_starts_over() -> None:
    meter = ClassificationMeter(10)
    fill(meter, *draw(30, 10, seed=1), [30])
    meter.reset()
    logits, labels = draw(7, 10, seed=2)
    fill(meter, logits, labels, [7])
    assert meter.compute() == pytest.approx(expected(logits, labels), rel=1e-6)


def test_a_meter_without_images_has_no_metrics() -> None:
    meter = ClassificationMeter(10)
    fill(meter, *draw(0, 10), [0])
    assert meter.compute() == {}


def test_confusion_has_true_labels_in_its_rows() -> None:
    logits, labels = draw(60, 4)
    meter = ClassificationMeter(4, confusion=True)
    fill(meter, logits, labels, [25, 35])
    meter.compute()
    table = np.zeros((4, 4), dtype=int)
    for truth, guess in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        table[truth, guess] += 1
    assert meter.confusion_counts.tolist() == table.tolist()
    assert table.sum() == 60 and not np.array_equal(table, table.T)


def test_a_restored_meter_ends_with_the_same_bits() -> None:
    logits, labels = draw(64, 10)
    whole, first, second = (ClassificationMeter(10) for _ in range(3))
    fill(whole, logits, labels, [40, 24])
    fill(first, logits[:40], labels[:40], [40])
    second.restore(first.state())
    fill(second, logits[40:], labels[40:], [24])
    assert second.compute() == whole.compute()


def test_the_sums_of_two_ranks_can_be_restored_on_one_or_four() -> None:
    sums = torch.tensor([[1.5, 2.0, 3.0, 4.0], [0.5, 1.0, 1.0, 4.0]], dtype=torch.float64)
    for ranks in (1, 2, 4):
        meters = [ClassificationMeter(10) for _ in range(ranks)]
        for rank, meter in enumerate(meters):
            meter.restore(sums, ranks, rank)
        total = sum(meter.state()[0] for meter in meters)
        assert torch.equal(torch.as_tensor(total), sums.sum(0))
