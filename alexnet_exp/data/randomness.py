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
