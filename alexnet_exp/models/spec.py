"""The grammar of a network yaml, as dataclasses: what a layer may say, and what it says by default.

Hydra composes conf/model/*.yaml onto these, so that every layer accepts every key and an unknown key is an
error; `AlexNet` reads plain dictionaries through `parse` with the same result. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from alexnet_exp.errors import UserError, nearest
from alexnet_exp.models import values
from alexnet_exp.models.values import OPERATIONS as OPERATIONS

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
    values.check_network(net)
    for op in SHARED:
        values.check_operation(f"model.{op}", op, vars(getattr(net, op)))
    _check_towers("model.input", net.input, net, net, net.in_channels)
    channels = net.in_channels
    for name, layer in net.features.items():
        where = f"model.features.{name}"
        _check_layer(where, layer, net)
        values.check_convolution(where, layer, channels)
        _check_towers(where, layer.before, layer, net, channels)
        channels = layer.out_channels
        _check_towers(where, layer.then, layer, net, channels)
    for name, linear in net.classifier.items():
        where = f"model.classifier.{name}"
        _check_layer(where, linear, net)
        values.check_linear(where, linear, last=name == list(net.classifier)[-1])


def _check_layer(where: str, layer: ConvLayer | LinearLayer, net: AlexNetConfig) -> None:
    values.check_layer(where, layer)
    for op in SHARED:
        if op in (*layer.before, *layer.then) and hasattr(layer, op):
            settings = inherit(getattr(layer, op), getattr(net, op))
            values.check_operation(f"{where}.{op}", op, settings)


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
