from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.training.optimizers import build_optimizer


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Sequential()
    layers.add_module("conv1", nn.Conv2d(2, 3, 3))
    layers.add_module("relu", nn.ReLU())
    layers.add_module("flat", nn.Flatten())
    layers.add_module("fc2", nn.Linear(12, 4))
    return layers.double()


def gradients(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    model.zero_grad()
    model(torch.randn(5, 2, 4, 4, dtype=torch.float64)).square().sum().backward()


def paper_sgd(
    value: torch.Tensor, velocity: torch.Tensor, slope: torch.Tensor, lr: float, decay: float
) -> None:
    """Take one step as section 5 of the paper writes it, at a constant rate."""
    velocity.mul_(0.9).sub_(lr * decay * value).sub_(lr * slope)
    value.add_(velocity)


@pytest.mark.parametrize(
    "changes", [{}, {"bias_lr_factor": 3.0, "bias_weight_decay": 0.01}, {"bias_lr_factor": 1.0}]
)
def test_sgd_paper_follows_the_paper_s_formula(changes: dict[str, Any]) -> None:
    settings = {**group("optimizer", "sgd_paper"), "lr": 0.02, "weight_decay": 0.1, **changes}
    factor, bias_decay = settings["bias_lr_factor"], settings["bias_weight_decay"]
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, settings)
    velocities = {name: torch.zeros_like(p) for name, p in theirs.named_parameters()}
    for step in range(5):
        gradients(ours, step)
        optimizer.step()
        gradients(theirs, step)
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                bias = name.endswith("bias")
                assert p.grad is not None
                paper_sgd(
                    p, velocities[name], p.grad, 0.02 * factor if bias else 0.02, bias_decay if bias else 0.1
                )
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0, msg=name)


def test_biases_have_a_group_of_their_own_only_where_they_differ() -> None:
    assert len(build_optimizer(network(), group("optimizer", "sgd")).param_groups) == 1
    weights, biases = build_optimizer(network(), group("optimizer", "sgd_paper")).param_groups
    assert [p.dim() for p in weights["params"]] == [4, 2]
    assert [p.dim() for p in biases["params"]] == [1, 1]
    assert (biases["lr"], biases["weight_decay"]) == (2 * weights["lr"], 0.0)


def test_a_layer_can_have_its_own_rate_and_decay() -> None:
    settings = {
        **group("optimizer", "sgd"),
        "lr": 0.1,
        "layers": {"fc2": {"lr_factor": 0.5, "weight_decay": 1.0}},
    }
    groups = {g["name"]: g for g in build_optimizer(network(), settings).param_groups}
    assert (groups["weights of fc2"]["lr"], groups["weights of fc2"]["weight_decay"]) == (0.05, 1.0)
    assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (0.1, settings["weight_decay"])


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"optimizer\.layers\.fc3.*fc2"):
        build_optimizer(network(), {**group("optimizer", "sgd"), "layers": {"fc3": {"lr_factor": 0.5}}})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_settings_of_an_optimizer_are_torch_s(name: str) -> None:
    settings = group("optimizer", name)
    made = build_optimizer(network(), settings)
    assert f"torch.optim.{type(made).__name__}" == settings["_target_"]
    (only,) = made.param_groups
    for key in ("lr", "weight_decay", "momentum", "nesterov", "eps"):
        assert only.get(key) == settings.get(key)


def test_frozen_parameters_are_left_alone() -> None:
    model = network()
    model.get_submodule("conv1").requires_grad_(False)
    (only,) = build_optimizer(model, group("optimizer", "sgd")).param_groups
    assert [p.dim() for p in only["params"]] == [2, 1]


def test_an_argument_that_the_optimizer_does_not_take_is_named() -> None:
    with pytest.raises(UserError, match="betas"):
        build_optimizer(network(), {**group("optimizer", "sgd"), "betas": [0.9, 0.99]})
