"""The AlexNet family: one class that builds any member from its layer list."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alexnet_exp.errors import UserError
from alexnet_exp.models import spec
from alexnet_exp.models.arithmetic import map_sizes
from alexnet_exp.models.initialise import initialise
from alexnet_exp.models.layers import (
    Conv2d,
    LocallyConnected2d,
    LocalResponseNorm,
    MaxPool2d,
    SpatialResponseNorm,
    TestScaledDropout,
)


class AlexNet(nn.Module):
    """A stack of convolutions and fully connected layers, in the order its yaml says.

    Takes the keys of `spec.AlexNetConfig`. Parameters are named after the layers: `features.conv1.weight`,
    `classifier.fc6.bias`, `features.conv1_bn.weight`. `forward` maps images (N, in_channels, H, W) to logits
    (N, num_classes), never to probabilities.

    Raises:
        UserError: For an unknown key or operation, or an input too small for the layers (names the layer).
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.spec: spec.AlexNetConfig = spec.parse_network(config)
        self.input_size = self.spec.input_size
        self.features, channels, size = _features(self.spec)
        self.map_size = size if self.spec.map_size is None else self.spec.map_size
        self.classifier = _classifier(self.spec, channels * self.map_size**2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.features(x)
        if x.shape[-2:] != (self.map_size, self.map_size):
            # Skipped where the map already fits: its backward refuses deterministic CUDA.
            if self.spec.map_size is None:
                raise UserError(
                    f"The network was built for {self.input_size}x{self.input_size} images and got "
                    f"{height}x{width}: set model.input_size to the size of the images."
                )
            x = functional.adaptive_avg_pool2d(x, self.map_size)
        return self.classifier(torch.flatten(x, 1))


# -------------------------------------------------------------------------------------------- operations


def _operation(
    op: str, own: Any, net: spec.AlexNetConfig, channels: int, spatial: bool, where: str
) -> tuple[str, nn.Module]:
    """Return the suffix of the module's name and the module for one word of `before` or `then`."""
    if op == "relu":
        return "relu", nn.ReLU()
    if op == "dropout":
        p = net.dropout if own.dropout is None else own.dropout
        return "dropout", nn.Dropout(p) if net.dropout_scaling == "train" else TestScaledDropout(p)
    if op != "batch_norm" and not spatial:
        raise UserError(f"{where}: {op} needs a map; it cannot follow a fully connected layer.")
    return _shared_operation(op, spec.inherit(getattr(own, op), getattr(net, op)), channels, spatial, where)


def _shared_operation(
    op: str, settings: dict[str, Any], channels: int, spatial: bool, where: str
) -> tuple[str, nn.Module]:
    if op == "batch_norm":
        kind: type[nn.Module] = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return "bn", kind(channels, **settings)
    if op == "lrn":
        if channels % settings["groups"]:
            raise UserError(
                f"{where}: lrn.groups={settings['groups']} does not divide its {channels} channels."
            )
        return "lrn", LocalResponseNorm(**settings)
    if op == "spatial_norm":
        return "spatial_norm", SpatialResponseNorm(**settings)
    if op == "max_pool":
        return "pool", MaxPool2d(**settings)
    return "pool", nn.AvgPool2d(**settings, count_include_pad=False)


def _operations(
    ops: list[str], name: str, own: Any, net: spec.AlexNetConfig, channels: int, spatial: bool
) -> dict[str, nn.Module]:
    group = "features" if spatial else "classifier"
    modules: dict[str, nn.Module] = {}
    for op in ops:
        suffix, module = _operation(op, own, net, channels, spatial, f"model.{group}.{name}")
        key = f"{name}_{suffix}"
        modules[key if key not in modules else f"{key}{len(modules)}"] = module
    return modules


# -------------------------------------------------------------------------------------------- building


def _features(net: spec.AlexNetConfig) -> tuple[nn.Sequential, int, int]:
    """Return the feature layers, and the channels and side of the last map."""
    if {"max_pool", "avg_pool"} & set(net.input):
        raise UserError("model.input cannot pool: pool after conv1, or change model.input_size.")
    modules: dict[str, nn.Module] = _operations(net.input, "input", net, net, net.in_channels, True)
    channels, size = net.in_channels, net.input_size
    sizes = map_sizes(net, net.input_size)
    for name, layer in net.features.items():
        modules |= _operations(layer.before, name, layer, net, channels, True)
        conv = _convolution(name, layer, channels, size)
        initialise(conv, name, net.init, hidden=False, std=layer.weight_std, bias=layer.bias_init)
        modules[name] = conv
        channels, size = layer.out_channels, sizes[name]
        modules |= _operations(layer.then, name, layer, net, channels, True)
    return nn.Sequential(OrderedDict(modules)), channels, size


def _convolution(name: str, layer: spec.ConvLayer, channels: int, size: int) -> nn.Module:
    where = f"model.features.{name}"
    if channels % layer.groups or layer.out_channels % layer.groups:
        raise UserError(
            f"{where}.groups={layer.groups} does not divide its {channels} input and {layer.out_channels} "
            "output channels."
        )
    shape = (layer.kernel_size, layer.stride, layer.padding)
    if not layer.local:
        return Conv2d(channels, layer.out_channels, *shape, layer.groups, layer.bias, layer.ceil_mode)
    if layer.groups != 1 or layer.ceil_mode or layer.before or isinstance(layer.padding, str):
        raise UserError(
            f"{where}: a local layer has no groups, ceil_mode, 'same' padding or operations before it."
        )
    return LocallyConnected2d(channels, layer.out_channels, size, *shape, bias=layer.bias)


def _classifier(net: spec.AlexNetConfig, in_features: int) -> nn.Sequential:
    modules: dict[str, nn.Module] = {}
    last = list(net.classifier)[-1]
    for name, layer in net.classifier.items():
        if (layer.out_features is None) != (name == last):
            raise UserError(f"model.classifier.{name}: every layer but the last needs out_features.")
        modules |= _operations(layer.before, name, layer, net, in_features, False)
        out_features = net.num_classes if layer.out_features is None else layer.out_features
        linear = nn.Linear(in_features, out_features, bias=layer.bias)
        initialise(linear, name, net.init, hidden=name != last, std=layer.weight_std, bias=layer.bias_init)
        modules[name] = linear
        in_features = out_features
        modules |= _operations(layer.then, name, layer, net, in_features, False)
    return nn.Sequential(OrderedDict(modules))
