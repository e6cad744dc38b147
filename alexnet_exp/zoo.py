"""Python API for the networks of conf/model/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alexnet_exp.config.compose import group, options
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.targets import build

if TYPE_CHECKING:
    from torch import nn


def list_models() -> list[str]:
    """List the names that `create_model` and `model=` accept."""
    return options("model")


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network of conf/model/.

    Args:
        name: One of `list_models()`.
        overrides: Keys of its yaml; nested ones as dictionaries:
            `create_model("alexnet", num_classes=10, features={"conv2": {"groups": 2}})`.

    Returns:
        A module that maps images (N, in_channels, input_size, input_size) to logits (N, num_classes).

    Raises:
        UserError: Unknown name or key.
    """
    if name not in list_models():
        raise UserError(f"There is no model {name!r}.{nearest(name, list_models())} See list_models().")
    return build(_merge(group("model", name), overrides))


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
