"""Read one image file into a uint8 tensor, whatever its format; the errors name the file.

JPEG goes to torchcodec's decoder where that is installed, to torchvision's otherwise (both faster than Pillow, the same
pixels). With the other formats they are about even, and Pillow gets more variants right. A JPEG much larger than what
is kept of it goes to Pillow, which decodes it at a half, a quarter or an eighth of its size. HEIC and AVIF are
torchcodec's alone. The content decides, not the file's extension.
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

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # no others: Pillow starts programs for some
_ENDINGS = ("jpg", "jpeg", "jfif", "jpe", "png", "gif", "bmp", "webp", "tif", "tiff")
# The first that is there and loads. torchcodec 0.17.0 was 1.02 to 1.08 times as fast as torchvision 0.29.2 (medians
# of 12 alternating turns, 150 photographs of 400 x 533, one thread), and is imported in 0.06 s instead of 2.
JPEG_DECODERS = ("torchcodec", "torchvision")
FITS = ("crop", "squash", "pad")  # of images that are not square; see `stored`
VERSION = 1  # of the pixels that come out: decoded images kept by another version are not used
MAX_PIXELS = 178_956_970  # Pillow itself refuses larger ones as decompression bombs
MAX_WHOLE_PIXELS = MAX_PIXELS // 2  # where no part of the size can be decoded: 1 GB of memory
MAX_BYTES = 1 << 30
_PNG = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")

log = logging.getLogger(__name__)


def readable_extensions() -> tuple[str, ...]:
    """Return the endings of the files that are images here, lower case, without the dot."""
    if not heif.torchcodec_installed():
        return _ENDINGS
    return (*_ENDINGS, "avif", *(("heic", "heif") if heif.libheif_installed() else ()))


def read_stored(path: str, channels: int, size: int, fit: str = "crop") -> Tensor:
    """Read an image as training, cache and prediction see it: uint8 (channels, size, size).

    Args:
        path: As `decode`.
        channels: 1 or 3.
        size: See `stored`.
        fit: Likewise.

    Raises:
        UserError: As `decode`.
    """
    # Twice the size is left for the resize to shrink: its filter then hides how the decoder shrank.
    return stored(decode(path, channels, enough=2 * size), size, fit)


def decode(path: str, channels: int, max_pixels: int = MAX_PIXELS, enough: int = MAX_PIXELS) -> Tensor:
    """Return the picture as uint8 (channels, H, W), upright, on white where it is transparent.

    Args:
        path: A jpg, png, gif, bmp, webp or tif file, or a heic or avif file where torchcodec is installed; of several
            frames the first counts.
        channels: 3 for RGB, 1 for ITU-R 601 luma.
        max_pixels: Refuse pictures with more pixels, before they are decoded.
        enough: Shorter side that will do: a JPEG twice as large or more comes at a half, a quarter or an eighth
            of its size.

    Raises:
        UserError: The file cannot be read, is not an image, is damaged, cut short or too large.
    """
    with _explained(path):
        return decode_bytes(_read(path), path, channels, max_pixels, enough)


def decode_bytes(
    data: bytes, path: str, channels: int, max_pixels: int = MAX_PIXELS, enough: int = MAX_PIXELS
) -> Tensor:
    """Decode a file that has been read; `path` is its name in messages. See `decode`."""
    with _explained(path):
        rgb = _without_text_if_needed(lambda data: _decode_rgb(data, path, max_pixels, enough), data)
    return rgb if channels == 3 else luma(rgb)


def _decode_rgb(data: bytes, path: str, max_pixels: int, enough: int) -> Tensor:
    if kind := heif.kind_of(data):
        return _decode_heif(data, path, kind, min(max_pixels, MAX_WHOLE_PIXELS))
    with Image.open(BytesIO(data), formats=FORMATS) as picture:
        if picture.format == "TIFF":
            _quiet_libtiff()
        is_jpeg = picture.format in ("JPEG", "MPO")  # MPO: with more pictures after it, as phones write
        _check_pixels(path, picture.size, max_pixels if is_jpeg else min(max_pixels, MAX_WHOLE_PIXELS))
        return _decode_jpeg(data, picture, enough) if is_jpeg else _decode_any(picture)


def _check_pixels(path: str, size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise UserError(f"{path} has {width} x {height} pixels, more than {most}: shrink or remove it.")


def _without_text_if_needed(read: Callable[[bytes], T], data: bytes) -> T:
    """Read a picture; if Pillow refuses the text or the colour profile in a PNG for their size, without them.

    Neither is wanted, except for the orientation that a text of ordinary size may hold.
    """
    try:
        return read(data)
    except ValueError:
        bare = _without_text(data)
        if len(bare) == len(data):
            raise
        return read(bare)


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its text and colour profile; any other file as it is.

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
    """What an image file says of itself: size in pixels before any rotation, EXIF orientation 1 to 8."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int


def read_header(data: bytes, path: str) -> Header:
    """Read the header of a file that has been read; `path` is its name in messages.

    Raises:
        UserError: It is not an image, or its header is damaged.
    """

    def read(data: bytes) -> Header:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            # Of a PNG, Pillow would decode all pixels in search of it.
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
    """Return the bytes of a file, for `read_header` and `decode_bytes`.

    Raises:
        UserError: It cannot be read, is not a file, or is too large.
    """
    with _explained(path):
        return _read(path)


def _read(path: str) -> bytes:
    """Return the bytes of a file; neither waits for what is no file, nor takes what is no picture into memory.

    Raises:
        UserError: It is a pipe or device, or too large.
        OSError: It cannot be read.
    """
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # opening a pipe may take for ever
        raise UserError(f"{path} is not a file: replace or remove it.")
    if found.st_size > MAX_BYTES:
        raise UserError(f"{path} has {found.st_size} bytes, more than {MAX_BYTES}: shrink or remove it.")
    return Path(path).read_bytes()


@lru_cache
def _quiet_libtiff() -> None:
    """Keep libtiff from printing what it finds damaged: Pillow raises it, too, and our sentence says it."""
    package = Path(Image.__file__).parent
    for file in (*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(file)).TIFFSetErrorHandler(None)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence; damaged files raise nearly anything."""
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
        if error.errno is None:  # Pillow's own complaint about the content
            raise _damaged(path, error) from error
        raise unreadable(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be decoded ({str(error) or type(error).__name__}): replace or remove it."
    )


def _decode_jpeg(data: bytes, picture: Image.Image, enough: int) -> Tensor:
    """Decode with one of JPEG_DECODERS; with Pillow what they cannot (CMYK, smaller) or refuse (in plainer words)."""
    if min(picture.size) >= 2 * enough:
        picture.draft(None, (enough, enough))
        return _decode_any(picture)
    decode_rgb = _jpeg_decoder(JPEG_DECODERS)
    if picture.mode not in ("RGB", "L") or decode_rgb is None:
        return _decode_any(picture)
    try:
        return decode_rgb(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return _decode_any(picture)


@lru_cache
def _jpeg_decoder(names: tuple[str, ...]) -> Callable[[Tensor], Tensor] | None:
    """Load the first decoder that is there, when the first image is decoded; None leaves Pillow."""
    for name in names:
        try:
            if name == "torchvision":
                from torchvision.io import ImageReadMode, decode_jpeg

                return partial(decode_jpeg, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            if heif.torchcodec_installed():
                from torchcodec import decoders

                return partial(decoders.decode_jpeg, mode="RGB")
        except (ImportError, OSError, RuntimeError) as error:  # such as one built for another torch
            log.debug("%s does not load, and another decoder takes its place: %s", name, error)
    return None


def _decode_heif(data: bytes, path: str, kind: str, most: int) -> Tensor:
    if missing := heif.needed(kind):
        raise UserError(f"{path} is {kind}, which needs {missing}; or convert or remove it.")
    size, pixels = heif.measure(data, kind)
    _check_pixels(path, size, most)
    if pixels > MAX_PIXELS:  # all are decoded, and the first is kept
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
        wide = np.asarray(picture).astype(np.int32)  # Pillow's own conversion clips at 255
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, whose range is not known: save it with 8 or 16")
    if picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def from_pil(picture: Image.Image) -> Tensor:
    """Return a picture that is already open as `decode` returns a file's: uint8 (3, H, W).

    Raises:
        UserError: If it cannot be decoded.
    """
    with _explained(getattr(picture, "filename", "") or "The picture"):
        return _decode_any(picture)


def luma(rgb: Tensor) -> Tensor:
    """Return the ITU-R 601 luma of uint8 (3, H, W) as uint8 (1, H, W): Pillow's mode "L", bit for bit."""
    red, green, blue = rgb.int()
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(0)


def stored(image: Tensor, size: int, fit: str = "crop") -> Tensor:
    """Make a square of an image, resized bilinearly with antialiasing.

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
        return _whole(image, size, fit)
    short, long = sorted(image.shape[1:])
    if long > 16 * short:  # a strip: its ends are never seen, and 1 x 60000 would grow to gigabytes
        image = _central(image, min(image.shape[1], 16 * short), min(image.shape[2], 16 * short))
        long = max(image.shape[1:])
    if short != size:
        wanted = [size if side == short else size * side // short for side in image.shape[1:]]
        image = functional.interpolate(image.unsqueeze(0), wanted, mode="bilinear", antialias=True).squeeze(0)
    return _central(image, size, size).contiguous()


def _whole(image: Tensor, size: int, fit: str) -> Tensor:
    long = max(image.shape[1:])
    height, width = (size if fit == "squash" else max(1, size * side // long) for side in image.shape[1:])
    if (height, width) != tuple(image.shape[1:]):
        image = functional.interpolate(
            image.unsqueeze(0), (height, width), mode="bilinear", antialias=True
        ).squeeze(0)
    if fit == "squash":
        return image.contiguous()
    top, left = round((size - height) / 2), round((size - width) / 2)
    return functional.pad(image, (left, size - width - left, top, size - height - top))


def _central(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]
