"""The AlexNet family: one class that builds every member from its yaml."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
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
    """A stack of convolutions and fully connected layers, in the order of its yaml.

    Takes the keys of `spec.AlexNetConfig`. Parameters are named after the layers: `features.conv1.weight`,
    `classifier.fc6.bias`, `features.conv1_bn.weight`. `forward` maps images (N, in_channels, H, W) to logits
    (N, num_classes), not probabilities.

    Raises:
        UserError: Unknown key or operation, or an input too small for the layers (names the layer).
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.spec: spec.AlexNetConfig = spec.parse_network(config)
        self.input_size = self.spec.input_size
        with _clear_size_errors():
            self.features, channels, size = _features(self.spec)
            self.map_size = size if self.spec.map_size is None else self.spec.map_size
            self.classifier = _classifier(self.spec, channels * self.map_size**2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.features(x)
        if x.shape[-2:] != (self.map_size, self.map_size):
            if self.spec.map_size is None:
                raise UserError(
                    f"The network was built for {self.input_size}x{self.input_size} images and got "
                    f"{height}x{width}: set model.input_size to the size of the images."
                )
            # Only where the size differs: adaptive pooling has no deterministic backward on CUDA.
            x = functional.adaptive_avg_pool2d(x, self.map_size)
        return self.classifier(torch.flatten(x, 1))


@contextmanager
def _clear_size_errors() -> Iterator[None]:
    """Turn torch's errors about weights that do not fit in memory, or in an int64, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        # torch has no exception class for these; other RuntimeErrors are bugs and keep their traceback.
        if not re.search("overflow|memory", str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The network is too large for this machine ({reason}): make its layers narrower."
        ) from error


# -------------------------------------------------------------------------------------------- operations


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU, "gelu": nn.GELU, "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}  # fmt: skip


def _operation(
    op: str, own: Any, net: spec.AlexNetConfig, channels: int, spatial: bool
) -> tuple[str, nn.Module]:
    """Return (suffix of the module's name, module) for one operation of `before` or `then`."""
    if op in ACTIVATIONS:
        return op, ACTIVATIONS[op]()
    if op == "dropout":
        p = net.dropout if own.dropout is None else own.dropout
        return "dropout", nn.Dropout(p) if net.dropout_scaling == "train" else TestScaledDropout(p)
    settings = spec.inherit(getattr(own, op), getattr(net, op))
    if op == "batch_norm":
        kind: type[nn.Module] = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return "bn", kind(channels, **settings)
    if op == "lrn":
        return "lrn", LocalResponseNorm(**settings)
    if op == "spatial_norm":
        return "spatial_norm", SpatialResponseNorm(**settings)
    if op == "max_pool":
        return "pool", MaxPool2d(**settings)
    # As in cuda-convnet, where a window at the border averages over the pixels inside the map only.
    return "pool", nn.AvgPool2d(**settings, count_include_pad=False)


def _add_operations(
    modules: dict[str, nn.Module],
    ops: list[str],
    name: str,
    own: Any,
    net: spec.AlexNetConfig,
    channels: int,
    spatial: bool,
) -> None:
    """Add the modules of `before` or `then` under unique names: conv2_relu, then conv2_relu2."""
    layers = net.features if spatial else net.classifier
    for op in ops:
        suffix, module = _operation(op, own, net, channels, spatial)
        names = (f"{name}_{suffix}{number}" for number in chain([""], count(2)))
        # A layer may itself be called conv2_relu; checkpoints depend on its name.
        modules[next(key for key in names if key not in modules and key not in layers)] = module


# -------------------------------------------------------------------------------------------- building


def _features(net: spec.AlexNetConfig) -> tuple[nn.Sequential, int, int]:
    """Return (feature layers, channels of the last map, its side)."""
    modules: dict[str, nn.Module] = {}
    # `net` twice: operations on the image have the settings of the whole network.
    _add_operations(modules, net.input, "input", net, net, net.in_channels, True)
    channels, size = net.in_channels, net.input_size
    sizes = map_sizes(net, net.input_size)  # raises before any weight is allocated
    for name, layer in net.features.items():
        _add_operations(modules, layer.before, name, layer, net, channels, True)
        conv = _convolution(layer, channels, size)
        # In the order of the yaml, on which the weights of a seed depend.
        initialise(conv, name, net.init, hidden=False, std=layer.weight_std, bias=layer.bias_init)
        modules[name] = conv
        channels, size = layer.out_channels, sizes[name]
        _add_operations(modules, layer.then, name, layer, net, channels, True)
    return nn.Sequential(OrderedDict(modules)), channels, size


def _convolution(layer: spec.ConvLayer, channels: int, size: int) -> nn.Module:
    shape = (layer.kernel_size, layer.stride, layer.padding)
    if layer.local:
        return LocallyConnected2d(channels, layer.out_channels, size, *shape, bias=layer.bias)
    return Conv2d(channels, layer.out_channels, *shape, layer.groups, layer.bias, layer.ceil_mode)


def _classifier(net: spec.AlexNetConfig, in_features: int) -> nn.Sequential:
    modules: dict[str, nn.Module] = {}
    last = list(net.classifier)[-1]
    for name, layer in net.classifier.items():
        _add_operations(modules, layer.before, name, layer, net, in_features, False)
        out_features = net.num_classes if layer.out_features is None else layer.out_features
        linear = nn.Linear(in_features, out_features, bias=layer.bias)
        initialise(linear, name, net.init, hidden=name != last, std=layer.weight_std, bias=layer.bias_init)
        modules[name] = linear
        in_features = out_features
        _add_operations(modules, layer.then, name, layer, net, in_features, False)
    return nn.Sequential(OrderedDict(modules))
