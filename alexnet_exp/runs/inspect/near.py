"""Near duplicates: pairs of images with almost equal difference hashes and sufficiently close pixels.

Source: the difference hash is from N. Krawetz, "Kind of Like That" (2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.randomness import permutation

SIDE = 32  # of the thumbnails that are compared, in pixels
CELLS = 8  # side of the coarse thumbnail, for a cheap lower bound of the distance
MOST_BITS = 4  # hash bits in which near duplicates may differ
# By the pigeonhole principle, hashes that differ in at most 4 bits agree on at least one of 5 bands. A band is every
# fifth bit: a band of adjacent bits would be constant for images with a black border.
_MASKS = [sum(1 << bit for bit in range(band, 64, MOST_BITS + 1)) for band in range(MOST_BITS + 1)]
_FLAT = 2.0  # grey levels; smaller steps are encoder noise, which would set random bits in flat areas
_PAIRS = 1 << 22  # compared at a time
# How far apart duplicates may be, relative to the image's contrast. JPEG at quality 60 and rescaling stay below the
# first limit. Up to the second, a pair must also be much closer than unrelated images are: 0.4 times the distance to
# the fifth nearest of 2,000 other images. Handwritten digits differ by a fifth of their contrast without being copies,
# but have many such neighbours; photographs that CIFAR-10 contains twice differ by a third, and have none.
RESAVED, ALIKE, ALONE = 0.08, 0.35, 0.4
_SAMPLE, _RANK = 2000, 5
LEAST_SIDE = 16  # pixels; a smaller image has hardly more pixels than the 9 x 8 that are hashed
PLAIN = 4.0  # grey levels; with less contrast, any two images look like duplicates


class Pairs(NamedTuple):
    """Near duplicates: indices left < right, differing hash bits, and rms pixel distance in grey levels."""

    left: np.ndarray
    right: np.ndarray
    bits: np.ndarray
    distance: np.ndarray


def shrink(images: Tensor) -> Tensor:
    """Resize images (N, C, H, W) to thumbnails (N, C, 32, 32) without keeping the aspect ratio; both uint8."""
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def difference_hash(small: Tensor) -> np.ndarray:
    """Return the difference hash, uint64 (N,): which of 9 x 8 grey values exceed their right neighbour.

    Args:
        small: (N, C, 32, 32) uint8 of `shrink`.
    """
    cells = functional.interpolate(_grey(small), (8, 9), mode="bilinear", antialias=True)[:, 0]  # (N, 8, 9)
    bits = (cells[:, :, :-1] - cells[:, :, 1:] > _FLAT).flatten(1)  # (N, 64)
    return np.packbits(bits.numpy(), axis=1).view(np.uint64)[:, 0]


def contrast(small: Tensor) -> np.ndarray:
    """Return the standard deviation of the grey values of thumbnails, float32 (N,)."""
    return _grey(small).flatten(1).std(1, correction=0).numpy()


def _grey(small: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114] if small.shape[1] == 3 else [1.0])
    return (small.float() * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)


def near_pairs(small: np.ndarray, hashes: np.ndarray, contrasts: np.ndarray) -> Pairs:
    """Return the pairs of images that are near duplicates.

    Args:
        small: (N, C, 32, 32) uint8 of `shrink`; may be memory-mapped.
        hashes: (N,) uint64.
        contrasts: (N,) float32.
    """
    block = SIDE // CELLS
    coarse = np.empty((len(small), small.shape[1] * CELLS**2), dtype=np.float32)
    for start in range(0, len(small), 4096):
        part = small[start : start + 4096].reshape(-1, small.shape[1], CELLS, block, CELLS, block)
        coarse[start : start + 4096] = part.mean((3, 5), dtype=np.float32).reshape(len(part), -1)
    reach = _reach(coarse, contrasts)
    # Block means differ less than pixels do, so each coarser thumbnail gives a lower bound of the distance: most pairs
    # are rejected without reading pixels. MNIST has 36 million pairs with close hashes.
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
    """Return the distance within which each image accepts duplicates, in grey levels, (N,); negative for plain ones."""
    sample = permutation(len(coarse), "near duplicates")[:_SAMPLE].numpy()
    rank = max(0, min(_RANK, len(sample) - 1) - 1)
    others = coarse[sample]
    alone: np.ndarray = np.empty(len(coarse), dtype=np.float32)
    squares = (others**2).mean(1)
    for start in range(0, len(coarse), 4096):
        own = coarse[start : start + 4096]
        # Mean squared distances to the sample by one matrix product; rounding can make them negative.
        apart = (own**2).mean(1)[:, None] + squares - 2 / own.shape[1] * (own @ others.T)
        apart[np.arange(start, start + len(own))[:, None] == sample] = np.inf  # itself
        alone[start : start + 4096] = np.sqrt(np.maximum(np.partition(apart, rank, axis=1)[:, rank], 0))
    reach = np.maximum(RESAVED * contrasts, np.minimum(ALIKE * contrasts, ALONE * alone))
    return np.where(contrasts < PLAIN, np.float32(-1), reach)


def _distance(images: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of pairs of images, float32 (M,)."""
    distance: np.ndarray = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), 1 << 14):  # 200 MB of RGB thumbnails in float32
        part = slice(start, start + (1 << 14))
        apart = (images[left[part]].astype(np.float32) - images[right[part]]).reshape(len(left[part]), -1)
        distance[part] = np.sqrt(np.einsum("nd,nd->n", apart, apart) / apart.shape[1])
    return distance


def close_pairs(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield index arrays of all pairs left < right whose hashes (uint64) differ in at most 4 bits, each pair once."""
    for band, mask in enumerate(_MASKS):
        key = hashes & np.uint64(mask)
        order = key.argsort(kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(bucket) > 1:
                yield from _pairs_in(bucket, hashes[bucket], _MASKS[:band])


def _pairs_in(
    bucket: np.ndarray, hashes: np.ndarray, earlier: list[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the close pairs within a bucket of one band, except pairs already found in an earlier band."""
    rows = max(1, _PAIRS // len(bucket))
    for start in range(0, len(bucket), rows):
        differ = hashes[start : start + rows, None] ^ hashes[None, start:]
        left, right = np.nonzero(np.bitwise_count(differ) <= MOST_BITS)
        new = left < right
        for mask in earlier:
            new &= differ[left, right] & np.uint64(mask) != 0
        if new.any():
            yield bucket[start + left[new]], bucket[start + right[new]]
