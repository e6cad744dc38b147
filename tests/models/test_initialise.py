"""Initial weights and biases."""

from __future__ import annotations

import math

import published
import pytest
import torch
from torch import nn

from alexnet_exp import create_model
from alexnet_exp.models import AlexNet
from alexnet_exp.models.layers import LocallyConnected2d

LAYERS = {"conv2": (128, 64, 3), "conv3": (96, 128, 3), "fc6": (256, 864), "fc8": (200, 256)}


def network(init: str) -> AlexNet:
    """Return a small network with every kind of layer that the schemes distinguish."""
    torch.manual_seed(0)
    features = {
        "conv1": {"out_channels": 64, "kernel_size": 3},
        "conv2": {"out_channels": 128, "kernel_size": 3},
        "conv3": {"out_channels": 96, "kernel_size": 3},
    }
    classifier: dict[str, dict[str, int]] = {"fc6": {"out_features": 256}, "fc8": {}}
    return AlexNet(input_size=9, num_classes=200, init=init, features=features, classifier=classifier)


def layer(net: nn.Module, name: str) -> nn.Module:
    return net.get_submodule(f"classifier.{name}" if name.startswith("fc") else f"features.{name}")


def assert_normal(weight: torch.Tensor, std: float) -> None:
    """Check mean, standard deviation and tails, each within five standard errors."""
    count = weight.numel()
    assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * count)
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(count)
    assert weight.abs().max() > 3 * std  # neither uniform nor truncated at two standard deviations


def assert_uniform(values: torch.Tensor, bound: float) -> None:
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.9 * bound
    assert abs(values.std().item() / (bound / math.sqrt(3)) - 1) < 0.1


@pytest.mark.parametrize(
    ("init", "name", "std", "bias"),
    [
        ("normal", "conv2", 0.01, 0.0),
        ("normal", "fc6", 0.01, 0.0),
        ("paper", "conv2", 0.01, 1.0),
        ("paper", "conv3", 0.01, 0.0),
        ("paper", "fc6", 0.01, 1.0),
        ("paper", "fc8", 0.01, 0.0),
        ("original", "conv2", 0.01, 1.0),
        ("original", "conv3", 0.03, 0.0),
        ("original", "fc6", 0.01, 1.0),
        ("caffe", "conv2", 0.01, 0.1),
        ("caffe", "fc6", 0.005, 0.1),
        ("caffe", "fc8", 0.01, 0.0),
        ("he", "conv3", math.sqrt(2 / (128 * 9)), 0.0),
        ("he", "fc8", math.sqrt(2 / 256), 0.0),
    ],
)
def test_gaussian_schemes(init: str, name: str, std: float, bias: float):
    module = layer(network(init), name)
    assert_normal(module.weight, std)
    assert (module.bias == bias).all()


def test_keras_is_glorot_uniform_without_biases():
    net = network("keras")
    assert_uniform(layer(net, "conv2").weight, math.sqrt(6 / (64 * 9 + 128 * 9)))
    assert_uniform(layer(net, "fc8").weight, math.sqrt(6 / (256 + 200)))
    assert not any(layer(net, name).bias.any() for name in LAYERS)


def test_torch_keeps_torchs_initialisation():
    net = network("torch")
    assert_uniform(layer(net, "conv2").weight, 1 / math.sqrt(64 * 9))
    assert_uniform(layer(net, "conv2").bias, 1 / math.sqrt(64 * 9))
    assert_uniform(layer(net, "fc6").weight, 1 / math.sqrt(96 * 9))


@pytest.mark.parametrize(("init", "fan"), [("he", 16 * 9), ("torch", 16 * 9)])
def test_fan_in_of_untied_weights_is_that_of_one_position(init: str, fan: int):
    torch.manual_seed(0)
    features = {"conv1": {"out_channels": 16}, "local2": {"out_channels": 32, "padding": 1, "local": True}}
    net = AlexNet(input_size=8, init=init, features=features, classifier={"fc8": {}}, num_classes=3)
    if init == "he":
        assert_normal(net.features.local2.weight, math.sqrt(2 / fan))
    else:
        assert_uniform(net.features.local2.weight, 1 / math.sqrt(fan))


def published_network(name: str) -> nn.Module:
    """Build a network of conf/model/; hidden layers of 4096 units get 64, which no stated number depends on."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = create_model(name).spec.classifier
    return create_model(
        name, classifier={n: {"out_features": 64} for n, own in layers.items() if own.out_features == 4096}
    )


@pytest.mark.parametrize("name", sorted(published.INITIAL))
def test_published_networks_are_initialised_as_published(name: str):
    net = published_network(name)
    stated, modules = (
        published.INITIAL[name],
        dict([*net.features.named_children(), *net.classifier.named_children()]),
    )
    assert {*stated} == {
        n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear | LocallyConnected2d)
    }
    for layer_name, (std, bias) in stated.items():
        module = modules[layer_name]
        assert_normal(module.weight, std)
        assert module.bias is None or (module.bias == bias).all()


@pytest.mark.parametrize("name", sorted(published.GLOROT))
def test_keras_networks_start_with_glorot_uniform(name: str):
    net = published_network(name)
    for layer_name, (fan_in, fan_out) in published.GLOROT[name].items():
        assert_uniform(layer(net, layer_name).weight, math.sqrt(6 / (fan_in + fan_out)))
    assert_uniform(
        layer(net, "fc8").weight, math.sqrt(6 / (64 + 10 if name != "alexnet_valid" else 64 + 1000))
    )
    modules = [*net.features, *net.classifier]
    assert not any(m.bias.any() for m in modules if isinstance(m, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize("name", sorted(published.TORCH_START))
def test_the_others_keep_torchs_initialisation(name: str):
    net = published_network(name)
    conv2 = layer(net, "conv2")
    bound = 1 / math.sqrt(conv2.weight[0].numel())
    assert_uniform(conv2.weight, bound)
    assert conv2.bias.abs().max() <= bound
    assert conv2.bias.std() > bound / 3


def test_the_initialisation_of_every_network_is_tested():
    assert {*published.INITIAL, *published.GLOROT, *published.TORCH_START} == set(published.SIDES)


@pytest.mark.parametrize("conv", ["conv1", "layer4.1.conv2"])
def test_resnet18_cifar_starts_with_he_normal_fan_out(conv: str):
    torch.manual_seed(0)
    weight = create_model("resnet18_cifar").get_parameter(f"{conv}.weight")
    std = math.sqrt(2 / (weight.shape[0] * 9))
    assert weight.std().item() == pytest.approx(std, rel=0.08)
    assert weight.abs().max() > 3 * std  # a uniform distribution ends at 1.73 of its standard deviations
