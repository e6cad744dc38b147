"""Cross-entropy of each image, also of images that are mixed with others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def image_losses(
    logits: Tensor, labels: Tensor, smoothing: float, partners: Tensor | None, shares: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each image's loss and the label it is counted by.

    Args:
        logits: (N, K).
        labels: (N,).
        smoothing: Share of the target spread over all classes.
        partners: (N,), position of the image that each is mixed with; None: no images are mixed.
        shares: (N,), of the image itself.
    """

    def against(wanted: Tensor) -> Tensor:
        return functional.cross_entropy(logits, wanted, reduction="none", label_smoothing=smoothing)

    losses = against(labels)
    if partners is not None and shares is not None:
        others = labels[partners]
        losses = torch.lerp(against(others), losses, shares.to(losses.dtype))
        labels = torch.where(shares < 0.5, others, labels)
    return losses, labels
