"""Build optimizers from conf/optimizer, with separate settings for biases and single layers as in the papers."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alexnet_exp.errors import UserError, nearest
from alexnet_exp.targets import build, locate
from alexnet_exp.training.optim.auto import learning_rate

log = logging.getLogger(__name__)
# fused=True updates in a single pass over memory: ten times faster on CPU, identical results.
_FUSED = ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW")


def build_optimizer(
    model: nn.Module, config: Mapping[str, Any], fused: bool = True, global_batch: int | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        model: All parameters that require gradients are optimised.
        config: Keys of conf/optimizer: `_target_` and its arguments; `bias_lr_factor` multiplies the learning rate
            of biases, `bias_weight_decay` replaces their weight decay (None: `weight_decay`). `layers` maps a layer to
            its own settings: an `lr_factor` for weights and biases, a `weight_decay` for its weights, and the two
            bias settings. A layer is given by its dotted name or by any suffix of it that is unique.
            `lr_scaling` scales `lr` by global_batch / `base_batch` ('linear') or its square root ('sqrt').
        fused: Whether torch's fused implementation may be used; it cannot clip under gradient scaling.
        global_batch: Images per optimizer step, over all devices and accumulated batches.

    Returns:
        An optimizer with one parameter group per combination of settings, named 'weights', 'biases',
        'weights of fc8', ...

    Raises:
        UserError: For an argument that the optimizer does not accept, a layer that the network does not have, or
            `lr_scaling` without a known global batch.
    """
    options = _with_defaults(config)
    if options.get("lr") == "auto":  # outside of a run, which settles it before
        options["lr"] = learning_rate(model, options, global_batch)
    options = _with_scaled_rate(options, global_batch)
    bias_factor = float(options.pop("bias_lr_factor", 1.0))
    bias_decay = options.pop("bias_weight_decay", None)
    decay = options.get("weight_decay", 0.0)
    bias_decay = decay if bias_decay is None else bias_decay
    layers = {name: own for name, own in (options.pop("layers", None) or {}).items() if own is not None}
    if fused and options["_target_"] in _FUSED:
        options["fused"] = True
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    keys = _keys(layers, {_layer(name) for name, _ in named})
    if bias_factor == 1.0 and bias_decay == decay and not layers:
        return build(options, params=[p for _, p in named])
    shared = {"bias_lr_factor": bias_factor, "weight_decay": decay, "bias_weight_decay": bias_decay}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        key = keys.get(_layer(name))
        own = layers[key] if key else {}
        settings = {**shared, **{k: v for k, v in own.items() if v is not None}}
        group = _group(options["lr"], settings, is_bias=name.endswith("bias"))
        group["name"] += f" of {key}" if key else ""
        groups.setdefault(group["name"], {**group, "params": []})["params"].append(parameter)
    return build(options, params=list(groups.values()))


def images_of_a_step(trainer: Any) -> int | None:
    """Return the images per optimizer step, over all devices and accumulated batches; None if the data does not say."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    return batch_size * trainer.accumulate_grad_batches if isinstance(batch_size, int) else None


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the class's own defaults for `lr` and `weight_decay` where they are not set."""
    if "_target_" not in config:
        return dict(config)
    parameters = inspect.signature(locate(config["_target_"])).parameters
    own = {name: parameters[name].default for name in ("lr", "weight_decay") if name in parameters}
    return {**{name: value for name, value in own.items() if isinstance(value, int | float)}, **config}


def _with_scaled_rate(config: Mapping[str, Any], global_batch: int | None) -> dict[str, Any]:
    """Apply `lr_scaling` to `lr` and drop the two scaling keys."""
    options = dict(config)
    how, base = options.pop("lr_scaling", "none"), options.pop("base_batch", 256)
    if how == "none":
        return options
    if global_batch is None:
        raise UserError(
            f"optimizer.lr_scaling={how} needs the global batch size, unknown here: set optimizer.lr_scaling=none."
        )
    factor = global_batch / base
    options["lr"] *= math.sqrt(factor) if how == "sqrt" else factor
    log.info(
        "Learning rate %g: scaled from %g at batch size %d to batch size %d (lr_scaling=%s).",
        options["lr"], config["lr"], base, global_batch, how,
    )  # fmt: skip
    return options


def _group(lr: float, settings: Mapping[str, Any], is_bias: bool) -> dict[str, Any]:
    """Return name, learning rate and weight decay of a parameter group of weights or biases."""
    lr = lr * settings.get("lr_factor", 1.0)
    if not is_bias:
        return {"name": "weights", "lr": lr, "weight_decay": settings["weight_decay"]}
    rate = lr * settings["bias_lr_factor"]
    return {"name": "biases", "lr": rate, "weight_decay": settings["bias_weight_decay"]}


def _layer(parameter: str) -> str:
    """Return 'features.conv1' for 'features.conv1.weight'."""
    return parameter.rpartition(".")[0] or parameter


def _keys(layers: Iterable[str], known: set[str]) -> dict[str, str]:
    """Map each layer to its key in `optimizer.layers`: the full name, or a suffix that no other layer has."""
    found: dict[str, str] = {}
    for key in layers:
        names = [key] if key in known else sorted(name for name in known if name.endswith(f".{key}"))
        if not names:
            ends = known | {name.rpartition(".")[2] for name in known}
            raise UserError(f"optimizer.layers.{key}: the network has no such layer.{nearest(key, ends)}")
        if len(names) > 1:
            raise UserError(f"optimizer.layers.{key} is ambiguous ({', '.join(names)}): use the full name.")
        if names[0] in found:
            raise UserError(
                f"optimizer.layers: {found[names[0]]} and {key} are the same layer; leave one out."
            )
        found[names[0]] = key
    return found
