"""SGD with the rate inside the velocity, against the paper's formula number by number."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet_exp.training.optim.paper_sgd import PaperSGD

RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.04, 0.04]  # of each step: falls by ten, then rises


def gradients() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in RATES:
        yield torch.randn(5, dtype=torch.float64, generator=generator)


def start() -> Tensor:
    return torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()


def by_hand(momentum: float, decay: float) -> list[list[float]]:
    """Return the weights after each step: v <- momentum v - decay lr w - lr g; w <- w + v, number by number."""
    weights, velocities, path = start().tolist(), [0.0] * 5, []
    for lr, slopes in zip(RATES, gradients(), strict=True):
        for i, slope in enumerate(slopes.tolist()):
            velocities[i] = momentum * velocities[i] - decay * lr * weights[i] - lr * slope
            weights[i] = weights[i] + velocities[i]
        path.append(list(weights))
    return path


def trained(optimizer: torch.optim.Optimizer, weights: Tensor, rescale: bool = False) -> list[list[float]]:
    """Return the weights after each step; `rescale` multiplies torch's buffers by the old rate over the new."""
    path = []
    for lr, slopes in zip(RATES, gradients(), strict=True):
        for each in optimizer.param_groups:
            if rescale and each["lr"] != lr and weights in optimizer.state:
                optimizer.state[weights]["momentum_buffer"] *= each["lr"] / lr
            each["lr"] = lr
        weights.grad = slopes
        optimizer.step()
        path.append(weights.tolist())
    return path


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_paper_sgd_keeps_its_velocity_when_the_rate_changes(decay: float) -> None:
    weights = start()
    path = trained(PaperSGD([weights], lr=RATES[0], momentum=0.9, weight_decay=decay), weights)
    np.testing.assert_allclose(path, by_hand(0.9, decay), rtol=1e-12)


def test_torch_s_sgd_differs_from_the_paper_after_a_change_of_the_rate() -> None:
    weights = start()
    path = trained(torch.optim.SGD([weights], lr=RATES[0], momentum=0.9, weight_decay=0.05), weights)
    expected = by_hand(0.9, 0.05)
    np.testing.assert_allclose(path[:3], expected[:3], rtol=1e-12)
    assert np.abs(np.array(path[3]) - expected[3]).min() > 1e-2


def test_torch_s_sgd_follows_the_paper_if_its_buffers_are_scaled_by_old_over_new_rate() -> None:
    weights = start()
    optimizer = torch.optim.SGD([weights], lr=RATES[0], momentum=0.9, weight_decay=0.05)
    np.testing.assert_allclose(trained(optimizer, weights, rescale=True), by_hand(0.9, 0.05), rtol=1e-12)


def test_paper_sgd_resumes_exactly() -> None:
    weights = start()
    optimizer = PaperSGD([weights], lr=0.1)
    for slopes in list(gradients())[:3]:
        weights.grad = slopes
        optimizer.step()
    twin = weights.detach().clone().requires_grad_()
    other = PaperSGD([twin], lr=0.7)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors
    weights.grad = twin.grad = torch.ones(5, dtype=torch.float64)
    optimizer.step()
    other.step()
    assert torch.equal(weights, twin)


def test_paper_sgd_skips_weights_without_gradients() -> None:
    used, unused = start(), start()
    used.grad = torch.ones(5, dtype=torch.float64)
    PaperSGD([used, unused], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(unused, start())
    assert not torch.equal(used, start())


def test_a_rate_of_0_freezes_weights_and_velocity() -> None:
    frozen, moving = start(), start()
    optimizer = PaperSGD([{"params": [frozen]}, {"params": [moving]}], lr=0.1, weight_decay=0.05)
    first = optimizer.param_groups[0]

    def step() -> None:
        for weights in (frozen, moving):
            weights.grad = torch.ones(5, dtype=torch.float64)
        optimizer.step()

    step()
    first["lr"] = 0.0
    stood, velocity = frozen.detach().clone(), optimizer.state[frozen]["velocity"].clone()
    step()
    assert torch.equal(frozen, stood)
    assert torch.equal(optimizer.state[frozen]["velocity"], velocity)
    assert not torch.equal(moving, stood)
    first["lr"] = 0.01  # and goes on from where it stood
    step()
    expected = stood + 0.9 * velocity - 0.01 * (1 + 0.05 * stood)
    torch.testing.assert_close(frozen.detach(), expected, rtol=1e-12, atol=0)
