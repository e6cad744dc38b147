"""Photographs much larger than needed are decoded at a reduced size, and look the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_exp.data.decode import decode, read_stored, stored
from alexnet_exp.errors import UserError


def save(folder: Path, picture: Image.Image, **options: object) -> str:
    picture.save(folder / "a.jpg", **options)
    return str(folder / "a.jpg")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blobs and edges of every size, with a little noise."""
    rng, values = np.random.default_rng(seed), np.full((height, width, 3), 128.0)
    for cell, spread in ((100, 40), (25, 25), (6, 12), (1, 4)):
        patch = rng.normal(0, spread, (height // cell + 2, width // cell + 2, 3)).clip(-100, 100) + 128
        drawn = Image.fromarray(patch.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        values += np.asarray(drawn, dtype=np.float64) - 128
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((200, 511), (200, 511)),
        ((511, 255), (511, 255)),
        ((300, 256), (150, 128)),
        ((513, 1023), (129, 256)),
        ((1100, 1023), (275, 256)),
        ((1100, 1024), (138, 128)),
        ((2000, 2500), (250, 313)),
    ],
)
def test_large_jpegs_are_decoded_at_a_reduced_size_but_not_below_what_suffices(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
):
    image = decode(save(tmp_path, photo(*size)), channels=3, enough=128)
    assert tuple(image.shape[1:]) == expected[::-1]


@pytest.mark.parametrize(("size", "orientation"), [((1100, 800), 1), ((800, 1700), 6), ((400, 300), 8)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_reduced_jpeg_looks_the_same_as_decoded_in_full(
    tmp_path: Path, size: tuple[int, int], orientation: int, mode: str, subsampling: int, channels: int
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = photo(*size).convert(mode)
    path = save(tmp_path, drawn, quality=90, exif=exif, subsampling=subsampling)
    full, fast = decode(path, channels), read_stored(path, channels, 64)
    assert min(full.shape[1:]) == min(size)
    difference = (fast.int() - stored(full, 64).int()).abs().float()
    assert difference.mean() < 0.6
    assert difference.max() <= 5


def test_a_truncated_large_jpeg_is_an_error(tmp_path: Path):
    path = Path(save(tmp_path, photo(1100, 800)))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cannot be decoded \(.*truncated"):
        read_stored(str(path), 3, 64)
