from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from alexnet_exp.training.optim.lars import LARS

SETTINGS = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01, "trust": 0.02, "eps": 1e-9}


def by_hand(weight: list[float], gradients: list[list[float]], adaptive: bool) -> list[float]:
    """Algorithm 1 with plain numbers."""
    velocity = [0.0] * len(weight)
    for gradient in gradients:
        rate, decay = SETTINGS["lr"], 0.0
        if adaptive:
            size, slope = (math.sqrt(sum(x * x for x in v)) for v in (weight, gradient))
            decay = SETTINGS["weight_decay"]
            rate *= SETTINGS["trust"] * size / (slope + decay * size + SETTINGS["eps"])
        velocity = [
            SETTINGS["momentum"] * v + rate * (g + decay * w)
            for v, g, w in zip(velocity, gradient, weight, strict=True)
        ]
        weight = [w - v for w, v in zip(weight, velocity, strict=True)]
    return weight


@pytest.mark.parametrize(("shape", "adaptive"), [((2, 3), True), ((6,), False)])
def test_steps_match_the_paper(shape: tuple[int, ...], adaptive: bool):
    start, gradients = (
        [0.3, -0.2, 0.5, 0.1, -0.4, 0.7],
        [[0.1, 0.2, -0.3, 0.4, 0.0, -0.1], [0.5, -0.1, 0.2, 0.0, 0.3, 0.1]],
    )
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64).view(shape))
    optimizer = LARS([weight], **SETTINGS)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64).view(shape)
        optimizer.step()
    assert weight.detach().flatten().tolist() == pytest.approx(by_hand(start, gradients, adaptive), rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "gradients"), [(torch.zeros(2, 2), torch.ones(2, 2)), (torch.ones(2, 2), torch.zeros(2, 2))]
)
def test_a_layer_with_zero_weights_or_gradient_takes_a_plain_sgd_step(
    weights: torch.Tensor, gradients: torch.Tensor
):
    weight = nn.Parameter(weights.clone())
    weight.grad = gradients
    LARS([weight], lr=0.5, weight_decay=0.1).step()
    expected = weights - 0.5 * (gradients + 0.1 * weights)
    torch.testing.assert_close(weight.detach(), expected)


def test_the_step_does_not_depend_on_the_scale_of_the_gradient():
    ends = []
    for scale in (1.0, 1000.0):
        weight = nn.Parameter(torch.ones(3, 3))
        weight.grad = scale * torch.arange(9.0).view(3, 3)
        LARS([weight], lr=1.0).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
