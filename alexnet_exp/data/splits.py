"""Cutting a validation set out of the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from alexnet_exp.data.randomness import permutation
from alexnet_exp.errors import UserError


def split_validation(
    labels: Tensor, val_size: int, how: str, seed: int, keep: int = 1
) -> tuple[Tensor, Tensor]:
    """Divide images into training and validation.

    Args:
        labels: (N,) int64.
        val_size: Images to validate with; 0 is legal.
        how: 'last' takes the last in file order; 'random' is stratified: every class gives its share.
        seed: Chooses the images of a random split.
        keep: Images that must be left to train on.

    Returns:
        Indices (int64, ascending) of the training and of the validation images.

    Raises:
        UserError: If nothing is left to train on.
    """
    count = len(labels)
    if val_size > count - keep:
        raise UserError(f"data.val_size={val_size} leaves nothing to train on: there are {count} images.")
    if how == "last":
        order = torch.arange(count)
        return order[: count - val_size], order[count - val_size :]
    chosen = torch.zeros(count, dtype=torch.bool)
    for label, share in enumerate(_shares(torch.bincount(labels), val_size)):
        members = torch.nonzero(labels == label).flatten()
        chosen[members[permutation(len(members), "validation", seed, label)[:share]]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def _shares(counts: Tensor, total: int) -> list[int]:
    """Divide `total` in proportion to `counts`, largest remainders first."""
    exact = counts.double() * total / counts.sum()
    shares = exact.floor().long()
    remainders = (exact - shares).argsort(descending=True, stable=True)
    shares[remainders[: total - int(shares.sum())]] += 1
    return [int(s) for s in shares]
