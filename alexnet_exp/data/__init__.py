"""Images in, uint8 batches out; augmentation on the device. Knows nothing of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["CIFAR10", "MNIST", "Batch", "Digits", "Folder", "ImageData"]

if TYPE_CHECKING:
    from alexnet_exp.data.datasets import CIFAR10, MNIST, Digits, Folder
    from alexnet_exp.data.loaders import Batch
    from alexnet_exp.data.module import ImageData


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        home = {"Batch": "loaders", "ImageData": "module"}.get(name, "datasets")
        return getattr(import_module(f"alexnet_exp.data.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
