"""A folder of JPEG files to measure decoding with: ImageNet's usual size, and about as many bytes each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 90
CLASSES, FILES_PER_CLASS, VALIDATION_PER_CLASS = 4, 128, 2
_DISTINCT = 8  # pictures; files differ by a shift


def write_jpegs(root: Path) -> Path:
    """Write root/train/CLASS/*.jpg and root/val/CLASS/*.jpg, unless they are there; return the root."""
    if root.exists():
        return root
    pictures = [_picture(seed) for seed in range(_DISTINCT)]
    for number in range(CLASSES):
        for split, count in (("train", FILES_PER_CLASS), ("val", VALIDATION_PER_CLASS)):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                shifted = np.roll(pictures[i % _DISTINCT], (7 * i + number, 11 * i), axis=(0, 1))
                Image.fromarray(shifted).save(folder / f"{i:04}.jpg", quality=QUALITY)
    return root


def _picture(seed: int) -> np.ndarray:
    """Return smooth colours under fine grain, uint8 (H, W, 3): about 70 kB as JPEG, as photographs are."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    return (smooth + random.normal(0, 9, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
