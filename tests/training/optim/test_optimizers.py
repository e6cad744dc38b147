from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp.config.compose import group
from alexnet_exp.errors import UserError
from alexnet_exp.training.optim.build import build_optimizer


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


def test_biases_get_their_own_group_only_if_they_differ() -> None:
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


def test_a_layer_can_have_its_own_rate_and_decay_of_biases() -> None:
    own = {"lr_factor": 0.5, "bias_lr_factor": 1.0, "bias_weight_decay": 0.25}
    settings = {**group("optimizer", "sgd_paper"), "lr": 0.1, "layers": {"fc2": own}}
    groups = {g["name"]: g for g in build_optimizer(network(), settings).param_groups}
    seen = {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()}
    assert seen == {
        "weights": (0.1, 5e-4),
        "biases": (0.2, 0.0),
        "weights of fc2": (0.05, 5e-4),
        "biases of fc2": (0.05, 0.25),
    }


def test_a_layer_inherits_bias_settings_it_does_not_set() -> None:
    own = {"weight_decay": 1.0, "bias_lr_factor": None, "bias_weight_decay": None}
    settings = {**group("optimizer", "sgd_paper"), "lr": 0.1, "layers": {"fc2": own}}
    biases = next(
        g for g in build_optimizer(network(), settings).param_groups if g["name"] == "biases of fc2"
    )
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0.0)


@pytest.mark.parametrize(("how", "lr"), [("none", 0.1), ("linear", 3.2), ("sqrt", 0.1 * 32**0.5)])
def test_the_rate_is_scaled_by_the_global_batch(
    how: str, lr: float, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**group("optimizer", "sgd_paper"), "lr": 0.1, "lr_scaling": how}
    with caplog.at_level("INFO", logger="alexnet_exp"):
        weights, biases = build_optimizer(network(), settings, global_batch=8192).param_groups
    assert (weights["lr"], biases["lr"]) == (pytest.approx(lr), pytest.approx(2 * lr))
    assert bool(caplog.messages) == (how != "none")
    assert how == "none" or f"{lr:g}: scaled from 0.1 at batch size 256" in caplog.text


def test_scaling_the_rate_needs_a_known_global_batch() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr_scaling=sqrt"):
        build_optimizer(network(), {**group("optimizer", "sgd"), "lr_scaling": "sqrt"})


def nested() -> nn.Module:
    """Two blocks whose layers have the same short names, as in a ResNet."""
    block = {"conv1": nn.Linear(1, 1), "conv2": nn.Linear(1, 1)}
    model = nn.ModuleDict({"first": nn.ModuleDict(block), "stem": nn.Linear(1, 1)})
    model["second"] = nn.ModuleDict({"conv1": nn.Linear(1, 1), "stem": nn.Linear(1, 1)})
    return model


def with_rates(**layers: float) -> dict[str, float]:
    """Return the rate of every weight under `optimizer.layers`, at a rate of 1."""
    model = nested()
    settings = {**group("optimizer", "sgd"), "lr": 1.0}
    settings["layers"] = {name: {"lr_factor": factor} for name, factor in layers.items()}
    lr = {id(p): g["lr"] for g in build_optimizer(model, settings).param_groups for p in g["params"]}
    return {name: lr[id(p)] for name, p in model.named_parameters() if name.endswith("weight")}


def test_a_layer_is_found_by_its_full_name_or_a_unique_suffix() -> None:
    rates = with_rates(**{"first.conv1": 0.5, "conv2": 0.25, "stem": 0.125})  # stem is a whole name, too
    assert rates == {
        "first.conv1.weight": 0.5,
        "first.conv2.weight": 0.25,
        "stem.weight": 0.125,
        "second.conv1.weight": 1.0,
        "second.stem.weight": 1.0,
    }


def test_an_ambiguous_suffix_lists_its_layers() -> None:
    with pytest.raises(
        UserError, match=r"optimizer\.layers\.conv1 is ambiguous \(first\.conv1, second\.conv1\)"
    ):
        with_rates(conv1=0.5)


def test_naming_a_layer_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"first\.conv2 and conv2 are the same layer"):
        with_rates(**{"first.conv2": 0.5, "conv2": 0.5})


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UserError, match=r"optimizer\.layers\.fc3.*fc2"):
        build_optimizer(network(), {**group("optimizer", "sgd"), "layers": {"fc3": {"lr_factor": 0.5}}})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_settings_of_an_optimizer_are_torch_s(name: str) -> None:
    settings = group("optimizer", name) | {"lr": 0.1}
    made = build_optimizer(network(), settings)
    assert f"torch.optim.{type(made).__name__}" == settings["_target_"]
    (only,) = made.param_groups
    for key in ("lr", "weight_decay", "momentum", "nesterov", "eps"):
        assert only.get(key) == settings.get(key)


def test_frozen_parameters_are_not_optimised() -> None:
    model = network()
    model.get_submodule("conv1").requires_grad_(False)
    (only,) = build_optimizer(model, group("optimizer", "sgd")).param_groups
    assert [p.dim() for p in only["params"]] == [2, 1]


def test_an_unknown_optimizer_argument_is_named() -> None:
    with pytest.raises(UserError, match="betas"):
        build_optimizer(network(), {**group("optimizer", "sgd"), "betas": [0.9, 0.99]})
