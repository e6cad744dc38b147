"""A ten-crop test, from the data set to result.json, against a loop over images and views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alexnet_exp.runs.train.command import train
from alexnet_exp.targets import build
from tests.data.makers import write_cifar10
from tests.training.small_runs import checkpoint, settings

TINY = [
    "model=alexnet_tf_cifar",
    "model.features.conv1.out_channels=4",
    "model.features.conv2.out_channels=4",
    "model.classifier.fc8.weight_std=3",  # views differ
    "data=cifar10",
    "data.batch_size=32",
    "data.val_size=0",
    "data.mean=[0,0,0]",
    "data.std=[0.00392156862745098,0.00392156862745098,0.00392156862745098]",
    "augment=paper",
    "augment.mean_image=centre",
    "augment.views=ten_crop",
    "optimizer.lr=0.00001",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
    "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false",
]


def slow_views(image: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the corner and center crops of 24 pixels and their flips, minus the center of the mean image."""
    views = []
    for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
        cut = image[:, top : top + 24, left : left + 24].astype(np.float64)
        views += [cut - mean[:, 4:28, 4:28], cut[:, :, ::-1] - mean[:, 4:28, 4:28]]
    return np.stack(views)


def slow_test(model: nn.Module, images: np.ndarray, labels: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Average the softmax of ten crops, image by image, in float64; also compute wrong alternatives."""
    losses, centre, logit_mean, hits = [], [], [], []
    for image, label in zip(images, labels, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(slow_views(image, mean)))
        probabilities = torch.stack([row.exp() / row.exp().sum() for row in logits])
        losses.append(-float(probabilities.mean(0)[label].log()))
        centre.append(-float(probabilities[8, label].log()))
        logit_mean.append(-float(logits.mean(0).log_softmax(0)[label]))
        hits.append(float(probabilities.mean(0).argmax() == label))
    named = {
        "loss": losses,
        "top1": hits,
        "loss of the centre": centre,
        "loss of the mean logits": logit_mean,
    }
    return {name: float(np.mean(values)) for name, values in named.items()}


def test_ten_crop_averages_the_probabilities_of_ten_views(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path / "data")
    config, typed = settings(f"paths.data_dir={tmp_path / 'data'}", base=TINY)
    result = train(config, typed, tmp_path / "run", "python train.py")
    model = build(config["model"]).double().eval()
    state = checkpoint(tmp_path / "run")["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    mean = arrays["train"][0].astype(np.float64).mean(0)
    expected = slow_test(model, *arrays["test"], mean)
    assert result["metrics"]["test/loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert result["metrics"]["test/top1"] == pytest.approx(expected["top1"])
    for other in ("loss of the centre", "loss of the mean logits"):  # far enough apart to tell
        assert abs(expected[other] / expected["loss"] - 1) > 1e-2
