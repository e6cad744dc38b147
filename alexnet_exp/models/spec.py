"""The schema of a network yaml as dataclasses: keys, defaults and checks. No torch here.

Hydra composes conf/model/*.yaml onto these classes, so every layer accepts every key and an unknown key is an
error; `AlexNet` reads plain dictionaries through `parse_network`, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from alexnet_exp.errors import UserError, nearest

SHARED = ("lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm")  # network-wide, overridable per layer


@dataclass
class LRN:
    """Cross-channel local response normalisation; None in a layer inherits the network's value."""

    size: int | None = None
    alpha: float | None = None
    beta: float | None = None
    k: float | None = None
    groups: int | None = None  # number of towers, normalised separately
    compiled: bool | None = None  # faster in long runs; the first step takes 10 to 30 seconds longer


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
    ceil_mode: bool | None = None  # add a clipped last window where the stride does not divide


@dataclass
class BatchNorm:
    """Batch normalisation over channels (features) or units (classifier)."""

    eps: float | None = None
    momentum: float | None = None
    affine: bool | None = None


@dataclass
class _Layer:
    before: list[str] = field(default_factory=list)  # operations before the layer, in order
    then: list[str] = field(default_factory=list)  # operations after it, in order
    bias: bool = True
    weight_std: float | None = None  # overrides `init` for this layer
    bias_init: float | None = None
    batch_norm: BatchNorm = field(default_factory=BatchNorm)
    dropout: float | None = None


@dataclass
class ConvLayer(_Layer):
    """One convolution (or locally connected layer) and the operations around it."""

    out_channels: int = -1  # required: -1 is not legal
    kernel_size: int = 3
    stride: int = 1
    padding: Any = 0  # pixels, or same (TensorFlow's rule: the extra pixel goes right/bottom)
    groups: int = 1
    ceil_mode: bool = False  # add a last window that reads zeros past the right/bottom border (cuda-convnet)
    local: bool = False  # untied weights: one filter bank per position
    lrn: LRN = field(default_factory=LRN)
    spatial_norm: SpatialNorm = field(default_factory=SpatialNorm)
    max_pool: Pool = field(default_factory=Pool)
    avg_pool: Pool = field(default_factory=Pool)


@dataclass
class LinearLayer(_Layer):
    """One fully connected layer; the last has no out_features and gives the logits."""

    out_features: int | None = None


@dataclass
class AlexNetConfig:
    """A network: the arguments of `alexnet_exp.models.AlexNet`."""

    _target_: str = "alexnet_exp.models.AlexNet"
    input_size: int = 227
    in_channels: int = 3
    num_classes: int = 1000
    init: str = "torch"
    input: list[str] = field(default_factory=list)  # operations on the image, such as batch_norm
    features: dict[str, ConvLayer] = field(default_factory=dict)
    map_size: int | None = None  # average-pool the last map to this side, so that any input size works
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
    dropout_scaling: str = "train"  # rescale in training (torch), or at test time (2012)


def parse(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    """Build dataclass `kind` from a mapping.

    Args:
        kind: One of the dataclasses of this module.
        given: Plain keys and values; nested dataclasses are mappings.
        where: Key of this place, for messages ('model.features.conv2').

    Raises:
        UserError: Unknown key, or a scalar where a mapping is expected.
    """
    types = get_type_hints(kind)  # the annotations are strings here
    names = [f.name for f in fields(kind) if not f.name.startswith("_")]  # not _target_
    if not isinstance(given, Mapping):
        raise UserError(f"invalid {where}={given!r}: expected a mapping with keys {', '.join(names)}.")
    for key in given:
        if key not in names:
            raise UserError(f"{where} has no key {key!r}.{nearest(key, names)} Keys: {', '.join(names)}.")
    parsed = {
        key: parse(types[key], value, f"{where}.{key}") if is_dataclass(types[key]) else value
        for key, value in given.items()
    }
    return kind(**parsed)


def inherit(own: Any, shared: Any) -> dict[str, Any]:
    """Return the settings of `own`, with None replaced by the value in `shared`."""
    return {
        f.name: getattr(own, f.name) if getattr(own, f.name) is not None else getattr(shared, f.name)
        for f in fields(own)
    }


def parse_network(config: Mapping[str, Any]) -> AlexNetConfig:
    """Build the config of a network from plain values, with every default filled in.

    Raises:
        UserError: Unknown key, illegal value, or layers that do not fit together.
    """
    parsed: AlexNetConfig = parse(AlexNetConfig, config, "model")
    # To `parse`, dict[str, ConvLayer] is a plain value: the layers are parsed here.
    for group, kind in (("features", ConvLayer), ("classifier", LinearLayer)):
        layers = config.get(group, {})
        if not isinstance(layers, Mapping):
            raise UserError(
                f"invalid model.{group}={layers!r}: expected a mapping from layer name to settings."
            )
        # `fc8:` without settings is None in a yaml.
        read = {name: parse(kind, layer or {}, f"model.{group}.{name}") for name, layer in layers.items()}
        setattr(parsed, group, read)
    default = AlexNetConfig()
    for name in SHARED:  # a partial mapping such as `lrn: {size: 9}` keeps the other defaults
        shared = inherit(getattr(parsed, name), getattr(default, name))
        setattr(parsed, name, type(getattr(default, name))(**shared))
    _check(parsed)
    return parsed


def _check(net: AlexNetConfig) -> None:
    """Refuse illegal values and layers that do not fit together; `map_sizes` checks the maps' sides."""
    check_network(net)
    for op in SHARED:
        check_operation(f"model.{op}", op, vars(getattr(net, op)))
    _check_towers("model.input", net.input, net, net, net.in_channels)
    channels = net.in_channels
    for name, layer in net.features.items():
        where = f"model.features.{name}"
        check_layer(where, layer, net)
        check_convolution(where, layer, channels)
        _check_towers(where, layer.before, layer, net, channels)
        channels = layer.out_channels
        _check_towers(where, layer.then, layer, net, channels)
    for name, linear in net.classifier.items():
        where = f"model.classifier.{name}"
        check_layer(where, linear, net)
        check_linear(where, linear, last=name == list(net.classifier)[-1])


def _check_towers(
    where: str, ops: list[str], own: ConvLayer | AlexNetConfig, net: AlexNetConfig, channels: int
) -> None:
    groups = inherit(own.lrn, net.lrn)["groups"]
    if "lrn" in ops and channels % groups:
        raise UserError(f"{where}: lrn.groups={groups} does not divide its {channels} channels.")


def known_keys() -> list[str]:
    """Return every key of a network or one of its layers, sorted."""
    kinds = (AlexNetConfig, ConvLayer, LinearLayer, LRN, SpatialNorm, Pool, BatchNorm)
    return sorted({f.name for kind in kinds for f in fields(kind) if not f.name.startswith("_")})


# torch's, with their default arguments.
ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "gelu", "leaky_relu", "silu")
OPERATIONS = (*ACTIVATIONS, "lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm", "dropout")
DROPOUT_SCALINGS = ("train", "test")
_TOO_LARGE = 2**53  # integers beyond 64 bits fail inside torch, with many different errors
INITIALISATIONS = ("torch", "normal", "paper", "original", "caffe", "keras", "he")


@dataclass(frozen=True)
class _Rule:
    text: str
    legal: Callable[[Any], bool]

    def or_null(self) -> _Rule:
        return _Rule(self.text, lambda v: v is None or self.legal(v))


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < _TOO_LARGE  # math.isfinite raises for an integer beyond the range of floats
    return isinstance(value, float) and math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _TOO_LARGE


_COUNT = _Rule("an integer >= 1", lambda v: _is_whole(v, 1))
_ODD = _Rule("an odd integer >= 1", lambda v: _is_whole(v, 1) and v % 2 == 1)
_NUMBER = _Rule("a finite number", _is_number)
_NOT_NEGATIVE = _Rule("a number >= 0", lambda v: _is_number(v) and v >= 0)
_POSITIVE = _Rule("a number > 0", lambda v: _is_number(v) and v > 0)
_SHARE = _Rule("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
_PADDING = _Rule("a number of pixels, or same", lambda v: v == "same" or _is_whole(v, 0))
_SWITCH = _Rule("true or false", lambda v: isinstance(v, bool))

_NETWORK = {
    "input_size": _COUNT,
    "in_channels": _COUNT,
    "num_classes": _COUNT,
    "map_size": _COUNT.or_null(),
    "dropout": _SHARE,
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
    "dropout": _SHARE.or_null(),
}
# With alpha < 0, or k = 0 on a black patch, the base of (k + alpha * sum) ** -beta could be 0 or negative.
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
    """Check the network-wide settings.

    Raises:
        UserError: Names the setting.
    """
    _check_value("model", vars(net), _NETWORK)
    check_words("model.input", net.input)
    if {"max_pool", "avg_pool"} & set(net.input):
        raise UserError("model.input cannot pool: pool after conv1, or change model.input_size.")
    if net.dropout_scaling not in DROPOUT_SCALINGS:
        raise UserError(f"invalid model.dropout_scaling={net.dropout_scaling!r}: expected train or test.")
    if net.init not in INITIALISATIONS:
        raise UserError(
            f"invalid model.init={net.init!r}: expected one of {', '.join(INITIALISATIONS)}."
            f"{nearest(net.init, INITIALISATIONS)}"
        )
    if not net.classifier:
        raise UserError("model.classifier is empty: add at least the last layer, fc8: {}.")


def check_layer(where: str, layer: Any, net: AlexNetConfig) -> None:
    """Check a layer's settings and operations, and that no setting is ignored.

    Args:
        where: Key of the layer: 'model.features.conv2'.
        layer: A ConvLayer or LinearLayer.
        net: The network, whose settings the operations inherit.

    Raises:
        UserError: Names the setting.
    """
    for ops in (layer.before, layer.then):
        check_words(where, ops)
    _check_value(where, vars(layer), _LAYER)
    _check_rounding(where, vars(layer))
    _check_use(where, layer)
    for op in SHARED:
        if op in (*layer.before, *layer.then) and hasattr(layer, op):
            check_operation(f"{where}.{op}", op, inherit(getattr(layer, op), getattr(net, op)))


def check_convolution(where: str, layer: Any, channels: int) -> None:
    """Check a convolution against its input.

    Args:
        where: Key of the layer.
        layer: A ConvLayer.
        channels: Input channels.

    Raises:
        UserError: Groups that do not divide the channels, or settings that untied weights do not support.
    """
    if channels % layer.groups or layer.out_channels % layer.groups:
        raise UserError(
            f"{where}.groups={layer.groups} does not divide its {channels} input and {layer.out_channels} "
            "output channels."
        )
    unsupported = layer.groups != 1 or layer.ceil_mode or layer.before or layer.padding == "same"
    if layer.local and unsupported:
        raise UserError(
            f"{where}: a local layer does not support groups, ceil_mode, 'same' padding or operations before it."
        )


def check_linear(where: str, layer: Any, last: bool) -> None:
    """Check a fully connected layer against its place.

    Args:
        where: Key of the layer.
        layer: A LinearLayer.
        last: Whether it gives the logits.

    Raises:
        UserError: An operation that needs a feature map, or out_features missing or in the last layer.
    """
    for op in (*layer.before, *layer.then):
        if op not in (*ACTIVATIONS, "dropout", "batch_norm"):
            raise UserError(f"{where}: {op} needs a feature map; move it to a layer of model.features.")
    if last and layer.out_features is not None:
        raise UserError(
            f"{where}.out_features={layer.out_features}: the last layer has model.num_classes outputs; set that."
        )
    if not last and layer.out_features is None:
        raise UserError(f"{where}: every layer but the last needs out_features.")


def check_operation(where: str, op: str, settings: Mapping[str, Any]) -> None:
    """Check the settings of an operation, after inheritance.

    Args:
        where: Key of the operation: 'model.features.conv2.max_pool'.
        op: One of SHARED.
        settings: No value is None.

    Raises:
        UserError: Names the setting.
    """
    _check_value(where, settings, _OPERATION[op])
    padding = settings.get("padding", 0)
    if op == "avg_pool" and padding == "same":
        raise UserError(f"{where}: avg_pool does not support padding=same; use pixels, or ceil_mode=true.")
    _check_rounding(where, settings)
    if padding != "same" and padding > settings.get("kernel_size", 0) // 2:
        raise UserError(
            f"{where}.padding={padding} is more than half of kernel_size={settings['kernel_size']}: a window could "
            "lie outside the map."
        )


def check_words(where: str, ops: Sequence[str]) -> None:
    """Check the operations of `before`, `then` or `input`.

    Raises:
        UserError: Not a list, or an unknown operation (names the nearest known ones).
    """
    if not isinstance(ops, list | tuple):
        raise UserError(f"{where}: expected a list of operations such as [relu, max_pool], not {ops!r}.")
    for op in ops:
        if op not in OPERATIONS:
            raise UserError(
                f"{where}: unknown operation {op!r}.{nearest(op, OPERATIONS)} Known: {', '.join(OPERATIONS)}."
            )


def _check_value(where: str, values: Mapping[str, Any], rules: Mapping[str, _Rule]) -> None:
    for key, rule in rules.items():
        if key in values and not rule.legal(values[key]):
            # A huge integer is not repeated: it may have thousands of digits.
            if isinstance(values[key], int) and abs(values[key]) >= _TOO_LARGE:
                raise UserError(f"invalid {where}.{key}: expected {rule.text} and < {_TOO_LARGE}.")
            raise UserError(f"invalid {where}.{key}={values[key]!r}: expected {rule.text}.")


def _check_rounding(where: str, settings: Mapping[str, Any]) -> None:
    if settings.get("padding") == "same" and settings.get("ceil_mode"):
        raise UserError(f"{where}: padding=same already rounds up; remove ceil_mode or padding=same.")


def _check_use(where: str, layer: Any) -> None:
    """Refuse the settings of an operation that the layer does not have: they would be ignored."""
    used = {*layer.before, *layer.then}
    for op in OPERATIONS:
        own = getattr(layer, op, None)
        # `dropout` is a plain value, the others are maps, and activations have none.
        options = {f.name: getattr(own, f.name) for f in fields(own)} if is_dataclass(own) else {"": own}
        given = next((key for key, value in options.items() if value is not None), None)
        if op not in used and given is not None:
            key = f"{where}.{op}" + (f".{given}" if given else "")
            raise UserError(
                f"{key}={options[given]} does nothing: this layer has {op} neither in before nor in then; add it "
                f"there, or set {key}=null."
            )
    if layer.bias_init is not None and not layer.bias:
        raise UserError(f"{where}.bias_init={layer.bias_init} does nothing: the layer has bias=false.")
