"""Random numbers that depend on what they are for, not on when they are drawn.

Order, augmentation and dropout are functions of (seed, epoch, image) or (seed, step, rank), so a resumed run, or one
with another number of workers or devices, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def mix(*values: int | str) -> int:
    """Hash any values to a 63-bit seed."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(count: int, *key: int | str) -> Tensor:
    """Return a random permutation of range(count), int64, that depends only on `key`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(*key)))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return an order of N images (int64, (N,)) in which classes come equally often, all epochs of equal length.

    Each class has its own endless order, one permutation of its images after the other, and every epoch takes the next
    N / K of it: over the epochs all images of a class come equally often. Where K does not divide N, the classes take
    turns to give one more. One image of each class follows another, in a random order of the classes each time, so
    that every batch is balanced.

    Args:
        labels: (N,) int64, in main memory.
        seed: Of the run.
        epoch: Finished epochs.

    Returns:
        Positions, + N for each earlier time in this epoch that the same image came: it is augmented in another way.
    """
    count = len(labels)
    by_class = labels.argsort(stable=True)
    sizes = [size for size in torch.bincount(labels).tolist() if size]
    share, left = divmod(count, len(sizes))
    parts, turns, first = [], [], 0
    for label, size in enumerate(sizes):
        # Of the left * epoch images that earlier epochs had beside the even shares, this class gave every K-th.
        start, end = (e * share + -(-(e * left - label) // len(sizes)) for e in (epoch, epoch + 1))
        members, first = by_class[first : first + size], first + size
        rounds = range(start // size, -(-end // size))
        orders = [permutation(size, "balanced", seed, label, i) for i in rounds]
        taken = torch.cat(orders)[start - rounds.start * size : end - rounds.start * size]
        times = torch.bincount(taken, minlength=size)
        again = taken.argsort(stable=True).argsort() - (times.cumsum(0) - times)[taken]
        parts.append(members[taken] + again * count)
        turns.append(torch.arange(end - start))
    order, turn = torch.cat(parts), torch.cat(turns)
    mixed = permutation(count, "order", seed, epoch)
    return order[mixed[turn[mixed].argsort(stable=True)]]


def uniforms(indices: Tensor, count: int, *key: int | str) -> Tensor:
    """Draw `count` uniform numbers per image, as a function of `key` and the image's index.

    Args:
        indices: (N,) int64, on any device.
        count: Numbers per image.
        key: Everything else they depend on, such as purpose, seed and epoch.

    Returns:
        (N, count) float32 in [0, 1), on the device of `indices`.

    Source: two rounds of the 32-bit mixer `lowbias32` (C. Wellons, hash-prospector) on a keyed counter.
    """
    seed = mix(*key)
    counters = indices[:, None] * count + torch.arange(count, device=indices.device)
    bits = _mixed((counters & _MASK) ^ (seed & _MASK))
    bits = _mixed(bits ^ (counters >> 32) ^ (seed >> 32))
    return (bits >> 8).to(torch.float32) * 2.0**-24  # 24 bits are exact in float32, and never round up to 1


class EpochUniforms:
    """`uniforms` of all images of a split, drawn once for each key and looked up for each batch.

    Drawing takes some thirty kernels on a GPU, which is longer than the work that small networks have for it.

    Args:
        num_images: Of the split.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._drawn: dict[Any, tuple[tuple[int | str, ...], Tensor]] = {}  # the latest of each purpose

    def __call__(self, indices: Tensor, count: int, *key: int | str) -> Tensor:
        """Return what `uniforms` returns."""
        purpose = (key[0], count, indices.device)
        if purpose not in self._drawn or self._drawn[purpose][0] != key:
            everything = torch.arange(self.num_images, device=indices.device)
            self._drawn[purpose] = (key, uniforms(everything, count, *key))
        return self._drawn[purpose][1][indices]


def _mixed(x: Tensor) -> Tensor:
    # uint32 arithmetic in int64: products may overflow, but their low 32 bits stay exact.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return a cached float32 tensor of numbers; it is shared, so never modify it.

    Args:
        values: (K,) or (K, L).
        device: Device of the tensor.
    """
    with torch.inference_mode(False):  # else a constant first used in validation would fail in training
        return torch.tensor(values, dtype=torch.float32, device=device)
