"""Build optimizers from conf/optimizer, with separate settings for biases, norms and layers."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alexnet_exp.errors import UserError
from alexnet_exp.targets import build, locate
from alexnet_exp.training.layer_names import match_layers
from alexnet_exp.training.optim.auto import NORMS, learning_rate

log = logging.getLogger(__name__)
# fused=True updates in a single pass over memory: ten times faster on CPU, identical results.
_FUSED = ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW")
_FACTORS = "lr_factors"  # attribute of an optimizer: the factor of each of its groups
_MOST = 10  # rates in one line of the log


def build_optimizer(
    model: nn.Module, config: Mapping[str, Any], fused: bool = True, global_batch: int | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of a network.

    Args:
        model: All parameters that require gradients are optimised.
        config: Keys of conf/optimizer: `_target_` and its arguments; `bias_lr_factor` multiplies the learning rate
            of biases, `bias_weight_decay` replaces their weight decay (None: `weight_decay`), and `norm_weight_decay`
            that of the weights and biases of batch norm. `layers` maps layers (`match_layers`) to their own
            settings: an `lr_factor` for weights and biases, a `weight_decay` for weights, and the two bias settings.
            `layer_decay` multiplies the rate of a layer by layer_decay ** depth, see `depths`.
            `lr_scaling` scales `lr` by global_batch / `base_batch` ('linear') or its square root ('sqrt').
        fused: Whether torch's fused implementation may be used; it cannot clip under gradient scaling.
        global_batch: Images per optimizer step, over all devices and accumulated batches.

    Returns:
        An optimizer with one parameter group per combination of settings, in the order of the network: 'weights',
        'biases', 'weights of fc8', 'weights (norm)', ...; with `layer_decay`, groups for every layer.

    Raises:
        UserError: For an argument that the optimizer does not accept, a layer that the network does not have, or
            `lr_scaling` without a known global batch.
    """
    options = _with_defaults(config)
    if options.get("lr") == "auto":  # outside of a run, which settles it before
        options["lr"] = learning_rate(model, options, global_batch)
    options = _with_scaled_rate(options, global_batch)
    decay = options.get("weight_decay", 0.0)
    bias_decay = options.pop("bias_weight_decay", None)
    shared = {
        "bias_lr_factor": float(options.pop("bias_lr_factor", 1.0)),
        "weight_decay": decay,
        "bias_weight_decay": decay if bias_decay is None else bias_decay,
    }
    norm_decay, layer_decay = options.pop("norm_weight_decay", None), options.pop("layer_decay", None)
    layers = {name: own for name, own in (options.pop("layers", None) or {}).items() if own is not None}
    if fused and options["_target_"] in _FUSED:
        options["fused"] = True
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    keys = match_layers(layers, dict.fromkeys(_layer(name) for name, _ in named), "optimizer.layers.")
    is_uniform = shared["bias_lr_factor"] == 1.0 and shared["bias_weight_decay"] == decay
    if is_uniform and norm_decay is None and layer_decay is None and not layers:
        return build(options, params=[p for _, p in named])
    below = {} if layer_decay is None else depths(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        key = keys.get(layer := _layer(name), "")
        is_norm = norm_decay is not None and _is_norm(model, name)
        norm = {"weight_decay": norm_decay, "bias_weight_decay": norm_decay} if is_norm else {}
        own = {k: value for k, value in layers.get(key, {}).items() if value is not None}
        of, depth = (key, 0) if layer_decay is None else (layer, below[layer])
        rate = options["lr"] * (layer_decay or 1.0) ** depth
        group = _group(rate, {**shared, **norm, **own}, is_bias=name.endswith("bias"))
        group["name"] += (" (norm)" if is_norm else "") + (f" of {of}" if of else "")
        groups.setdefault(group["name"], {**group, "params": []})["params"].append(parameter)
    optimizer: torch.optim.Optimizer = build(options, params=list(groups.values()))
    # Beside the groups: what is inside them would be replaced by the groups of a checkpoint.
    setattr(optimizer, _FACTORS, [group["lr"] / options["lr"] for group in groups.values()])
    return optimizer


def depths(model: nn.Module) -> dict[str, int]:
    """Return how many layers lie above each layer: 0 for the last, counted in the order in which they are defined.

    A norm lies as deep as the layer before it, or as the first layer if it comes before all others.
    """
    heights: dict[str, int] = {}
    height = 0
    for name, _ in model.named_parameters():
        if (layer := _layer(name)) not in heights:
            # A norm shares the height of the layer that it follows: the two are one step of the network.
            height += not _is_norm(model, name)
            heights[layer] = max(height, 1)
    return {layer: height - own for layer, own in heights.items()}


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the current rate without the factors of layers and biases: `optimizer.lr` times the schedule.

    It is derived from the first group of weights that trains; schedules may give biases another course.
    """
    factors = getattr(optimizer, _FACTORS, [1.0] * len(optimizer.param_groups))
    moving = [(group, f) for group, f in zip(optimizer.param_groups, factors, strict=True) if f > 0]
    weights = [each for each in moving if not str(each[0].get("name", "")).startswith("biases")]
    group, factor = next(iter(weights or moving), (optimizer.param_groups[0], 1.0))
    return float(group["lr"]) / factor


def describe_rates(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe the initial rates of the layers' weights in one line, from the input up; None if all are the same."""
    rates = {
        str(group["name"]).partition(" of ")[2] or "the others": group["lr"]
        for group in groups
        if str(group.get("name", "")).startswith("weights")
    }
    if len(set(rates.values())) < 2:
        return None
    each = [f"{layer} {rate:.3g}" for layer, rate in rates.items()]
    if len(each) > _MOST:
        each[_MOST // 2 : -(_MOST // 2)] = ["..."]
    return f"Learning rates: {', '.join(each)}"


def images_of_a_step(trainer: Any) -> int | None:
    """Return the images per optimizer step, over all devices and accumulated batches; None if the data does not say."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    return batch_size * trainer.accumulate_grad_batches if isinstance(batch_size, int) else None


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD a momentum of zero for parameters that start to train later than others of their group.

    torch's fused SGD takes momentum buffers for all parameters with a gradient or for none of them. It would create
    them itself at its first step, with the same values (unless the momentum is dampened).
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        trained = [p for p in group["params"] if p.requires_grad]
        late = [p for p in trained if "momentum_buffer" not in optimizer.state.get(p, {})]
        if len(late) < len(trained):
            for parameter in late:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the class's own defaults for `lr` and `weight_decay` where they are not set."""
    if "_target_" not in config:
        return dict(config)
    parameters = inspect.signature(locate(config["_target_"])).parameters
    # The factors of layers and biases multiply these two; a yaml may leave them to the class.
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


def _is_norm(model: nn.Module, parameter: str) -> bool:
    return isinstance(model.get_submodule(parameter.rpartition(".")[0]), NORMS)
