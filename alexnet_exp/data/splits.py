"""Which images validate, which make a subset, and in which order a part of a split shows all of it.

Two rules, recorded as data.split_rule. `by_name`: a hash of an image's own name and a seed decides where it goes, so
that adding, removing or renaming other files does not move it. `by_order`: its position decides, as in runs without a
record of the rule.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from alexnet_exp.data.randomness import permutation
from alexnet_exp.errors import UserError

RULES = ("by_name", "by_order")


def draw(name: str, *key: int | str) -> float:
    """Return a number in [0, 1) that depends on `name` and `key` alone."""
    text = unicodedata.normalize("NFC", name)  # a Mac may store the same name decomposed
    data = "/".join([*map(str, key), text]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48


def validation_by_name(labels: Tensor, names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Mark the images that validate, as bool (N,): those whose number is below `fraction`.

    The numbers vary, so shares do too. A class keeps the image with the largest number for training. Where there are so
    few images that none at all validates, each class that `fraction` gives half an image or more gives its first.

    Args:
        labels: (N,) int64.
        names: Paths relative to the class folders: renaming a class moves nothing. Classes with the same file names
            (0001.jpg ...) are cut alike.
        fraction: Share to validate with, 0 to below 1.
        seed: Chooses which.
    """
    key = ("validation", seed)
    numbers = _numbers(names, *key)
    counts = torch.bincount(labels)
    chosen = numbers < fraction
    # The largest of each class: the last of its images in the order of the numbers.
    order = numbers.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    chosen[order[counts.cumsum(0)[counts > 0] - 1]] = False
    if not chosen.any():
        few = (counts > 1) & (counts * fraction >= 0.5)
        chosen[_lowest(labels, names, few.long().tolist(), *key)] = True
    return chosen


def even_subset(labels: Tensor, names: Sequence[str], count: int, seed: int) -> Tensor:
    """Choose `count` images, the same number of every class as far as each has so many.

    Args:
        labels: (N,) int64.
        names: Of the images, relative to their class folders.
        count: 1 to N.
        seed: Chooses which.

    Returns:
        Indices (int64, ascending).
    """
    left = torch.bincount(labels)
    taken = torch.zeros_like(left)
    # Classes that are used up drop out, and the others share what is still to be chosen.
    while (missing := count - int(taken.sum())) > 0:
        open_classes = torch.nonzero(left > taken).flatten()
        if missing < len(open_classes):
            order = permutation(len(open_classes), "subset", seed)
            taken[open_classes[order[:missing]]] += 1
        else:
            share = missing // len(open_classes)
            taken[open_classes] = torch.minimum(left, taken + share)[open_classes]
    return _lowest(labels, names, taken.tolist(), "subset", seed)


def _numbers(names: Sequence[str], *key: int | str) -> Tensor:
    return torch.tensor([draw(name, *key) for name in names], dtype=torch.float64)


def _lowest(labels: Tensor, names: Sequence[str], counts: Sequence[int], *key: int | str) -> Tensor:
    """Return the `counts` images of each class whose names draw the lowest numbers, as ascending indices."""
    numbers = _numbers(names, *key)
    chosen = [
        members[numbers[members].argsort(stable=True)[:count]]
        for label, count in enumerate(counts)
        if len(members := torch.nonzero(labels == label).flatten())
    ]
    return torch.cat(chosen).sort().values


def spread_order(labels: Tensor) -> Tensor:
    """Return an order (int64, (N,)) in which the first few images show the whole split.

    It begins with one image of every class; from there on each class comes up as often as its size says. It is always
    the same.
    """
    counts = torch.bincount(labels)
    shuffled = permutation(len(labels), "spread")
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    of = labels[by_class]
    turns = (torch.arange(len(labels)) - (counts.cumsum(0) - counts)[of]).double() / counts[of]
    mixed = permutation(len(labels), "turns")  # classes whose turn is the same come in no order of their own
    return by_class[mixed[turns[mixed].argsort(stable=True)]]


def split_validation(
    labels: Tensor, val_size: int, how: str, seed: int, keep: int = 1, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Divide images into training and validation.

    Args:
        labels: (N,) int64.
        val_size: Images to validate with; 0 is legal.
        how: 'last' takes the last in file order; 'random' is stratified: every class gives its share.
        seed: Chooses the images of a random split.
        keep: Images that must be left to train on.
        names: A random split goes by them, relative to the class folders, instead of by position.

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
    shares = _shares(torch.bincount(labels), val_size)
    if names is not None:
        chosen[_lowest(labels, names, shares, "validation", seed)] = True
        return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()
    for label, share in enumerate(shares):
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
