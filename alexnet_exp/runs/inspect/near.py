"""Near duplicates: images whose difference hashes almost agree, and whose pixels lie within each other's reach.

Source: the difference hash of N. Krawetz, "Kind of Like That" (2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.randomness import permutation

SIDE = 32  # of the copy by which every image is compared, in pixels
CELLS = (
    8  # of the coarse copy, which bounds the distance from below: a block's mean differs less than its pixels
)
MOST_BITS = 4
# Hashes that differ in at most 4 bits agree in at least one of 5 bands. A band is every fifth bit: one of neighbouring
# bits would be the same for nearly all images of a set with a black border.
_MASKS = [sum(1 << bit for bit in range(band, 64, MOST_BITS + 1)) for band in range(MOST_BITS + 1)]
_FLAT = 2.0  # grey levels: smaller steps are noise of an encoder, and would be random bits of plain areas
_PAIRS = 1 << 22  # that are compared at a time
# How far apart copies of an image may be, as shares of its contrast. What JPEG at quality 60 and scaling change stays
# below the first. Up to the second, they must be far nearer to each other than to anything else: 0.4 of the
# distance to the fifth nearest of 2,000 other images. Written digits differ by a fifth of their contrast without being
# copies, and each has many such neighbours; the photographs that CIFAR-10 has twice differ by a third, and have none.
RESAVED, ALIKE, ALONE = 0.08, 0.35, 0.4
_SAMPLE, _RANK = 2000, 5
LEAST_SIDE = 16  # pixels: the 9 x 8 grey values of a smaller image are hardly less than the image
PLAIN = 4.0  # grey levels: an image of less contrast has nothing by which to tell a copy


class Pairs(NamedTuple):
    """Near duplicates: indices left < right, and how many bits of the hashes and grey levels (rms) lie between them."""

    left: np.ndarray
    right: np.ndarray
    bits: np.ndarray
    distance: np.ndarray


def shrink(images: Tensor) -> Tensor:
    """Return whole images (N, C, H, W), squashed to (N, C, 32, 32); both uint8."""
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def difference_hash(small: Tensor) -> np.ndarray:
    """Return which of 9 x 8 grey values exceed their right neighbour: the 64 bits of uint64 (N,).

    Args:
        small: (N, C, 32, 32) uint8 of `shrink`.
    """
    cells = functional.interpolate(_grey(small), (8, 9), mode="bilinear", antialias=True)[:, 0]
    bits = (cells[:, :, :-1] - cells[:, :, 1:] > _FLAT).flatten(1)  # (N, 64)
    return np.packbits(bits.numpy(), axis=1).view(np.uint64)[:, 0]


def contrast(small: Tensor) -> np.ndarray:
    """Return the standard deviation of the grey values of shrunk images, float32 (N,)."""
    return _grey(small).flatten(1).std(1, correction=0).numpy()


def _grey(small: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114] if small.shape[1] == 3 else [1.0])
    return (small.float() * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)


def near_pairs(small: np.ndarray, hashes: np.ndarray, contrasts: np.ndarray) -> Pairs:
    """Return the pairs of images that are copies of each other.

    Args:
        small: (N, C, 32, 32) uint8 of `shrink`; a memory-mapped array will do.
        hashes: (N,) uint64.
        contrasts: (N,) float32.
    """
    block = SIDE // CELLS
    coarse = np.empty((len(small), small.shape[1] * CELLS**2), dtype=np.float32)
    for start in range(0, len(small), 4096):
        part = small[start : start + 4096].reshape(-1, small.shape[1], CELLS, block, CELLS, block)
        coarse[start : start + 4096] = part.mean((3, 5), dtype=np.float32).reshape(len(part), -1)
    reach = _reach(coarse, contrasts)
    # Means of pixels differ less than the pixels: each copy bounds the distance of the next one from below. MNIST has
    # 36 million close pairs, and hardly one whose pixels have to be looked at.
    grey = coarse.reshape(-1, small.shape[1], CELLS, CELLS).mean(1)
    tiny = grey.reshape(-1, CELLS // 2, 2, CELLS // 2, 2).mean((2, 4))
    found = [Pairs(*(np.empty(0, dtype=kind) for kind in (int, int, np.uint8, np.float32)))]
    for left, right in close_pairs(hashes):
        for copies in (tiny, grey, small):
            distance = _distance(copies, left, right)
            near = distance <= np.minimum(reach[left], reach[right])
            left, right, distance = left[near], right[near], distance[near]
        found.append(Pairs(left, right, np.bitwise_count(hashes[left] ^ hashes[right]), distance))
    return Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _reach(coarse: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """Return how far a copy of each image may be from it, in grey levels, (N,); below 0 for plain images."""
    sample = permutation(len(coarse), "near duplicates")[:_SAMPLE].numpy()
    rank = max(0, min(_RANK, len(sample) - 1) - 1)
    others = coarse[sample]
    alone: np.ndarray = np.empty(len(coarse), dtype=np.float32)
    squares = (others**2).mean(1)
    for start in range(0, len(coarse), 4096):
        own = coarse[start : start + 4096]
        apart = (own**2).mean(1)[:, None] + squares - 2 / own.shape[1] * (own @ others.T)
        apart[np.arange(start, start + len(own))[:, None] == sample] = np.inf  # itself
        alone[start : start + 4096] = np.sqrt(np.maximum(np.partition(apart, rank, axis=1)[:, rank], 0))
    reach = np.maximum(RESAVED * contrasts, np.minimum(ALIKE * contrasts, ALONE * alone))
    return np.where(contrasts < PLAIN, np.float32(-1), reach)


def _distance(images: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of pairs of images, float32 (M,)."""
    distance: np.ndarray = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), 1 << 14):
        part = slice(start, start + (1 << 14))
        apart = (images[left[part]].astype(np.float32) - images[right[part]]).reshape(len(left[part]), -1)
        distance[part] = np.sqrt(np.einsum("nd,nd->n", apart, apart) / apart.shape[1])
    return distance


def close_pairs(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs left < right whose hashes (uint64) differ in at most 4 bits, each once, as arrays of indices."""
    for band, mask in enumerate(_MASKS):
        key = hashes & np.uint64(mask)
        order = key.argsort(kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(bucket) > 1:
                yield from _pairs_in(bucket, hashes[bucket], _MASKS[:band])


def _pairs_in(
    bucket: np.ndarray, hashes: np.ndarray, earlier: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the close pairs of images that agree in a band, without those that agree in an earlier one."""
    rows = max(1, _PAIRS // len(bucket))
    for start in range(0, len(bucket), rows):
        differ = hashes[start : start + rows, None] ^ hashes[None, start:]
        left, right = np.nonzero(np.bitwise_count(differ) <= MOST_BITS)
        fresh = left < right
        for mask in earlier:
            fresh &= differ[left, right] & np.uint64(mask) != 0
        if fresh.any():
            yield bucket[start + left[fresh]], bucket[start + right[fresh]]
