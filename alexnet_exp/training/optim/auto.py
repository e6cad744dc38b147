"""Resolve `auto` for this network: learning rate, warm-up and initial weights, by the one rule of this file.

| `auto` of               | networks with batch norm               | networks without                       |
|-------------------------|----------------------------------------|----------------------------------------|
| init                    | published                              | lsuv                                   |
| optimizer.lr            | `_RATES[...][0]` * sqrt(batch / 64)    | `_RATES[...][1]` * sqrt(batch / 64)    |
| scheduler.warmup_epochs | 5 % of the run                         | 5 % of the run                         |

Batch norm keeps every layer's outputs at one scale. Without it that scale is a product over all layers: from N(0, 0.01)
or torch's default it falls by a factor of 2 to 30 per layer, the logits of an eight-layer network hardly depend on the
image, and the loss stays at that of guessing for hundreds of steps. `lsuv` starts every layer with outputs of variance
1 (models/initialise.py), whatever pooling, dropout and local response normalisation do in between, so that depth,
width and the number of classes need no rates of their own.

An experiment keeps its published start, and what is typed or set in a yaml is used as it is. Measured in
docs/learning.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alexnet_exp.config.groups import Settings, Trainer
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError
from alexnet_exp.settings import assigned
from alexnet_exp.targets import build

# Of a global batch of 64, by the optimizer's class: with batch norm, without.
_RATES = {
    "SGD": (0.05, 0.015),
    "PaperSGD": (0.05, 0.015),
    "Adam": (1e-3, 3e-4),
    "AdamW": (1e-3, 3e-4),
    "LARS": (2.0, 2.0),
}
_BATCH = 64
WARM_UP = 0.05  # of the run
_OURS = "alexnet_exp.models.AlexNet"  # the networks that `init` can change
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # _NormBase: batch and instance norm
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


def settle_recipe(config: dict[str, Any], typed: Iterable[str], num_images: int) -> list[str]:
    """Replace every `auto` of init, optimizer.lr and scheduler.warmup_epochs.

    Args:
        config: Run settings with the network filled in; changed in place.
        typed: The overrides as typed.
        num_images: Size of the training set.

    Returns:
        The choices, one phrase each for the log.

    Raises:
        UserError: If init=lsuv is typed beside an initialisation of the network's own, or does not apply to it.
    """
    settings, choices = read(Settings, config), []
    trainer, batch_size = settings.trainer, settings.data.batch_size
    with torch.device("meta"):
        network = build(settings.model)
    if settings.init != "published":
        _settle_start(config, assigned(typed), network)
        if settings.init == "auto" and config["init"] != "published":
            choices.append(f"init={config['init']}")
    if settings.optimizer.lr == "auto":
        rate = learning_rate(network, config["optimizer"], batch_size * trainer.accumulate_grad_batches)
        config["optimizer"]["lr"] = rate
        choices.append(f"optimizer.lr={rate:g}")
    if settings.scheduler.warmup_epochs == "auto":
        steps = -(-num_images // batch_size) / trainer.accumulate_grad_batches
        epochs = round(WARM_UP * _epochs(trainer, max(1.0, steps)), 3)
        config["scheduler"]["warmup_epochs"] = epochs
        choices.append(f"scheduler.warmup_epochs={epochs:g}")
    return choices


def learning_rate(network: nn.Module, optimizer: Mapping[str, Any], global_batch: int | None) -> float:
    """Return what optimizer.lr=auto means, to two digits.

    With `lr_scaling` it is the rate at `base_batch`, which the optimizer then scales.

    Args:
        network: On any device, the meta device included.
        optimizer: Keys of conf/optimizer.
        global_batch: Images per optimizer step, over all devices and accumulated batches; None: unknown, taken for 64.

    Raises:
        UserError: If there is no rule for this optimizer.
    """
    name = str(optimizer["_target_"]).rpartition(".")[2]
    if name not in _RATES:
        raise UserError(f"optimizer.lr=auto does not cover {name}: set optimizer.lr=NUMBER.")
    scaled = optimizer.get("lr_scaling", "none") != "none"
    batch = optimizer.get("base_batch", 256) if scaled else global_batch or _BATCH
    rate = _RATES[name][0 if has_norm(network) else 1] * math.sqrt(batch / _BATCH)
    # The rule is not more precise than this, and the number is read in the log and in config.yaml.
    return float(f"{rate:.2g}")


def has_norm(network: nn.Module) -> bool:
    """Return whether batch, group or layer norm follows the first layer with weights."""
    # Only after the first weights: a norm on the image itself (`input: [batch_norm]`) keeps no layer's outputs at
    # scale.
    kinds = [isinstance(m, NORMS) for m in network.modules() if isinstance(m, (*NORMS, *_WEIGHTED))]
    return True in kinds[kinds.index(False) :] if False in kinds else False


def _settle_start(config: dict[str, Any], typed: Mapping[str, str], network: nn.Module) -> None:
    """Replace init=auto, and write what init=lsuv starts from into the settings of the network."""
    settings, model = read(Settings, config), config["model"]
    ours = model.get("_target_") == _OURS
    own = [
        key
        for key in typed
        if key.startswith("model.") and key.endswith((".init", "weight_std", "bias_init"))
    ]
    if settings.init == "auto":
        # What was published, or trained before, fixes the start: its rates belong to it.
        recipe = config.get("choices", {}).get("experiment") or typed.get("experiment", "none")
        keeps = own or recipe != "none" or settings.weights != "none" or not ours or has_norm(network)
        config["init"] = "published" if keeps else "lsuv"
    elif own:
        raise UserError(f"init=lsuv replaces {own[0]}: leave one of them out.")
    elif not ours:
        raise UserError(
            f"init=lsuv needs a network of layers, and {model.get('_target_')} is a class: leave it out."
        )
    if config["init"] == "lsuv":
        model["init"] = "he"
        for layer in (*model["features"].values(), *model["classifier"].values()):
            layer |= {key: None for key in ("weight_std", "bias_init") if layer.get(key) is not None}


def _epochs(trainer: Trainer, steps: float) -> float:
    """Return the length of the run in epochs, `steps` optimizer steps each; 0 if neither limit is set."""
    limit = trainer.overfit_batches or trainer.limit_train_batches
    batches = steps * trainer.accumulate_grad_batches
    steps *= limit if isinstance(limit, float) else min(1.0, limit / batches)
    epochs = [] if trainer.max_epochs is None or trainer.max_epochs == -1 else [float(trainer.max_epochs)]
    if trainer.max_steps > 0:
        epochs.append(trainer.max_steps / steps)
    return min(epochs, default=0.0)
