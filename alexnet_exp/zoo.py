"""Python API for the networks of conf/model/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alexnet_exp.config.compose import group, options
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.pretrained import shipped, shipped_file
from alexnet_exp.targets import build

if TYPE_CHECKING:
    from torch import nn

_OF_TORCHVISION = ("alexnet_owt", "resnet18")


def list_models() -> list[str]:
    """List the names that `create_model` and `model=` accept."""
    return options("model")


def create_model(name: str, pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Build a network of conf/model/.

    Args:
        name: One of `list_models()`.
        pretrained: With trained weights: those that ship with this package (`alexnet_exp.pretrained`), or
            torchvision's for alexnet_owt and resnet18, which are downloaded. If `num_classes` is not theirs, the last
            layer is new.
        overrides: Keys of its yaml; nested ones as dictionaries:
            `create_model("alexnet", num_classes=10, features={"conv2": {"groups": 2}})`.

    Returns:
        A module that maps images (N, in_channels, input_size, input_size) to logits (N, num_classes).

    Raises:
        UserError: Unknown name or key, or pretrained weights that are missing or do not fit the overrides.
    """
    if name not in list_models():
        raise UserError(f"There is no model {name!r}.{nearest(name, list_models())} See list_models().")
    model: nn.Module = build(_merge(group("model", name), overrides))
    return _with_weights(model, name) if pretrained else model


def _with_weights(model: nn.Module, name: str) -> nn.Module:
    from alexnet_exp.models.weights import torchvision_to_ours
    from alexnet_exp.training.checkpoint import start
    from alexnet_exp.training.checkpoint.read import read_checkpoint

    file = shipped_file(name)
    if file is not None:
        weights = {k.removeprefix("model."): v for k, v in read_checkpoint(file)["state_dict"].items()}
    elif name in _OF_TORCHVISION:
        try:
            published = start.published_for(model)
        except UserError:
            raise _misfit(name) from None
        weights = torchvision_to_ours(start.download(published)[0])
    else:
        known = ", ".join([*shipped(), *_OF_TORCHVISION])
        raise UserError(f"{name} has no pretrained weights; these have: {known}.")
    weights, _ = start.fit_last_layer(weights, model, None)
    if start.first_mismatch(model.state_dict(), weights):
        raise _misfit(name)
    model.load_state_dict(weights)
    return model


def _misfit(name: str) -> UserError:
    return UserError(f"The pretrained weights of {name} do not fit these overrides: leave some of them out.")


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged
