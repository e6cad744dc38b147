"""HEIC and AVIF: their headers, and decoding by torchcodec.

Both are nested boxes (ISO/IEC 14496-12 and 23008-12). The decoders trust any size that a header claims, and decode
every frame of an animation, so the number of pixels is read here before they are called.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata, util

import torch
from torch import Tensor

from alexnet_exp.errors import missing_extra

_BRANDS = {"AVIF": (b"avif", b"avis"), "HEIC": tuple(b"heic heix heim heis hevc hevx mif1 msf1".split())}
_LIBHEIF = {"darwin": "libheif.1.dylib", "win32": "heif.dll"}
_MAX_BOXES, _MAX_BYTES = 1 << 14, 1 << 20  # of a header


def torchcodec_installed() -> bool:
    """Return whether a torchcodec with image decoders is installed, without the cost of importing it."""
    return util.find_spec("torchcodec") is not None and _decodes_images()


@lru_cache
def _decodes_images() -> bool:
    try:
        major, minor = metadata.version("torchcodec").split(".")[:2]
        return (int(major), int(minor)) >= (0, 16)
    except (ValueError, metadata.PackageNotFoundError):
        return False


@lru_cache
def libheif_installed() -> bool:
    """Return whether libheif is installed, which torchcodec needs for HEIC but does not ship."""
    try:
        ctypes.CDLL(_LIBHEIF.get(sys.platform, "libheif.so.1"))
    except OSError:
        return False
    return True


def kind_of(head: bytes) -> str | None:
    """Return "HEIC", "AVIF" or None, given the first bytes of a file."""
    if head[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(head[:4], "big"), 256)
    brands = [head[start : start + 4] for start in range(8, length, 4) if start != 12]  # at 12: the version
    return next((kind for kind, known in _BRANDS.items() if any(brand in known for brand in brands)), None)


def needed(kind: str) -> str | None:
    """Return what must be installed to decode this kind of file, None if nothing is missing."""
    if not torchcodec_installed():
        return missing_extra("torchcodec 0.16 or newer", "decode")
    try:
        from torchcodec import decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return f"a torchcodec that matches torch {torch.__version__}: the installed one does not load"
    if kind == "HEIC" and not libheif_installed():
        return "libheif: apt install libheif1, brew install libheif or conda install -c conda-forge libheif"
    return None


def measure(data: bytes, kind: str) -> tuple[tuple[int, int], int]:
    """Return (width, height) of the largest image, and the total pixels of all tiles and frames.

    Raises:
        ValueError: The header is damaged.
    """
    try:
        stills = list(_stills(memoryview(data)))
        # torchcodec decodes the frames of an AVIF animation, but only the stills of a HEIC.
        frames = list(_frames(memoryview(data))) if kind == "AVIF" else []
    except (struct.error, IndexError) as error:
        raise ValueError("its header is damaged") from error
    if not stills and not frames:
        raise ValueError("its header has no size")
    sizes = [*stills, *((width, height) for width, height, _ in frames)]
    pixels = sum(w * h for w, h in stills) + sum(w * h * count for w, h, count in frames)
    return max(sizes, key=lambda size: size[0] * size[1]), pixels


def decode(data: bytes, kind: str) -> Tensor:
    """Decode the first image, with orientation applied: uint8 (3, H, W), or (4, H, W) with alpha.

    Raises:
        ValueError: The file is damaged.
    """
    from torchcodec.decoders import decode_avif, decode_heic

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image = (decode_avif if kind == "AVIF" else decode_heic)(encoded, mode="UNCHANGED")
    except RuntimeError as error:  # keep the first line, without the place in torchcodec's source
        raise ValueError(re.sub(r"^.*\.cpp:\d+, ", "", str(error).partition("\n")[0])) from error
    return image[0] if image.ndim == 4 else image


def _stills(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the size of every item that has one: the image, its tiles, thumbnails and masks."""
    for header in _find(data, b"meta", b"iprp"):
        if len(header) > _MAX_BYTES:
            raise ValueError("its header is too large")
        properties = [box for bodies in _find(header, b"ipco") for box in _boxes(bodies)]
        for table in _find(header, b"ipma"):
            for numbers in _items(table):
                own = [properties[number - 1] for number in numbers if 0 < number <= len(properties)]
                if sizes := [size for kind, body in own if (size := _size(kind, body))]:
                    yield max(width for width, _ in sizes), max(height for _, height in sizes)


def _size(kind: bytes, body: memoryview) -> tuple[int, int] | None:
    """Return the size in an `ispe` (image) or `clap` (crop) property; libheif accepts crops larger than the image."""
    if kind == b"ispe":
        return struct.unpack_from(">II", body, 4)
    if kind == b"clap":
        width, below_width, height, below_height = struct.unpack_from(">iiii", body)
        if min(width, below_width, height, below_height) <= 0:
            raise ValueError("its header is damaged")
        return -(-width // below_width), -(-height // below_height)
    return None


def _items(table: memoryview) -> Iterator[list[int]]:
    """Yield, for every item of an `ipma` table, the 1-based indices of its properties."""
    version, wide = table[0], table[3] & 1
    (count,), place = struct.unpack_from(">I", table, 4), 8
    for _ in range(count):
        place += 2 if version == 0 else 4  # skip the item's id
        (own,) = struct.unpack_from("B", table, place)
        numbers = struct.unpack_from(f">{own}{'H' if wide else 'B'}", table, place + 1)
        # The highest bit marks essential properties.
        yield [number & (0x7FFF if wide else 0x7F) for number in numbers]
        place += 1 + own * (2 if wide else 1)


def _frames(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (width, height, number of frames) of every track."""
    for track in _find(data, b"moov", b"trak"):
        for header in _find(track, b"tkhd"):
            width, height = struct.unpack(">II", header[-8:])  # 16.16 fixed point
            for table in _find(track, b"mdia", b"minf", b"stbl", b"stsz"):
                yield width >> 16, height >> 16, struct.unpack_from(">I", table, 8)[0]


def _find(data: memoryview, kind: bytes, *inner: bytes) -> Iterator[memoryview]:
    """Yield the content of every box at a path of nested kinds."""
    for found, body in _boxes(data):
        if found == kind:
            body = body[4:] if kind == b"meta" else body  # a full box: version and flags come first
            yield from _find(body, *inner) if inner else (body,)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, content) of consecutive boxes, up to the end or to bytes that are not a box."""
    start = 0
    for _ in range(_MAX_BOXES):
        if start + 8 > len(data):
            return
        (size, kind), header = struct.unpack_from(">I4s", data, start), 8
        if size == 1:  # a 64-bit size follows
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        size = size or len(data) - start  # 0: extends to the end
        if size < header:
            return
        yield kind, data[start + header : start + size]
        start += size
    raise ValueError("its header has too many parts")
