"""Operations around a layer: each becomes a module with a unique name and the right width."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp import create_model, list_models
from alexnet_exp.models import AlexNet
from alexnet_exp.models.spec import ACTIVATIONS, OPERATIONS

SUFFIXES = f"{'|'.join(ACTIVATIONS)}|lrn|spatial_norm|pool|bn|dropout"


def network(features: dict[str, Any], **others: Any) -> AlexNet:
    return AlexNet(input_size=32, num_classes=3, features=features, **{"classifier": {"fc8": {}}, **others})


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_before_and_after_a_layer_is_built_twice(op: str):
    net = network({"conv1": {"out_channels": 4}, "conv2": {"out_channels": 6, "before": [op], "then": [op]}})
    conv1, before, conv2, after = net.features
    assert (conv1.out_channels, conv2.out_channels) == (4, 6)
    assert type(before) is type(after) and before is not after
    if op == "batch_norm":
        assert (before.num_features, after.num_features) == (4, 6)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


# Definitions, not torch's modules.
FUNCTIONS = {
    "relu": lambda x: x.clamp(min=0),
    "tanh": lambda x: 2 / (1 + (-2 * x).exp()) - 1,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.special.erf(x / 2**0.5)) / 2,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x / (1 + (-x).exp()),
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_an_activation_matches_its_definition(op: str):
    net = network({"conv1": {"out_channels": 4, "then": [op]}}).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.features[1](x), FUNCTIONS[op](x), rtol=1e-12, atol=1e-12)
    assert net.features._modules[f"conv1_{op}"] is net.features[1]


@pytest.mark.parametrize("op", [*ACTIVATIONS, "batch_norm", "dropout"])
def test_an_operation_before_and_after_a_linear_layer_is_built_twice(op: str):
    fc6 = {"out_features": 5, "before": [op], "then": [op]}
    net = network({"conv1": {"out_channels": 4, "kernel_size": 32}}, classifier={"fc6": fc6, "fc8": {}})
    before, linear, after, _ = net.classifier
    assert isinstance(linear, nn.Linear) and type(before) is type(after) and before is not after
    if op == "batch_norm":
        assert (before.num_features, after.num_features) == (4, 5)


def test_a_repeated_operation_gets_a_number():
    ops = ["relu", "batch_norm", "max_pool", "relu", "avg_pool", "relu", "batch_norm"]
    net = network({"conv1": {"out_channels": 4, "then": ops}})
    expected = "conv1 conv1_relu conv1_bn conv1_pool conv1_relu2 conv1_pool2 conv1_relu3 conv1_bn2"
    assert [name for name, _ in net.features.named_children()] == expected.split()


def test_an_operation_does_not_take_the_name_of_a_layer():
    features = {"conv1": {"out_channels": 4, "then": ["relu"]}, "conv1_relu": {"out_channels": 5}}
    assert [name for name, _ in network(features).features.named_children()] == [
        "conv1",
        "conv1_relu2",
        "conv1_relu",
    ]


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("resnet")])
def test_modules_of_a_shipped_network_are_named_after_layer_and_operation(name: str):
    """Checkpoints depend on these names; shipped networks have no numbers in them."""
    with torch.device("meta"):
        net = create_model(name)
    layers = "|".join(["input", *net.spec.features, *net.spec.classifier])
    for module, _ in (*net.features.named_children(), *net.classifier.named_children()):
        assert re.fullmatch(f"({layers})(_({SUFFIXES}))?", module)
