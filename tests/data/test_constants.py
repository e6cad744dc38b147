from __future__ import annotations

import pytest
import torch

from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.randomness import constant

CPU = torch.device("cpu")


def test_a_constant_is_created_once() -> None:
    rows = ((1.0, 2.0), (3.0, 4.0))
    made = constant(rows, CPU)
    assert made.dtype == torch.float32 and made.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert constant(rows, CPU) is made


def test_integers_become_float32() -> None:
    assert constant((1, 0, 1), CPU).dtype == torch.float32


def test_a_constant_first_used_in_validation_works_in_training() -> None:
    with torch.inference_mode():
        made = constant((0.123, 0.456), CPU)
    weights = torch.ones(2, requires_grad=True)
    (weights * made).sum().backward()
    assert torch.equal(weights.grad, made)


def test_only_the_first_batch_copies_constants_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"colour_noise": "paper", "colour_jitter": {"brightness": 0.4, "hue": 0.1}}
    pipeline = Pipeline(Preprocess(8, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), options)
    images, indices = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4)
    first = pipeline.train(images, indices, seed=0, epoch=0)

    def refuse(*values: object, **options: object) -> torch.Tensor:
        raise AssertionError("a tensor is made from numbers")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(pipeline.train(images, indices, seed=0, epoch=0), first)
