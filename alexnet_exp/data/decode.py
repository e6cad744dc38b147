"""Decode an image file of any supported format to a uint8 tensor; errors name the file.

JPEGs are decoded by torchcodec if it is installed, else by torchvision: both are faster than Pillow and give the same
pixels. For the other formats speed is about even, and Pillow gets more variants right. A JPEG much larger than needed
goes to Pillow as well, which decodes it at 1/2, 1/4 or 1/8 of its size. Only torchcodec reads HEIC and AVIF.
The format is taken from the content, not from the file extension.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data import heif
from alexnet_exp.errors import UserError, unreadable

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # for some others Pillow starts external programs
_ENDINGS = ("jpg", "jpeg", "jfif", "jpe", "png", "gif", "bmp", "webp", "tif", "tiff")
# Tried in this order. torchcodec 0.17.0 was 1.02 to 1.08 times as fast as torchvision 0.29.2 (medians of 12
# alternating runs, 150 photographs of 400 x 533, one thread), and imports in 0.06 s instead of 2.
JPEG_DECODERS = ("torchcodec", "torchvision")
FITS = ("crop", "squash", "pad")  # how `stored` makes an image square
WHOLE = "whole"  # the pixels of squash, for random crops that know the aspect ratio; not a choice of data.fit
VERSION = 1  # of the decoded pixels: increase it when they change, which invalidates cached images
MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
MAX_WHOLE_PIXELS = MAX_PIXELS // 2  # for formats without reduced-size decoding: 1 GB of memory
MAX_BYTES = 1 << 30
_PNG = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")

log = logging.getLogger(__name__)


def readable_extensions() -> tuple[str, ...]:
    """Return the supported file extensions, lower case, without the dot."""
    if not heif.torchcodec_installed():
        return _ENDINGS
    return (*_ENDINGS, "avif", *(("heic", "heif") if heif.libheif_installed() else ()))


def read_stored(path: str, channels: int, size: int, fit: str = "crop") -> Tensor:
    """Read an image as training, cache and prediction use it: uint8 (channels, size, size).

    Args:
        path: See `decode`.
        channels: 1 or 3.
        size: See `stored`.
        fit: Likewise.

    Raises:
        UserError: See `decode`.
    """
    return read_with_aspect(path, channels, size, fit)[0]


def read_with_aspect(path: str, channels: int, size: int, fit: str = "crop") -> tuple[Tensor, float]:
    """Return an image as `read_stored` does, and width over height of the file's own."""
    # At least twice the size is decoded, so that the resize filters out the artefacts of reduced-size decoding.
    image = decode(path, channels, enough=2 * size)
    return stored(image, size, fit), image.shape[2] / image.shape[1]


def decode(path: str, channels: int, max_pixels: int = MAX_PIXELS, enough: int = MAX_PIXELS) -> Tensor:
    """Decode a file to uint8 (channels, H, W): EXIF orientation applied, transparency on white, first frame only.

    Args:
        path: A jpg, png, gif, bmp, webp or tif file; with torchcodec also heic or avif.
        channels: 3 for RGB, 1 for ITU-R 601 luma.
        max_pixels: Refuse larger images before decoding them.
        enough: Shorter side that suffices: a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        UserError: The file cannot be read, is not an image, is damaged, truncated or too large.
    """
    with _explained(path):
        return decode_bytes(_read(path), path, channels, max_pixels, enough)


def decode_bytes(
    data: bytes, path: str, channels: int, max_pixels: int = MAX_PIXELS, enough: int = MAX_PIXELS
) -> Tensor:
    """Decode the content of a file; `path` is its name in messages. See `decode`."""
    with _explained(path):
        rgb = _without_text_if_needed(lambda data: _decode_rgb(data, path, max_pixels, enough), data)
    return rgb if channels == 3 else luma(rgb)


def _decode_rgb(data: bytes, path: str, max_pixels: int, enough: int) -> Tensor:
    if kind := heif.kind_of(data):
        return _decode_heif(data, path, kind, min(max_pixels, MAX_WHOLE_PIXELS))
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        if picture.format == "TIFF":
            _quiet_libtiff()
        is_jpeg = picture.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file, as phones write
        _check_pixels(path, picture.size, max_pixels if is_jpeg else min(max_pixels, MAX_WHOLE_PIXELS))
        return _decode_jpeg(data, picture, enough) if is_jpeg else _decode_any(picture)


def _check_pixels(path: str, size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise UserError(f"{path} has {width} x {height} pixels, more than {most}: shrink or remove it.")


def _without_text_if_needed(read: Callable[[bytes], T], data: bytes) -> T:
    try:
        return read(data)
    except ValueError:
        # Pillow refuses PNGs with large text chunks or colour profiles; nothing here needs them.
        bare = _without_text(data)
        if len(bare) == len(data):
            raise
        return read(bare)


def _without_text(data: bytes) -> bytes:
    """Strip text and colour profile from a PNG; return any other file unchanged.

    Source: PNG specification, 5.2 and 5.3: a signature, then chunks of length, name, content and checksum.
    """
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


class Header(NamedTuple):
    """The header of an image file: size in pixels before EXIF rotation, EXIF orientation 1 to 8."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int


def read_header(data: bytes, path: str) -> Header:
    """Parse the header in the content of a file; `path` is its name in messages.

    Raises:
        UserError: It is not an image, or its header is damaged.
    """

    def read(data: bytes) -> Header:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            # For a PNG without it in front of the pixels, Pillow would decode them all.
            known = picture.format != "PNG" or "exif" in picture.info
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if known else 1
            valid = orientation if orientation in range(1, 9) else 1
            width, height = picture.size
            return Header(str(picture.format), picture.mode, width, height, valid)

    with _explained(path):
        if kind := heif.kind_of(data):
            (width, height), _ = heif.measure(data, kind)
            return Header(kind, "", width, height, 1)
        return _without_text_if_needed(read, data)


def read_bytes(path: str) -> bytes:
    """Return the content of a file, for `read_header` and `decode_bytes`.

    Raises:
        UserError: It cannot be read, is not a file, or is too large.
    """
    with _explained(path):
        return _read(path)


def _read(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        UserError: It is a pipe or device, or too large.
        OSError: It cannot be read.
    """
    found = os.stat(path)
    # Opening a pipe may block forever. A folder is left to read_bytes, whose error says what it is.
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{path} is not a file: replace or remove it.")
    if found.st_size > MAX_BYTES:
        raise UserError(f"{path} has {found.st_size} bytes, more than {MAX_BYTES}: shrink or remove it.")
    return Path(path).read_bytes()


@lru_cache
def _quiet_libtiff() -> None:
    """Keep libtiff from printing to stderr; Pillow raises its errors as well."""
    package = Path(Image.__file__).parent
    for file in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(file)).TIFFSetErrorHandler(None)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn any exception of a decoder into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        empty = os.path.exists(path) and not os.path.getsize(path)
        what = "is empty (0 bytes)" if empty else "is not an image"
        raise UserError(
            f"{path} {what}: replace or remove it (supported: {', '.join(readable_extensions())})."
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more than {MAX_PIXELS} pixels: shrink or remove it.") from error
    except OSError as error:
        if error.errno is None:  # raised by Pillow about the content, not by the file system
            raise _damaged(path, error) from error
        raise unreadable(path, error) from error
    except Exception as error:
        # Damaged files raise nearly anything: SyntaxError, IndexError, struct.error ...
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be decoded ({str(error) or type(error).__name__}): replace or remove it."
    )


def _decode_jpeg(data: bytes, picture: Image.Image, enough: int) -> Tensor:
    """Decode with one of JPEG_DECODERS, or with Pillow for CMYK, reduced sizes, and files the decoder rejects."""
    if min(picture.size) >= 2 * enough:
        picture.draft(None, (enough, enough))
        return _decode_any(picture)
    decode_rgb = _jpeg_decoder(JPEG_DECODERS)
    if picture.mode not in ("RGB", "L") or decode_rgb is None:
        return _decode_any(picture)
    try:
        return decode_rgb(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:  # Pillow may still read it, or say better what is wrong
        return _decode_any(picture)


@lru_cache
def _jpeg_decoder(names: tuple[str, ...]) -> Callable[[Tensor], Tensor] | None:
    """Return the first decoder that is installed and loads; None to use Pillow."""
    for name in names:
        try:
            if name == "torchvision":
                from torchvision.io import ImageReadMode, decode_jpeg

                return partial(decode_jpeg, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            if heif.torchcodec_installed():
                from torchcodec import decoders

                return partial(decoders.decode_jpeg, mode="RGB")
        except (ImportError, OSError, RuntimeError) as error:  # such as a build for another torch
            log.debug("%s does not load, trying the next decoder: %s", name, error)
    return None


def _decode_heif(data: bytes, path: str, kind: str, most: int) -> Tensor:
    if missing := heif.needed(kind):
        raise UserError(f"{path} is {kind}, which needs {missing}; or convert or remove it.")
    size, pixels = heif.measure(data, kind)
    _check_pixels(path, size, most)
    if pixels > MAX_PIXELS:  # torchcodec decodes all frames, although only the first is used
        raise UserError(
            f"{path} has {pixels} pixels in all its frames, more than {MAX_PIXELS}: shrink or remove it."
        )
    image = heif.decode(data, kind)
    if len(image) == 3:
        return image.contiguous()
    return _decode_any(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def _decode_any(picture: Image.Image) -> Tensor:
    is_png = picture.format == "PNG"
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and is_png):
        # Pillow's conversion would clip at 255 instead of scaling.
        wide = np.asarray(picture).astype(np.int32)
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError("its 32-bit pixels have no known range: save it with 8 or 16 bits")
    if picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def from_pil(picture: Image.Image) -> Tensor:
    """Convert an open PIL image as `decode` does a file: uint8 (3, H, W).

    Raises:
        UserError: It cannot be decoded.
    """
    with _explained(getattr(picture, "filename", "") or "The picture"):
        return _decode_any(picture)


def luma(rgb: Tensor) -> Tensor:
    """Convert uint8 (3, H, W) to ITU-R 601 luma, uint8 (1, H, W); bit for bit Pillow's mode "L"."""
    red, green, blue = rgb.int()
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(0)


def stored(image: Tensor, size: int, fit: str = "crop") -> Tensor:
    """Make an image square, with a bilinear antialiased resize.

    Args:
        image: uint8 (C, H, W).
        size: Side of the result in pixels.
        fit: 'crop': the shorter side becomes `size`, and the central square is kept; 'squash': both sides become
            `size`; 'pad': the longer side becomes `size`, and the rest is black, as much on either side.

    Returns:
        uint8 (C, size, size).

    Source: 'crop': Krizhevsky et al. 2012, section 2; 'squash': Caffe's tools/convert_imageset.cpp with resize_height
        and resize_width.
    """
    if fit != "crop":
        return _resize_whole(image, size, fit)
    short, long = sorted(image.shape[1:])
    # A strip: the crop drops its ends anyway, and resizing 1 x 60000 would take gigabytes.
    if long > 16 * short:
        image = _center_crop(image, min(image.shape[1], 16 * short), min(image.shape[2], 16 * short))
    if short != size:
        wanted = [size if side == short else size * side // short for side in image.shape[1:]]
        image = functional.interpolate(image.unsqueeze(0), wanted, mode="bilinear", antialias=True).squeeze(0)
    return _center_crop(image, size, size).contiguous()


def _resize_whole(image: Tensor, size: int, fit: str) -> Tensor:
    long = max(image.shape[1:])
    height, width = (size if fit != "pad" else max(1, size * side // long) for side in image.shape[1:])
    if (height, width) != tuple(image.shape[1:]):
        image = functional.interpolate(
            image.unsqueeze(0), (height, width), mode="bilinear", antialias=True
        ).squeeze(0)
    if fit != "pad":
        return image.contiguous()
    top, left = round((size - height) / 2), round((size - width) / 2)
    return functional.pad(image, (left, size - width - left, top, size - height - top))


def _center_crop(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]
