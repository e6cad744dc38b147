"""Networks: plain `torch.nn.Module`s that map images to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["AlexNet", "LocalResponseNorm", "layer_table", "resnet18"]

if TYPE_CHECKING:
    from alexnet_exp.models.alexnet import AlexNet
    from alexnet_exp.models.layers import LocalResponseNorm
    from alexnet_exp.models.resnet import resnet18
    from alexnet_exp.models.summary import layer_table

_HOMES = {"AlexNet": "alexnet", "LocalResponseNorm": "layers", "layer_table": "summary", "resnet18": "resnet"}


def __getattr__(name: str) -> Any:
    """Import networks lazily, so that reading the schema in `spec` does not import torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"alexnet_exp.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
