"""The grammar of a network yaml, as dataclasses: what a layer may say, and what it says by default.

Hydra composes conf/model/*.yaml onto these, so that every layer accepts every key and an unknown key is an
error; `AlexNet` reads plain dictionaries through `parse` with the same result. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from alexnet_exp.errors import UserError, nearest

SHARED = ("lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm")  # set once, overridable in a layer


@dataclass
class LRN:
    """Cross-channel local response normalisation; None in a layer means 'as the network's'."""

    size: int | None = None
    alpha: float | None = None
    beta: float | None = None
    k: float | None = None
    groups: int | None = None  # normalise inside each of so many towers
    compiled: bool | None = None  # faster in long runs; costs 10 to 30 seconds at the first step


@dataclass
class SpatialNorm:
    """Within-map response normalisation of cuda-convnet (`rnorm`)."""

    size: int | None = None
    alpha: float | None = None
    beta: float | None = None
    k: float | None = None


@dataclass
class Pool:
    """Max or average pooling."""

    kernel_size: int | None = None
    stride: int | None = None
    padding: Any = None  # pixels, or same (TensorFlow's rule)
    ceil_mode: bool | None = None  # a last, clipped window where the stride does not divide


@dataclass
class BatchNorm:
    """Batch normalisation over channels (features) or units (classifier)."""

    eps: float | None = None
    momentum: float | None = None
    affine: bool | None = None


@dataclass
class _Layer:
    before: list[str] = field(default_factory=list)  # operations ahead of the layer
    then: list[str] = field(default_factory=list)  # operations after it, in order
    bias: bool = True
    weight_std: float | None = None  # overrides what `init` gives this layer
    bias_init: float | None = None
    batch_norm: BatchNorm = field(default_factory=BatchNorm)
    dropout: float | None = None


@dataclass
class ConvLayer(_Layer):
    """One convolution (or locally connected layer) and the operations around it."""

    out_channels: int = -1
    kernel_size: int = 3
    stride: int = 1
    padding: Any = 0  # pixels, or same (TensorFlow's rule: the extra pixel goes right/bottom)
    groups: int = 1
    ceil_mode: bool = False  # a last window that reads zeros past the right/bottom border (cuda-convnet)
    local: bool = False  # untied weights: one filter bank per position
    lrn: LRN = field(default_factory=LRN)
    spatial_norm: SpatialNorm = field(default_factory=SpatialNorm)
    max_pool: Pool = field(default_factory=Pool)
    avg_pool: Pool = field(default_factory=Pool)


@dataclass
class LinearLayer(_Layer):
    """One fully connected layer; without out_features it is the last and gives the logits."""

    out_features: int | None = None


@dataclass
class AlexNetConfig:
    """A whole network; the arguments of `alexnet_exp.models.AlexNet`."""

    _target_: str = "alexnet_exp.models.AlexNet"
    input_size: int = 227
    in_channels: int = 3
    num_classes: int = 1000
    init: str = "torch"
    input: list[str] = field(default_factory=list)  # operations on the image: batch_norm
    features: dict[str, ConvLayer] = field(default_factory=dict)
    map_size: int | None = None  # average the last map to this size, whatever the input's
    classifier: dict[str, LinearLayer] = field(default_factory=dict)
    lrn: LRN = field(
        default_factory=lambda: LRN(size=5, alpha=1e-4, beta=0.75, k=2.0, groups=1, compiled=False)
    )
    spatial_norm: SpatialNorm = field(
        default_factory=lambda: SpatialNorm(size=5, alpha=1e-3, beta=0.75, k=1.0)
    )
    max_pool: Pool = field(default_factory=lambda: Pool(kernel_size=3, stride=2, padding=0, ceil_mode=False))
    avg_pool: Pool = field(default_factory=lambda: Pool(kernel_size=3, stride=2, padding=0, ceil_mode=False))
    batch_norm: BatchNorm = field(default_factory=lambda: BatchNorm(eps=1e-5, momentum=0.1, affine=True))
    dropout: float = 0.5
    dropout_scaling: str = (
        "train"  # scale kept units in training (torch), or all units at test (the original)
    )


def parse(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    """Build dataclass `kind` from a mapping.

    Args:
        kind: One of the dataclasses of this module.
        given: Plain keys and values; nested dataclasses are mappings.
        where: How the user calls this place, for messages ('model.features.conv2').

    Raises:
        UserError: For a key that `kind` does not have, or a single value where there are several.
    """
    types = get_type_hints(kind)
    names = [f.name for f in fields(kind) if not f.name.startswith("_")]
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must have settings of its own ({', '.join(names)}), not {given!r}.")
    for key in given:
        if key not in names:
            raise UserError(f"{where} has no key {key!r}.{nearest(key, names)} It has {', '.join(names)}.")
    parsed = {
        key: parse(types[key], value, f"{where}.{key}") if is_dataclass(types[key]) else value
        for key, value in given.items()
    }
    return kind(**parsed)


def inherit(own: Any, shared: Any) -> dict[str, Any]:
    """Return the settings of `own`, with those it leaves open (None) taken from `shared`."""
    return {
        f.name: getattr(own, f.name) if getattr(own, f.name) is not None else getattr(shared, f.name)
        for f in fields(own)
    }


def parse_network(config: Mapping[str, Any]) -> AlexNetConfig:
    """Read a whole network from plain values, with every default filled in.

    Raises:
        UserError: For an unknown key or a value that no network has, or without a last layer.
    """
    parsed: AlexNetConfig = parse(AlexNetConfig, config, "model")
    for group, kind in (("features", ConvLayer), ("classifier", LinearLayer)):
        layers = config.get(group, {})
        if not isinstance(layers, Mapping):
            raise UserError(f"model.{group} must name layers and their settings, and is {layers!r}.")
        read = {name: parse(kind, layer or {}, f"model.{group}.{name}") for name, layer in layers.items()}
        setattr(parsed, group, read)
    default = AlexNetConfig()
    for name in SHARED:  # a partial `lrn: {size: 9}` keeps the other defaults
        shared = inherit(getattr(parsed, name), getattr(default, name))
        setattr(parsed, name, type(getattr(default, name))(**shared))
    _check(parsed)
    return parsed


def _check(net: AlexNetConfig) -> None:
    """Refuse values that no network has, and layers that do not fit each other; sizes of maps come later."""
    check_network(net)
    for op in SHARED:
        check_operation(f"model.{op}", op, vars(getattr(net, op)))
    _check_towers("model.input", net.input, net, net, net.in_channels)
    channels = net.in_channels
    for name, layer in net.features.items():
        where = f"model.features.{name}"
        _check_layer(where, layer, net)
        check_convolution(where, layer, channels)
        _check_towers(where, layer.before, layer, net, channels)
        channels = layer.out_channels
        _check_towers(where, layer.then, layer, net, channels)
    for name, linear in net.classifier.items():
        where = f"model.classifier.{name}"
        _check_layer(where, linear, net)
        check_linear(where, linear, last=name == list(net.classifier)[-1])


def _check_layer(where: str, layer: ConvLayer | LinearLayer, net: AlexNetConfig) -> None:
    check_layer(where, layer)
    for op in SHARED:
        if op in (*layer.before, *layer.then) and hasattr(layer, op):
            settings = inherit(getattr(layer, op), getattr(net, op))
            check_operation(f"{where}.{op}", op, settings)


def _check_towers(
    where: str, ops: list[str], own: ConvLayer | AlexNetConfig, net: AlexNetConfig, channels: int
) -> None:
    groups = inherit(own.lrn, net.lrn)["groups"]
    if "lrn" in ops and channels % groups:
        raise UserError(f"{where}: lrn.groups={groups} does not divide its {channels} channels.")


def known_keys() -> list[str]:
    """List every key that a network or one of its layers may have."""
    kinds = (AlexNetConfig, ConvLayer, LinearLayer, LRN, SpatialNorm, Pool, BatchNorm)
    return sorted({f.name for kind in kinds for f in fields(kind) if not f.name.startswith("_")})


ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "gelu", "leaky_relu", "silu")  # torch's, with its defaults
OPERATIONS = (*ACTIVATIONS, "lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm", "dropout")
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
    _check_value("model", vars(net), _NETWORK)
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
    _check_value(where, vars(layer), _LAYER)
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
        if op not in (*ACTIVATIONS, "dropout", "batch_norm"):
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
    _check_value(where, settings, _OPERATION[op])
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


def _check_value(where: str, values: Mapping[str, Any], rules: Mapping[str, _Rule]) -> None:
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
        options = {f.name: getattr(own, f.name) for f in fields(own)} if is_dataclass(own) else {"": own}
        given = next((key for key, value in options.items() if value is not None), None)
        if op not in used and given is not None:
            key = f"{where}.{op}" + (f".{given}" if given else "")
            raise UserError(
                f"{key}={options[given]} does nothing: {op} is neither in before nor in then of this layer; add it "
                f"there, or say {key}=null."
            )
    if layer.bias_init is not None and not layer.bias:
        raise UserError(f"{where}.bias_init={layer.bias_init} does nothing: the layer has bias=false.")
