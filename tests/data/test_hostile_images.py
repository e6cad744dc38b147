"""Damaged or malicious image files: a one-sentence error each, in little time and memory, and never a hang."""

from __future__ import annotations

import os
import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_exp.data import decode as decode_module
from alexnet_exp.data.decode import FORMATS, MAX_BYTES, decode, read_stored
from alexnet_exp.errors import UserError, printable

# decode.py sets this filter too, but pytest's filters override it.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
TERMINAL = "\x1b]0;owned\x07\x1b[2J\u202e.jpg"


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image of noise in a file format."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_stored(str(path), 3, 32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data does not have."""
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS = {  # claimed size: how it is made, its side, message
    "a PNG of 60000 x 60000 pixels": (png, 60_000, "has more than 178956970 pixels"),
    "a JPEG of 60000 x 60000 pixels": (jpeg, 60_000, "has more than 178956970 pixels"),
    "a BMP of 60000 x 60000 pixels": (bmp, 60_000, "has more than 178956970 pixels"),
    "a GIF of 60000 x 60000 pixels": (gif, 60_000, "has more than 178956970 pixels"),
    "a PNG of 13000 x 13000 pixels": (png, 13_000, "has 13000 x 13000 pixels, more than 89478485"),
    "a BMP of 13000 x 13000 pixels": (bmp, 13_000, "has 13000 x 13000 pixels, more than 89478485"),
    "a GIF of 13000 x 13000 pixels": (gif, 13_000, "has 13000 x 13000 pixels, more than 89478485"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, name: str):
    make, side, reason = BOMBS[name]
    path = tmp_path / "bomb.jpg"
    path.write_bytes(make(side, side))
    said = refusal(path)
    assert reason in said and "shrink or remove it" in said


def test_a_jpeg_of_170_megapixels_is_decoded_at_an_eighth(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg(13_000, 13_000))  # claimed; most of its data is missing
    assert read_stored(str(tmp_path / "a.jpg"), 3, 32).shape == (3, 32, 32)


def test_a_photo_of_100_megapixels_is_not_refused(tmp_path: Path):
    path = tmp_path / "large.jpg"
    Image.new("L", (12_000, 9_000), 77).save(path, quality=20)
    assert read_stored(str(path), 1, 32).float().mean().sub(77).abs() < 2


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 9_000)], ids=str)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_single_pixels_and_narrow_strips_are_valid_images(tmp_path: Path, size: tuple[int, int], kind: str):
    path = tmp_path / "strip.png"
    Image.new("RGB", size, (10, 200, 30)).save(path, kind)
    image = read_stored(str(path), 3, 32)
    assert image.shape == (3, 32, 32)
    assert (image.float().mean((1, 2)) - torch.tensor([10.0, 200.0, 30.0])).abs().max() < 3


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "TIFF"])
@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_a_wrong_extension_changes_nothing(tmp_path: Path, kind: str, extension: str):
    right, wrong = tmp_path / f"a.{kind.lower()}", tmp_path / f"b.{extension}"
    for path in (right, wrong):
        path.write_bytes(encoded(kind))
    assert torch.equal(decode(str(right), 3), decode(str(wrong), 3))


NO_PICTURES = {  # what it is: its bytes, message
    "an empty file": (b"", "is empty"),
    "4096 zeros": (b"\0" * 4096, "is not an image"),
    "the first bytes of a JPEG": (b"\xff\xd8\xff\xe0", "is not an image"),
    "the first bytes of a PNG": (b"\x89PNG\r\n\x1a\n", "is not an image"),
    "the first bytes of a GIF": (b"GIF89a", "is not an image"),
    "a WebP of 4 GB that has 16 bytes": (
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "cannot be decoded",
    ),
    "a TIFF of 65535 tags that has none": (b"II*\0\x08\0\0\0\xff\xff", "is not an image"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    "PostScript that calls the system": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch x) system",
        "is not an image",
    ),
    "a PDF": (b"%PDF-1.4", "is not an image"),
    "a shell script": (b"#!/bin/sh\ntouch x\n", "is not an image"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@pytest.mark.parametrize("name", NO_PICTURES)
def test_a_file_that_is_not_an_image_is_named(tmp_path: Path, name: str):
    content, reason = NO_PICTURES[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    said = refusal(path)
    assert str(path) in said
    assert reason in said


def test_a_pipe_is_refused_without_blocking(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe.jpg is not a file" in refusal(tmp_path / "pipe.jpg")
    assert "is not a file" in refusal(Path("/dev/zero"))


def test_a_huge_file_is_not_read(tmp_path: Path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.write(encoded("PNG"))
        file.truncate(MAX_BYTES + 1)  # sparse: takes no space on disk
    assert f"has {MAX_BYTES + 1} bytes" in refusal(path)


@pytest.mark.usefixtures("jpeg_decoder")
def test_all_decoders_agree_on_damaged_jpegs(tmp_path: Path):
    data, dice, path = encoded("JPEG"), random.Random(3), tmp_path / "a.jpg"
    for _ in range(60):
        damaged = bytearray(data)
        damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged)
        outcomes = []
        for names in (decode_module.JPEG_DECODERS, ()):  # () leaves only Pillow
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(decode_module, "JPEG_DECODERS", names)
                try:
                    outcomes.append(decode(str(path), 3).tolist())
                except UserError as error:
                    outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_give_an_image_or_a_clear_error(tmp_path: Path, kind: str):
    data, dice, path = encoded(kind), random.Random(kind), tmp_path / "flipped.jpg"
    seen = {"picture": 0, "sentence": 0}
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            # Headers are short, but damage there does the most harm.
            place = dice.randrange(len(data) if dice.random() < 0.5 else min(64, len(data)))
            damaged[place] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_stored(str(path), 3, 16).shape == (3, 16, 16)
            seen["picture"] += 1
        except UserError as error:
            said = str(error)
            seen["sentence"] += 1
            assert said.startswith(str(path)) and "\n" not in said
    assert seen["sentence"] > 3, seen
    assert kind == "PNG" or seen["picture"] > 3, seen  # every chunk of a PNG has a checksum


def test_terminal_escapes_in_a_name_are_printed_harmlessly(tmp_path: Path):
    (tmp_path / TERMINAL).write_bytes(b"")
    said = refusal(tmp_path / TERMINAL)
    assert said.isprintable()
    assert r"\x1b]0;owned\x07\x1b[2J\u202e.jpg is empty" in said


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.jpg")
    Path(path).write_bytes(b"")
    refusal(Path(path)).encode("utf-8")


def test_names_in_any_language_are_printed_unchanged():
    assert printable("猫 кошка ñ é\N{NO-BREAK SPACE}%") == "猫 кошка ñ é\N{NO-BREAK SPACE}%"
