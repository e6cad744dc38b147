"""Optimizers from conf/optimizer, with the published treatment of biases and of single layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from alexnet_exp.errors import UserError, nearest
from alexnet_exp.targets import build

# Their fused form does the whole update in one pass over memory: ten times faster on a CPU, the same numbers.
_FUSED = ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW")


def build_optimizer(model: nn.Module, config: Mapping[str, Any], fused: bool = True) -> torch.optim.Optimizer:
    """Make the optimizer of a network.

    Args:
        model: Its parameters that require a gradient are optimised.
        config: Keys of conf/optimizer: `_target_` and its arguments; `bias_lr_factor` multiplies the learning rate
            of biases, `bias_weight_decay` replaces their decay (None: `weight_decay`), `layers` maps a layer to an
            `lr_factor` of all its rates and a `weight_decay` of its weights alone.
        fused: Whether torch's fused form may be used; not under gradient scaling with clipping.

    Returns:
        An optimizer with a parameter group for every different treatment, named 'weights', 'biases',
        'weights of fc8', ...

    Raises:
        UserError: For an argument that the optimizer does not take, or a layer that the network does not have.
    """
    options = dict(config)
    bias_factor = float(options.pop("bias_lr_factor", 1.0))
    bias_decay = options.pop("bias_weight_decay", None)
    layers = {name: own for name, own in (options.pop("layers", None) or {}).items() if own is not None}
    decay = options.get("weight_decay", 0.0)
    if fused and options["_target_"] in _FUSED:
        options["fused"] = True
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    _check_layers(layers, [name for name, _ in named])
    if bias_factor == 1.0 and bias_decay in (None, decay) and not layers:
        return build(options, params=[p for _, p in named])
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        layer, is_bias = _layer(name), name.endswith("bias")
        own = layers.get(layer, {})
        weight_decay = bias_decay if is_bias else own.get("weight_decay")
        group = {
            "name": ("biases" if is_bias else "weights") + (f" of {layer}" if layer in layers else ""),
            "lr": options["lr"] * own.get("lr_factor", 1.0) * (bias_factor if is_bias else 1.0),
            "weight_decay": decay if weight_decay is None else weight_decay,
        }
        groups.setdefault(group["name"], {**group, "params": []})["params"].append(parameter)
    return build(options, params=list(groups.values()))


def _layer(parameter: str) -> str:
    """Return 'conv1' for 'features.conv1.weight'."""
    return parameter.split(".")[-2] if "." in parameter else parameter


def _check_layers(layers: Mapping[str, Any], parameters: list[str]) -> None:
    known = {_layer(name) for name in parameters}
    for layer in layers:
        if layer not in known:
            raise UserError(
                f"optimizer.layers.{layer}: the network has no such layer.{nearest(layer, known)}"
            )
