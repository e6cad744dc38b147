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
    # Not `hash`, which Python salts per process. repr tells 1 from "1".
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(count: int, *key: int | str) -> Tensor:
    """Return a random permutation of range(count), int64, that depends only on `key`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(*key)))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return a class-balanced order of N images, int64 (N,); every epoch has N positions.

    Each class has an endless sequence of permutations of its images, of which every epoch takes the next N / K: over
    the epochs, all images of a class are used equally often. If K does not divide N, the classes contribute the
    remainder in turn. Each round draws one image per class, in a random order of the classes, so that every batch is
    balanced.

    Args:
        labels: (N,) int64, on CPU.
        seed: Seed of the run.
        epoch: Finished epochs.

    Returns:
        Positions, plus N per earlier use of the image in this epoch, so that each use is augmented differently.
    """
    count = len(labels)
    by_class = labels.argsort(stable=True)
    sizes = [size for size in torch.bincount(labels).tolist() if size]
    share, left = divmod(count, len(sizes))
    parts, turns, first = [], [], 0
    for label, size in enumerate(sizes):
        # Of the left * epoch remainder images of earlier epochs, this class contributed every K-th.
        start, end = (e * share + -(-(e * left - label) // len(sizes)) for e in (epoch, epoch + 1))
        members, first = by_class[first : first + size], first + size
        # The permutations that this epoch's stretch of the endless sequence touches.
        rounds = range(start // size, -(-end // size))
        orders = [permutation(size, "balanced", seed, label, i) for i in rounds]
        taken = torch.cat(orders)[start - rounds.start * size : end - rounds.start * size]
        # Which use of its image each one is within the epoch: its place among equals in a stable sort.
        times = torch.bincount(taken, minlength=size)
        again = taken.argsort(stable=True).argsort() - (times.cumsum(0) - times)[taken]
        parts.append(members[taken] + again * count)
        turns.append(torch.arange(end - start))
    order, turn = torch.cat(parts), torch.cat(turns)
    # By round, and at random inside of a round: a stable sort of a random permutation.
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
    """`uniforms` for all images of a split, drawn once per key and indexed by each batch; not for balanced sampling.

    Drawing launches some thirty kernels on a GPU, which takes longer than a step of a small network.

    Args:
        num_images: Number of images in the split.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._drawn: dict[Any, tuple[tuple[int | str, ...], Tensor]] = {}  # the latest draw per purpose

    def __call__(self, indices: Tensor, count: int, *key: int | str) -> Tensor:
        """Return the same numbers as `uniforms`."""
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
