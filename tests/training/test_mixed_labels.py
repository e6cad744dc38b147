"""Mixup and CutMix in the loss and the metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import checkpoint, resume, rows, run, same, train_until
from test_classifier import classifier, images
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data import ImageData
from alexnet_exp.data.loaders import Batch, BatchPlan

MIXED = ["augment.mixup=0.4", "augment.cutmix=1", "label_smoothing=0.1"]


def mixing_classifier(world_size: int = 1, rank: int = 0, **options: Any) -> tuple[Any, ImageData]:
    """Make a classifier that trains with mixed images, in epoch 2."""
    made = classifier(world_size, rank, **options)
    augment = {"mixup": 0.4, "cutmix": 1.0}
    data = ImageData(batch_size=8, image_size=2, mean=[0.0] * 3, std=[1.0] * 3, augment=augment, seed=5)
    made._trainer = SimpleNamespace(**{**vars(made._trainer), "datamodule": data, "current_epoch": 2})
    return made, data


def soft_targets(data: ImageData, labels: Tensor, indices: Tensor) -> Tensor:
    """Return the mixed labels as probabilities, (N, 10)."""
    mixing = data.pipeline.mixing(indices, 5, 2)
    assert mixing is not None
    own, other = (functional.one_hot(x, 10).float() for x in (labels, labels[mixing.partners]))
    return mixing.shares[:, None] * own + (1 - mixing.shares[:, None]) * other


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("count", [8, 7])
def test_the_loss_is_cross_entropy_with_the_mixed_label(label_smoothing: float, count: int) -> None:
    x, y = images(count)
    made, data = mixing_classifier(label_smoothing=label_smoothing)
    indices = torch.arange(count) + 40
    targets = soft_targets(data, y, indices)
    expected = functional.cross_entropy(made.model(x), targets, label_smoothing=label_smoothing)
    loss = made.training_step(Batch(x, y, indices, count, count), 0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(targets.max(1).values, torch.ones(count))


def test_training_accuracy_uses_the_label_with_the_larger_share() -> None:
    _, y = images(64)
    x = functional.one_hot(y, 12).float().view(64, 3, 2, 2)
    made, data = mixing_classifier()
    made.model[1].weight.data.copy_(torch.eye(10, 12))  # predicts the image's own label
    made.model[1].bias.data.zero_()
    own = soft_targets(data, y, torch.arange(64)).argmax(1) == y
    assert 0.5 < own.float().mean() < 0.9
    made.training_step(Batch(x, y, torch.arange(64), 64, 64), 0)
    assert made.train_meter.compute()["top1"] == pytest.approx(float(own.float().mean()))


def test_validation_does_not_mix() -> None:
    x, y = images(8)
    made, _ = mixing_classifier()
    made.validation_step(Batch(x, y, torch.arange(8), 8, 8), 0)
    plain = float(functional.cross_entropy(made.model(x).detach(), y))
    assert made.val_meter.compute()["loss"] == pytest.approx(plain, rel=1e-5)


def test_two_ranks_take_the_same_step_as_one() -> None:
    x, y = images(8)

    def gradient(world_size: int, rank: int) -> Tensor:
        made, data = mixing_classifier(world_size, rank)
        (own,) = BatchPlan(8, 8, rank=rank, world_size=world_size)
        mixing = data.pipeline.mixing(own.indices, 5, 2)
        assert mixing is not None
        batch = Batch(mixing.apply(x[own.indices]), y[own.indices], own.indices, own.size, own.global_size)
        made.training_step(batch, 0).backward()
        return made.model[1].weight.grad.clone()

    together = torch.stack([gradient(2, rank) for rank in range(2)]).mean(0)
    torch.testing.assert_close(together, gradient(1, 0), rtol=1e-5, atol=1e-7)


def test_a_rank_without_images_adds_no_gradient() -> None:
    x, y = images(1)
    made, _ = mixing_classifier(world_size=2)
    made.training_step(Batch(x, y, torch.arange(1), 0, 1), 0).backward()
    assert torch.equal(made.model[1].weight.grad, torch.zeros_like(made.model[1].weight.grad))


def test_a_run_with_everything_on_resumes_bit_for_bit(tmp_path: Path) -> None:
    everything = [
        *MIXED, "trainer.max_epochs=2", "augment.flip=alternating", "augment.policy=trivialaugment",
        "augment.colour_jitter={brightness: 0.4, hue: 0.1}", "augment.views=flip_translate",
        "augment.erasing={probability: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3]}",
        "callbacks.checkpoint.every_n_steps=1",
    ]  # fmt: skip
    whole = run(tmp_path / "whole", *everything)
    assert whole["status"] == "finished"
    train_until(tmp_path / "cut", 10, *everything)
    resume(tmp_path / "cut")
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert same(a["state_dict"], b["state_dict"])
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
