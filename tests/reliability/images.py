"""Bad files given to `predict` among good ones: each is named in its row, and the others are predicted."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def _encoded(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _wide(path: Path) -> None:
    Image.fromarray(np.full((9, 9), 1e6, np.float32)).save(path, "TIFF")


def _wrong_checksum() -> bytes:
    data = bytearray(_encoded("PNG"))
    data[data.index(b"IDAT") + 9] ^= 255
    return bytes(data)


_TIFF = _encoded("TIFF", compression="tiff_lzw")

# Description: (file name, function that creates it, part of the error in its row).
IMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a JPEG cut in the middle": ("cut.jpg", _file(_encoded("JPEG")[:900]), "cannot be decoded"),
    "a PNG with a wrong checksum": ("sum.png", _file(_wrong_checksum()), "cannot be decoded"),
    "a PNG without pixels": ("none.png", _file(_encoded("PNG")[:40]), "is not an image"),
    "a GIF without a frame": ("none.gif", _file(_encoded("GIF")[:30]), "is not an image"),
    "a BMP cut in the middle": ("cut.bmp", _file(_encoded("BMP")[:900]), "cannot be decoded"),
    "a WebP cut in the middle": ("cut.webp", _file(_encoded("WEBP")[:300]), "cannot be decoded"),
    "a TIFF cut in the middle": ("cut.tif", _file(_TIFF[: len(_TIFF) // 2]), ""),
    "a TIFF with damaged pixels": (
        "bad.tif",
        _file(_TIFF[:60] + b"\xff" * 200 + _TIFF[260:]),
        "cannot be decoded",
    ),
    "a TIFF of 32-bit numbers": ("wide.tif", _wide, "its 32-bit pixels have no known range"),
    "a picture of another format (ICO)": (
        "a.ico.png",
        _file(_encoded("ICO", sizes=[(16, 16)])),
        "is not an image",
    ),
    "a text": ("text.png", _file(b"not a picture\n"), "is not an image"),
    "a name in the list of what is not there": (
        "gone.jpg",
        lambda path: None,
        "cannot be read: No such file",
    ),
    "a link to nothing": (
        "link.jpg",
        lambda path: os.symlink("nowhere", path),
        "cannot be read: No such file",
    ),
    "a link to itself": (
        "self.jpg",
        lambda path: os.symlink("self.jpg", path),
        "cannot be read: Too many levels",
    ),
    "a named pipe": ("pipe.jpg", lambda path: os.mkfifo(path), "is not a file: replace or remove it"),
}
