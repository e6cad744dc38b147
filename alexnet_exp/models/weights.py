"""Convert state dicts between torchvision's parameter names and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# torchvision.models.alexnet numbers its modules; ResNet-18's names are the same on both sides.
_ALEXNET = {
    "features.0": "features.conv1",
    "features.3": "features.conv2",
    "features.6": "features.conv3",
    "features.8": "features.conv4",
    "features.10": "features.conv5",
    "classifier.1": "classifier.fc6",
    "classifier.4": "classifier.fc7",
    "classifier.6": "classifier.fc8",
}


def torchvision_to_ours(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the keys of a torchvision AlexNet or ResNet-18 state dict for alexnet_owt or resnet18.

    Args:
        state: Parameter name -> tensor; names that are not in torchvision's AlexNet are kept.
    """
    return _rename(state, _ALEXNET)


def ours_to_torchvision(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the keys of an alexnet_owt or resnet18 state dict for torchvision's networks."""
    return _rename(state, {ours: theirs for theirs, ours in _ALEXNET.items()})


def _rename(state: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    renamed = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{parameter}" if module else key] = value
    return renamed
