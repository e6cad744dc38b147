"""Logits of every network against the same network written in plain torch functions (compositions.py)."""

from __future__ import annotations

import published
import pytest
import torch
from compositions import COMPOSITIONS
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp import create_model

WIDTH = 24  # two groups of 12, more than the widest window of an LRN


def narrow(name: str) -> nn.Module:
    """Build a network with its published geometry, few channels, and weights that let every layer matter."""
    torch.manual_seed(0)
    with torch.device("meta"):
        spec = create_model(name).spec
    features = {layer: {"out_channels": WIDTH} for layer in spec.features}
    hidden = {
        n: {"out_features": WIDTH} for n, layer in spec.classifier.items() if layer.out_features is not None
    }
    net = create_model(name, num_classes=5, features=features, classifier=hidden).double().eval()
    for parameter in net.parameters():
        wide = parameter.dim() > 1
        nn.init.normal_(parameter, std=(2 / parameter.shape[1:].numel()) ** 0.5 if wide else 0.3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.002, 0.5)  # small enough for eps to matter
    return net


def images(net: nn.Module) -> Tensor:
    """Return pixels in the range the sources use: LRN hardly changes small values."""
    shape = (2, net.spec.in_channels, net.input_size, net.input_size)
    return 50 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(COMPOSITIONS))
def test_logits_match_plain_torch(name: str):
    net = narrow(name)
    x = images(net)
    expected = COMPOSITIONS[name](net, x)
    assert expected.shape == (2, 5)
    # The comparison is not trivial.
    assert (expected[0] - expected[1]).abs().min() > 1e-6 * expected.abs().max()
    torch.testing.assert_close(net(x), expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


def test_every_network_has_a_plain_torch_version():
    assert set(COMPOSITIONS) == set(published.SIDES)


def kuangliu(net: nn.Module, x: Tensor) -> Tensor:
    """ResNet-18 of pytorch-cifar: 3 x 3 stem, four stages of two blocks, mean, one linear layer."""

    def part(prefix: str, conv: str, norm: str, y: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        weight, bn = net.get_submodule(prefix + conv).weight, net.get_submodule(prefix + norm)
        y = functional.conv2d(y, weight, stride=stride, padding=padding)
        return functional.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    y = part("", "conv1", "bn1", x).relu()
    for stage, first in ((1, 1), (2, 2), (3, 2), (4, 2)):
        for block, stride in ((0, first), (1, 1)):
            prefix = f"layer{stage}.{block}."
            through = part(prefix, "conv2", "bn2", part(prefix, "conv1", "bn1", y, stride).relu())
            shortcut = part(prefix, "downsample.0", "downsample.1", y, 2, 0) if stride == 2 else y
            y = (through + shortcut).relu()
    return functional.linear(y.mean((2, 3)), net.fc.weight, net.fc.bias)


@torch.no_grad()
def test_resnet18_cifar_matches_pytorch_cifar():
    torch.manual_seed(0)
    net = create_model("resnet18_cifar").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 32, 32)
    expected = kuangliu(net, x)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
