"""HEIC and AVIF: decoded with torchcodec, refused by name without it, and limited in size before decoding."""

from __future__ import annotations

import base64
import random
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from alexnet_exp.data import cache as cache_file
from alexnet_exp.data import decode, heif
from alexnet_exp.data.decode import read_stored, readable_extensions
from alexnet_exp.errors import UserError

USUAL = ("jpg", "jpeg", "jfif", "jpe", "png", "gif", "bmp", "webp", "tif", "tiff")
# Two images of 32 x 24, a red and a blue one, cropped (clap) from 64 x 64; written by pillow-heif 1.8.1.
HEIC = zlib.decompress(
    base64.b64decode(
        "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYFxdW5qSSIDBChmpOQUQdkMBZnJJQxowCQzJx9siIsDAxMDI4jFeB5Cg2SBYkDA"
        "xAwXMQVii8zMvDQwDyQrCuSkgpUB1WSUJRsyoAgyIQT5CjJLchmgKhlZMguKCoDsO5kFyflAuhSozJmRGSQ0AaxI7gPDn78/fjAw"
        "8DMnAHVIODDyMP7/D1LADFLBDEJyu5gcEoGSmk6MjGgyCxQaWae9Wjfr2QPFBQcaGBh4GkDCLUlA1WwujAeLD3YC7RBOzs8pykvO"
        "qQCK8jKwAZUwiGQWF6RCfesAxRrJOYkghylA3M4gAaL/////AORBIH0DGhYCBZkVmSCNzBwcHCD1mQW5sKgAhi5rIxMzawsDE5Rm"
        "YCjMTUkERYmBBuN6zhORMy5YKofX/7+e8v8/E1/7B4bdYfXC61+8SbU65TzfZePkc9b7eBram3fEnQa5xRCsJ0oCoudZyTv3D3by"
        "/4PZt6Z/tPrXgE0TADsog7Q="
    )
)
RED = torch.tensor([200.0, 30.0, 40.0])

needs_torchcodec = pytest.mark.skipif(not heif.torchcodec_installed(), reason="no torchcodec")
needs_libheif = pytest.mark.skipif(heif.needed("HEIC") is not None, reason="no torchcodec or no libheif")
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")


def avif(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "AVIF", **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    across, down = np.linspace(0, 255, 64)[None, :], np.linspace(0, 255, 48)[:, None]
    planes = [across + 0 * down, down + 0 * across, (across + down) / 2]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        decode.decode(str(path), 3)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    monkeypatch.setattr(heif, "torchcodec_installed", lambda: "torchcodec" not in missing)
    monkeypatch.setattr(heif, "libheif_installed", lambda: "libheif" not in missing)


def test_supported_formats_depend_on_the_installed_packages(monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch)
    assert readable_extensions() == (*USUAL, "avif", "heic", "heif")
    without(monkeypatch, "libheif")
    assert readable_extensions() == (*USUAL, "avif")
    without(monkeypatch, "torchcodec")
    assert readable_extensions() == USUAL


@pytest.mark.parametrize(
    ("version", "counts"),
    [("0.15.0", False), ("0.16.0", True), ("0.17.0+cpu", True), ("1.0", True), ("x", False)],
)
def test_a_torchcodec_without_image_decoders_is_ignored(
    monkeypatch: pytest.MonkeyPatch, version: str, counts: bool
):
    monkeypatch.setattr(heif.util, "find_spec", lambda name: object())
    monkeypatch.setattr(heif.metadata, "version", lambda name: version)
    heif._decodes_images.cache_clear()
    try:
        assert heif.torchcodec_installed() == counts
    finally:
        heif._decodes_images.cache_clear()


@needs_libheif
def test_the_first_image_of_a_heic_is_decoded(tmp_path: Path):
    path = tmp_path / "a.jpg"  # the content determines the format
    path.write_bytes(HEIC)
    image = decode.decode(str(path), 3)
    assert (image.shape, image.dtype) == ((3, 24, 32), torch.uint8)
    assert (image.float().mean((1, 2)) - RED).abs().max() < 3
    assert read_stored(str(path), 1, 16).shape == (1, 16, 16)


@needs_torchcodec
@needs_avif
def test_avif_matches_pillow(tmp_path: Path, picture: Image.Image):
    path = tmp_path / "a.avif"
    path.write_bytes(avif(picture))
    with Image.open(path) as opened:
        assert (decode.decode(str(path), 3).int() - pixels(opened).int()).abs().max() <= 2


@needs_torchcodec
@needs_avif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_orientation_is_applied(tmp_path: Path, picture: Image.Image, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.avif").write_bytes(avif(picture, quality=95, exif=exif))
    turned = Image.Transpose
    ways = [turned.FLIP_LEFT_RIGHT, turned.ROTATE_180, turned.FLIP_TOP_BOTTOM, turned.TRANSPOSE]
    ways += [turned.ROTATE_270, turned.TRANSVERSE, turned.ROTATE_90]
    expected = pixels(picture if orientation == 1 else picture.transpose(ways[orientation - 2]))
    image = decode.decode(str(tmp_path / "a.avif"), 3)
    assert image.shape == expected.shape
    assert (image.int() - expected.int()).abs().float().mean() < 3


@needs_torchcodec
@needs_avif
def test_the_first_frame_is_used_and_transparency_becomes_white(tmp_path: Path, picture: Image.Image):
    path = tmp_path / "a.avif"
    path.write_bytes(avif(picture, save_all=True, append_images=[picture.rotate(180)] * 2))
    assert (decode.decode(str(path), 3).int() - pixels(picture).int()).abs().float().mean() < 3
    picture.putalpha(0)
    path.write_bytes(avif(picture))
    assert decode.decode(str(path), 3).min() == 255


@pytest.mark.parametrize(
    ("missing", "said"),
    [("torchcodec", "is HEIC, which needs torchcodec 0.16 or newer: pip install -e '"),
     ("libheif", "is HEIC, which needs libheif: apt install libheif1")],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str):
    if missing == "libheif":
        pytest.importorskip("torchcodec")
    without(monkeypatch, missing)
    assert said in refusal(tmp_path / "a.heic", HEIC)


def test_a_torchcodec_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    said = refusal(tmp_path / "a.heic", HEIC)
    assert f"a torchcodec that matches torch {torch.__version__}" in said


def patched(data: bytes, box: bytes, offset: int, *values: int) -> bytes:
    """Write 32-bit integers into a box."""
    start = data.index(box) + 4 + offset
    return data[:start] + struct.pack(f">{len(values)}I", *values) + data[start + 4 * len(values) :]


BOMBS = {  # what claims to be large: box, offset, integers, message
    "a picture of 60000 x 60000": (
        b"ispe",
        4,
        (60_000, 60_000),
        "has 60000 x 60000 pixels, more than 89478485",
    ),
    "a strip": (b"ispe", 4, (1, 2**32 - 1), "has 32 x 4294967295 pixels, more than"),
    "a cut that is larger than the picture": (b"clap", 0, (50_000, 1, 50_000, 1), "has 50000 x 50000 pixels"),
    "a cut of negative size": (b"clap", 0, (2**32 - 50_000, 2**32 - 1), "its header is damaged"),
    "a cut by zero": (b"clap", 0, (1, 0), "its header is damaged"),
    "two pictures that are too large together": (b"ispe", 4, (9_500, 9_418), "has 178942000 pixels in all"),
    "a table that promises more": (b"ipma", 4, (2**32 - 1,), "its header is damaged"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    box, offset, values, said = BOMBS[name]
    monkeypatch.setattr(heif, "needed", lambda kind: None)
    monkeypatch.setattr(heif, "decode", lambda data, kind: pytest.fail("it was decoded"))
    monkeypatch.setattr(decode, "MAX_PIXELS", 178_941_999)
    assert said in refusal(tmp_path / "a.heic", patched(HEIC, box, offset, *values))


@needs_avif
def test_an_animation_with_too_many_frames_is_refused_before_decoding(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heif, "needed", lambda kind: None)
    monkeypatch.setattr(heif, "decode", lambda data, kind: pytest.fail("it was decoded"))
    data = avif(picture, save_all=True, append_images=[picture.rotate(180)] * 2)
    said = refusal(tmp_path / "a.avif", patched(data, b"stsz", 8, 1_000_000))
    assert "pixels in all its frames, more than 178956970" in said


@pytest.mark.parametrize(
    "name", ["no box but the first", "a thousand boxes of nothing", "a box that is endless"]
)
def test_a_header_without_a_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(heif, "needed", lambda kind: None)
    head, empty = HEIC[:28], struct.pack(">I4s", 8, b"free")
    more = {"no": b"", "a thousand": empty * 20_000, "a box": struct.pack(">I4sQ", 1, b"meta", 2**63)}
    data = head + next(tail for start, tail in more.items() if name.startswith(start))
    assert "its header has" in refusal(tmp_path / "a.heic", data)


@needs_torchcodec
@needs_avif
@pytest.mark.parametrize("kind", ["AVIF", pytest.param("HEIC", marks=needs_libheif)])
def test_flipped_bytes_give_an_image_or_a_clear_error(tmp_path: Path, picture: Image.Image, kind: str):
    data = HEIC if kind == "HEIC" else avif(picture)
    dice, path, seen = random.Random(kind), tmp_path / "flipped.heic", {"picture": 0, "sentence": 0}
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_stored(str(path), 3, 16).shape == (3, 16, 16)
            seen["picture"] += 1
        except UserError as error:
            said = str(error)
            seen["sentence"] += 1
            assert said.startswith(str(path)) and "\n" not in said and ".cpp" not in said
    assert min(seen.values()) > 3, seen


@needs_torchcodec
@needs_avif
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(tmp_path: Path, picture: Image.Image, share: float):
    data = avif(picture)
    assert "cannot be decoded" in refusal(tmp_path / "a.avif", data[: int(len(data) * share)])


def test_other_iso_media_files_are_not_images(tmp_path: Path):
    film = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"isom", 512, b"isom", b"mp42")
    assert heif.kind_of(film) is None
    assert "is not an image" in refusal(tmp_path / "film.heic", film)


def test_cached_images_record_the_torchcodec_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = set()
    monkeypatch.setattr(cache_file, "version", lambda name: "1.2")
    for installed in (True, False):
        monkeypatch.setattr(cache_file, "torchcodec_installed", lambda installed=installed: installed)
        keys.add(cache_file.fingerprint([], str(tmp_path), 3, 32))
    assert len(keys) == 2
