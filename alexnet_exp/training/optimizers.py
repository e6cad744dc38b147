"""Optimizers from conf/optimizer, with the published treatment of biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from alexnet_exp.targets import build


def build_optimizer(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Make the optimizer of a network.

    Args:
        model: Its parameters that require a gradient are optimised.
        config: Keys of conf/optimizer: `_target_` and its arguments; `bias_lr_factor` multiplies the learning rate
            of biases, `bias_weight_decay` replaces their decay (None: the same as the weights').

    Returns:
        An optimizer with one parameter group, or two ('weights', 'biases') where biases differ.

    Raises:
        UserError: For an argument that the optimizer does not take.
    """
    options = dict(config)
    factor = float(options.pop("bias_lr_factor", 1.0))
    bias_decay = options.pop("bias_weight_decay", None)
    decay = options.get("weight_decay", 0.0)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if factor == 1.0 and bias_decay in (None, decay):
        return build(options, params=[p for _, p in named])
    biases = {
        "name": "biases",
        "params": [p for name, p in named if name.endswith("bias")],
        "lr": options["lr"] * factor,
        "weight_decay": decay if bias_decay is None else bias_decay,
    }
    weights = {"name": "weights", "params": [p for name, p in named if not name.endswith("bias")]}
    return build(options, params=[weights, biases])
