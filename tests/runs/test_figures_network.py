"""Networks taken apart: the same for every network we ship."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alexnet_exp import create_model, list_models
from alexnet_exp.models.activations import first_towers, hidden, last_linear, layers_of, responses


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A network of the paper's form, with narrow layers."""
    torch.manual_seed(0)
    widths = {f"conv{i}": {"out_channels": 8} for i in range(1, 6)}
    narrow = {"features": widths, "classifier": {"fc6": {"out_features": 12}, "fc7": {"out_features": 10}}}
    return create_model("alexnet_paper", num_classes=3, **narrow).eval()


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_layers_in_order_and_an_end(name: str):
    with torch.device("meta"):
        network = create_model(name)
    layers = layers_of(network)
    last = last_linear(network)
    assert last is not None
    assert list(layers.values())[-1] is last
    assert next(iter(layers)) == "conv1"
    assert len(layers) >= 4
    order = {id(module): i for i, module in enumerate(network.modules())}
    positions = [order[id(module)] for module in layers.values()]
    assert positions == sorted(positions)


def test_two_towers_share_the_first_filters(small: nn.Module):
    first, second = first_towers(small)
    weight = small.get_parameter("features.conv1.weight").detach().numpy()
    assert (first == weight[:4]).all()
    assert (second == weight[4:]).all()


def test_network_without_groups_has_one_tower():
    (tower,) = first_towers(create_model("alexnet_cifar"))
    assert tower.shape == (64, 3, 11, 11)


def test_a_layer_answers_after_its_activation(small: nn.Module):
    x = torch.randn(2, 3, 224, 224)
    answers = responses(small, x)
    assert list(answers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert answers["conv1"].shape == (2, 8, 55, 55)
    features = small.get_submodule("features")
    expected = features.get_submodule("conv1")(x).relu()
    torch.testing.assert_close(answers["conv1"], expected.detach())
    torch.testing.assert_close(answers["fc8"], small(x).detach())


def test_a_resnet_answers_by_stage():
    network = create_model("resnet18_cifar", num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    answers = responses(network, x)
    assert list(answers) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    stem = network.get_submodule("bn1")(network.get_submodule("conv1")(x)).relu()
    torch.testing.assert_close(answers["conv1"], stem.detach())
    assert answers["layer4"].shape == (1, 512, 4, 4)


def test_last_hidden_layer_times_the_last_weights_are_the_logits(small: nn.Module):
    x, last = torch.randn(2, 3, 224, 224), last_linear(small)
    assert last is not None
    features = hidden(small, last, x)
    assert features.shape == (2, 10)
    with torch.no_grad():
        torch.testing.assert_close(features @ last.weight.T + last.bias, small(x))
