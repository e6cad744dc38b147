"""Which values the settings of a network may have; an illegal one is refused in a sentence. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from alexnet_exp.errors import UserError, nearest

OPERATIONS = ("relu", "lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm", "dropout")
DROPOUT_SCALINGS = ("train", "test")
_TOO_LARGE = 2**53  # what 64 bits do not hold ends in errors of many kinds within torch
INITIALISATIONS = ("torch", "normal", "paper", "original", "caffe", "keras", "he")


@dataclass(frozen=True)
class _Rule:
    text: str
    legal: Callable[[Any], bool]

    def or_null(self) -> _Rule:
        return _Rule(self.text, lambda v: v is None or self.legal(v))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _TOO_LARGE


_COUNT = _Rule("a whole number, 1 or more", lambda v: _is_whole(v, 1))
_ODD = _Rule("odd and 1 or more", lambda v: _is_whole(v, 1) and v % 2 == 1)
_NUMBER = _Rule("a finite number", _is_number)
_NOT_NEGATIVE = _Rule("a number, 0 or more", lambda v: _is_number(v) and v >= 0)
_POSITIVE = _Rule("a number above 0", lambda v: _is_number(v) and v > 0)
_SHARE = _Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
_PADDING = _Rule("pixels or same", lambda v: v == "same" or _is_whole(v, 0))
_SWITCH = _Rule("true or false", lambda v: isinstance(v, bool))

_NETWORK = {
    "input_size": _COUNT,
    "in_channels": _COUNT,
    "num_classes": _COUNT,
    "map_size": _COUNT.or_null(),
}
_LAYER = {
    "out_channels": _COUNT,
    "kernel_size": _COUNT,
    "stride": _COUNT,
    "padding": _PADDING,
    "groups": _COUNT,
    "ceil_mode": _SWITCH,
    "local": _SWITCH,
    "bias": _SWITCH,
    "out_features": _COUNT.or_null(),
    "weight_std": _NOT_NEGATIVE.or_null(),
    "bias_init": _NUMBER.or_null(),
}
# With alpha below 0, or k = 0 over a dark patch, what is raised to -beta would be 0 or less.
_NORM = {"alpha": _NOT_NEGATIVE, "beta": _NUMBER, "k": _POSITIVE}
_POOL = {"kernel_size": _COUNT, "stride": _COUNT, "padding": _PADDING, "ceil_mode": _SWITCH}
_OPERATION = {
    "lrn": {"size": _COUNT, "groups": _COUNT, "compiled": _SWITCH, **_NORM},
    "spatial_norm": {"size": _ODD, **_NORM},
    "max_pool": _POOL,
    "avg_pool": _POOL,
    "batch_norm": {"eps": _POSITIVE, "momentum": _SHARE, "affine": _SWITCH},
}


def check_network(net: Any) -> None:
    """Check what is set once for a whole network.

    Raises:
        UserError: Names the setting.
    """
    _check("model", vars(net), _NETWORK)
    _check_dropout("model", net.dropout)
    check_words("model.input", net.input)
    if {"max_pool", "avg_pool"} & set(net.input):
        raise UserError("model.input cannot pool: pool after conv1, or change model.input_size.")
    if net.dropout_scaling not in DROPOUT_SCALINGS:
        raise UserError(f"model.dropout_scaling must be train or test, not {net.dropout_scaling!r}.")
    if net.init not in INITIALISATIONS:
        raise UserError(
            f"model.init={net.init!r} is not known.{nearest(net.init, INITIALISATIONS)} "
            f"Known: {', '.join(INITIALISATIONS)}."
        )
    if not net.classifier:
        raise UserError("model.classifier is empty: it needs at least the last layer, fc8: {}.")


def check_layer(where: str, layer: Any) -> None:
    """Check a layer's own settings, and that each of them does something.

    Args:
        where: How the user calls the layer: 'model.features.conv2'.
        layer: A ConvLayer or LinearLayer of `spec`.

    Raises:
        UserError: Names the setting.
    """
    for ops in (layer.before, layer.then):
        check_words(where, ops)
    _check(where, vars(layer), _LAYER)
    _check_dropout(where, layer.dropout)
    _check_rounding(where, vars(layer))
    _check_use(where, layer)


def check_convolution(where: str, layer: Any, channels: int) -> None:
    """Check a convolution against what it is given.

    Args:
        where: How the user calls the layer.
        layer: A ConvLayer of `spec`.
        channels: Of its input.

    Raises:
        UserError: For groups that do not divide the channels, or what untied weights do not have.
    """
    if channels % layer.groups or layer.out_channels % layer.groups:
        raise UserError(
            f"{where}.groups={layer.groups} does not divide its {channels} input and {layer.out_channels} "
            "output channels."
        )
    shared = layer.groups != 1 or layer.ceil_mode or layer.before or layer.padding == "same"
    if layer.local and shared:
        raise UserError(
            f"{where}: a local layer has no groups, ceil_mode, 'same' padding or operations before it."
        )


def check_linear(where: str, layer: Any, last: bool) -> None:
    """Check a fully connected layer against its place.

    Args:
        where: How the user calls the layer.
        layer: A LinearLayer of `spec`.
        last: Whether it gives the logits.

    Raises:
        UserError: For an operation that needs a map, or out_features at the wrong place.
    """
    for op in (*layer.before, *layer.then):
        if op not in ("relu", "dropout", "batch_norm"):
            raise UserError(f"{where}: {op} needs a map; it cannot stand beside a fully connected layer.")
    if last and layer.out_features is not None:
        raise UserError(
            f"{where}.out_features={layer.out_features}: the last layer has model.num_classes outputs; set that."
        )
    if not last and layer.out_features is None:
        raise UserError(f"{where}: every layer but the last needs out_features.")


def check_operation(where: str, op: str, settings: Mapping[str, Any]) -> None:
    """Check all settings of an operation, its own and those it shares.

    Args:
        where: How the user calls it: 'model.features.conv2.max_pool'.
        op: One of OPERATIONS that has settings.
        settings: None of them None.

    Raises:
        UserError: Names the setting.
    """
    _check(where, settings, _OPERATION[op])
    padding = settings.get("padding", 0)
    if op == "avg_pool" and padding == "same":
        raise UserError(f"{where}: avg_pool knows no padding 'same'; give pixels, or ceil_mode=true.")
    _check_rounding(where, settings)
    if padding != "same" and padding > settings.get("kernel_size", 0) // 2:
        raise UserError(
            f"{where}.padding={padding} is more than half of kernel_size={settings['kernel_size']}: a window could "
            "lie outside the map."
        )


def check_words(where: str, ops: Sequence[str]) -> None:
    """Refuse a word of `before`, `then` or `input` that is no operation.

    Raises:
        UserError: Names the nearest that are, or says that there must be a list.
    """
    if not isinstance(ops, list | tuple):
        raise UserError(f"{where}: operations are a list such as [relu, max_pool], not {ops!r}.")
    for op in ops:
        if op not in OPERATIONS:
            raise UserError(
                f"{where}: unknown operation {op!r}.{nearest(op, OPERATIONS)} Known: {', '.join(OPERATIONS)}."
            )


def _check(where: str, values: Mapping[str, Any], rules: Mapping[str, _Rule]) -> None:
    for key, rule in rules.items():
        if key in values and not rule.legal(values[key]):
            # It may have thousands of digits.
            large = isinstance(values[key], int) and abs(values[key]) >= _TOO_LARGE
            found = f"and below {_TOO_LARGE}" if large else f"not {values[key]!r}"
            raise UserError(f"{where}.{key} must be {rule.text}, {found}.")


def _check_dropout(where: str, dropout: Any) -> None:
    if dropout is not None and not _SHARE.legal(dropout):
        raise UserError(f"{where}.dropout={dropout} is not possible: it must be {_SHARE.text}.")


def _check_rounding(where: str, settings: Mapping[str, Any]) -> None:
    if settings.get("padding") == "same" and settings.get("ceil_mode"):
        raise UserError(f"{where}: padding=same rounds up already; leave ceil_mode or padding=same out.")


def _check_use(where: str, layer: Any) -> None:
    """Refuse the settings of an operation that the layer does not have: they would do nothing."""
    used = {*layer.before, *layer.then}
    for op in OPERATIONS:
        own = getattr(layer, op, None)
        values = {f.name: getattr(own, f.name) for f in fields(own)} if is_dataclass(own) else {"": own}
        given = next((key for key, value in values.items() if value is not None), None)
        if op not in used and given is not None:
            key = f"{where}.{op}" + (f".{given}" if given else "")
            raise UserError(
                f"{key}={values[given]} does nothing: {op} is neither in before nor in then of this layer; add it "
                f"there, or say {key}=null."
            )
    if layer.bias_init is not None and not layer.bias:
        raise UserError(f"{where}.bias_init={layer.bias_init} does nothing: the layer has bias=false.")
