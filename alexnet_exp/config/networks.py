"""Mistakes in the settings of a network, found from the text alone, before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
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
        _check_layers(net)
        map_sizes(net, net.input_size)


def _check_layers(net: spec.AlexNetConfig) -> None:
    channels = net.in_channels
    for name, layer in net.features.items():
        where = f"model.features.{name}"
        _check_operations(where, layer)
        if channels % layer.groups or layer.out_channels % layer.groups:
            raise UserError(
                f"{where}.groups={layer.groups} does not divide its {channels} input and "
                f"{layer.out_channels} output channels."
            )
        channels = layer.out_channels
    for name, linear in net.classifier.items():
        _check_operations(f"model.classifier.{name}", linear)
    _check_dropout("model", net.dropout)


def _check_operations(where: str, layer: spec.ConvLayer | spec.LinearLayer) -> None:
    for op in [*layer.before, *layer.then]:
        if op not in spec.OPERATIONS:
            known = ", ".join(spec.OPERATIONS)
            raise UserError(
                f"{where}: unknown operation {op!r}.{nearest(op, spec.OPERATIONS)} Known: {known}."
            )
    _check_dropout(where, layer.dropout)


def _check_dropout(where: str, dropout: float | None) -> None:
    if dropout is not None and not 0.0 <= dropout <= 1.0:
        raise UserError(f"{where}.dropout={dropout} is not possible: it must be a number from 0 to 1.")


def unknown_in_network(key: str) -> str:
    """Return the sentence about a setting that the chosen network lacks, with the nearest of any network."""
    last = key.rpartition(".")[2]
    known = [*spec.known_keys(), "stem"]
    if last in known:
        return f"The chosen model has no setting {key}. --cfg job shows its layers and their settings."
    return f"There is no setting {key}.{nearest(last, known)} --cfg job shows all of the chosen model."
