"""Images in, uint8 batches out; augmentation on the device. Knows nothing of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["CIFAR10", "MNIST", "Batch", "Digits", "Folder", "ImageData", "ImageNet", "Streaming"]

if TYPE_CHECKING:
    from alexnet_exp.data.datasets.classes import CIFAR10, MNIST, Digits, Folder
    from alexnet_exp.data.datasets.imagenet import ImageNet
    from alexnet_exp.data.loaders import Batch
    from alexnet_exp.data.module import ImageData
    from alexnet_exp.data.streaming.dataset import Streaming


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        homes = {
            "Batch": "loaders",
            "ImageData": "module",
            "ImageNet": "datasets.imagenet",
            "Streaming": "streaming.dataset",
        }
        return getattr(import_module(f"alexnet_exp.data.{homes.get(name, 'datasets.classes')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
