"""Joins networks and data: the LightningModule, optimizers, schedules, callbacks, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["ImageClassifier"]

if TYPE_CHECKING:
    from alexnet_exp.training.classifier import ImageClassifier


def __getattr__(name: str) -> Any:
    if name == "ImageClassifier":
        from alexnet_exp.training.classifier import ImageClassifier

        return ImageClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
