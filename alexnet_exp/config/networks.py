"""Mistakes in the settings of a network, found from the text alone, before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alexnet_exp.errors import UserError, nearest
from alexnet_exp.models import spec
from alexnet_exp.models.arithmetic import map_sizes

_RESNET_KEYS = ("_target_", "stem", "input_size", "in_channels", "num_classes")
_STEMS = ("imagenet", "cifar")


def check_network(model: Mapping[str, Any]) -> None:
    """Check a network's settings as far as they can be without building it.

    Args:
        model: Plain values of conf/model; those of a class of the user's own are their own affair.

    Raises:
        UserError: For an unknown key or operation, an illegal value, or an image too small for the layers.
    """
    for key in ("input_size", "in_channels", "num_classes"):
        value = model.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            said = "null" if value is None else repr(value)
            raise UserError(f"model.{key}={said} is not possible: it must be a whole number, 1 or more.")
    target = model.get("_target_")
    if target == "alexnet_exp.models.resnet18":
        for key in model:
            if key not in _RESNET_KEYS:
                raise UserError(unknown_in_network(f"model.{key}"))
        if model.get("stem") not in _STEMS:
            raise UserError(
                f"model.stem={model.get('stem')} is not possible: it must be {' or '.join(_STEMS)}."
            )
    if target == "alexnet_exp.models.AlexNet":
        net = spec.parse_network({k: v for k, v in model.items() if k != "_target_"})
        map_sizes(net, net.input_size)


def check_typed(model: Mapping[str, Any], typed: Iterable[str]) -> None:
    """Refuse a typed setting of an operation that no layer has: `model.dropout=0.3` without any dropout.

    What a yaml says of such an operation stays legal: a variant takes an operation away with `then` alone.

    Args:
        model: Plain values of conf/model, checked.
        typed: Settings as the user gave them: 'model.dropout=0.3'.

    Raises:
        UserError: Names the setting.
    """
    if model.get("_target_") != "alexnet_exp.models.AlexNet":
        return
    layers = [*model["features"].values(), *model["classifier"].values()]
    used = set(model["input"]).union(*([*layer["before"], *layer["then"]] for layer in layers))
    for setting in typed:
        key = setting.lstrip("+").partition("=")[0]
        group, _, rest = key.partition(".")
        op = rest.partition(".")[0].removesuffix("_scaling")
        if group == "model" and op in spec.OPERATIONS and op not in used:
            raise UserError(
                f"{key} does nothing: no layer of this network has {op}; add it to the list of one, "
                f"model.features.LAYER.then=[...,{op}]."
            )


def unknown_in_network(key: str) -> str:
    """Return the sentence about a setting that the chosen network lacks, with the nearest of any network."""
    last = key.rpartition(".")[2]
    known = [*spec.known_keys(), "stem"]
    if last in known:
        return f"The chosen model has no setting {key}. --cfg job shows its layers and their settings."
    return f"There is no setting {key}.{nearest(last, known)} --cfg job shows all of the chosen model."
