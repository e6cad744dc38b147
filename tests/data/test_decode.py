from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from alexnet_exp.data import heif
from alexnet_exp.data.decode import _jpeg_decoder, decode, luma, readable_extensions, stored
from alexnet_exp.errors import UserError


@pytest.fixture
def picture() -> Image.Image:
    """A smooth RGB image, 64 wide and 48 high, with four different corners."""
    across, down = np.linspace(0, 255, 64)[None, :], np.linspace(0, 255, 48)[:, None]
    planes = [across + 0 * down, down + 0 * across, (across + down) / 2]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def noise(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).normal(128, 80, (48, 64)).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def save(folder: Path, name: str, picture: Image.Image, **options: object) -> str:
    picture.save(folder / name, **options)
    return str(folder / name)


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def pillow(path: str) -> torch.Tensor:
    with Image.open(path) as picture:
        return pixels(picture)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, picture: Image.Image, extension: str):
    options = {"lossless": True} if extension == "webp" else {}
    image = decode(save(tmp_path, f"a.{extension}", picture, **options), channels=3)
    assert image.dtype == torch.uint8
    assert torch.equal(image, pixels(picture))


@pytest.mark.usefixtures("jpeg_decoder")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": 0}])
def test_jpeg_pixels_match_pillow(tmp_path: Path, picture: Image.Image, options: dict[str, int]):
    path = save(tmp_path, "a.jpg", picture, **options)
    assert torch.equal(decode(path, channels=3), pillow(path))


any_size = pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 16), (17, 33), (250, 101)])


@any_size
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.usefixtures("jpeg_decoder")
def test_jpegs_of_any_size_and_mode_match_pillow(tmp_path: Path, size: tuple[int, int], mode: str):
    path = save(tmp_path, "a.jpg", noise(1).resize(size).convert(mode))
    assert torch.equal(decode(path, channels=3), pillow(path))


@any_size
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_pngs_of_any_size_and_mode_match_pillow(tmp_path: Path, size: tuple[int, int], mode: str):
    path = save(tmp_path, "a.png", noise(1).resize(size).convert(mode))
    assert torch.equal(decode(path, channels=3), pillow(path))


@pytest.mark.usefixtures("jpeg_decoder")
def test_the_first_image_of_a_multi_picture_jpeg_is_used(tmp_path: Path, picture: Image.Image):
    path = save(tmp_path, "a.jpg", picture, format="MPO", save_all=True, append_images=[noise(0)])
    alone = save(tmp_path, "b.jpg", picture)
    with Image.open(path) as several:
        assert several.format == "MPO"
    assert torch.equal(decode(path, channels=3), pillow(alone))


def test_the_gif_palette_is_applied_and_the_first_frame_is_used(tmp_path: Path, picture: Image.Image):
    few_colours = picture.quantize(32)
    other = picture.rotate(180)
    path = save(tmp_path, "a.gif", few_colours, save_all=True, append_images=[other])
    assert torch.equal(decode(path, channels=3), pixels(few_colours))


@pytest.mark.parametrize("extension", ["webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_used(tmp_path: Path, picture: Image.Image, extension: str):
    options = {"lossless": True} if extension == "webp" else {}
    path = save(
        tmp_path, f"a.{extension}", picture, save_all=True, append_images=[picture.rotate(180)], **options
    )
    assert torch.equal(decode(path, channels=3), pixels(picture))


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_transparency_becomes_white(tmp_path: Path, picture: Image.Image, extension: str):
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    rgba = picture.copy()
    rgba.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if extension == "webp" else {}
    image = decode(save(tmp_path, f"a.{extension}", rgba, **options), channels=3)
    share = torch.from_numpy(alpha) / 255
    expected = pixels(picture) * share + 255 * (1 - share)
    assert (image - expected).abs().max() <= 1
    assert image[:, :, 0].min() == 255


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path, picture: Image.Image):
    palette = picture.quantize(16)
    clear = np.array(palette) == 3
    image = decode(save(tmp_path, "a.png", palette, transparency=3), channels=3)
    expected = pixels(palette)
    expected[:, clear] = 255
    assert clear.any()
    assert torch.equal(image, expected)


def test_grey_with_alpha_becomes_white(tmp_path: Path):
    image = decode(save(tmp_path, "a.png", Image.new("LA", (4, 4), (0, 128))), channels=3)
    assert (image.int() - 127).abs().max() <= 1


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, extension: str):
    values = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    image = decode(save(tmp_path, f"a.{extension}", Image.fromarray(values)), channels=3)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    assert np.array_equal(image[0].numpy(), expected)


def test_16_bit_rgb_png_is_scaled(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    image = decode(str(path), channels=3).permute(1, 2, 0).numpy()
    assert np.abs(image - values / 257).max() <= 1


def test_1_bit_png_is_black_and_white(tmp_path: Path, picture: Image.Image):
    bits = picture.convert("1")
    assert torch.equal(decode(save(tmp_path, "a.png", bits), channels=3), pixels(bits))


def test_32_bit_float_is_refused(tmp_path: Path):
    path = save(tmp_path, "a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UserError, match="32-bit pixels"):
        decode(path, channels=3)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (3, lambda x: x.flip(1, 2)),
        (4, lambda x: x.flip(1)),
        (6, lambda x: x.rot90(-1, (1, 2))),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, picture: Image.Image, extension, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(extension, {})
    image = decode(save(tmp_path, f"a.{extension}", picture, exif=exif, **options), channels=3)
    expected = turn(pixels(picture))
    assert image.shape == expected.shape
    assert (image.int() - expected.int()).abs().max() <= (8 if extension == "jpg" else 0)


@pytest.mark.usefixtures("jpeg_decoder")
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are undefined
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_orientation_matches_pillow(tmp_path: Path, orientation: int, options: dict[str, bool]):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, "a.jpg", noise(2), exif=exif, **options)
    with Image.open(path) as stored_so:
        assert torch.equal(decode(path, channels=3), pixels(ImageOps.exif_transpose(stored_so)))


def test_torchcodec_is_imported_with_the_first_image(tmp_path: Path):
    pytest.importorskip("torchcodec")
    path = save(tmp_path, "a.jpg", noise(0))
    code = (
        "import sys; from alexnet_exp.data import decode\n"
        "def there(): return [name for name in ('torchcodec', 'torchvision') if name in sys.modules]\n"
        "assert 'avif' in decode.readable_extensions(); print(there())\n"
        f"decode.decode({path!r}, 3); print(there())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines() == ["[]", "['torchcodec']"], found.stderr


@pytest.mark.parametrize("installed", [True, False], ids=["one that does not load", "none"])
def test_without_torchcodec_the_pixels_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, installed: bool
):
    path = save(tmp_path, "a.jpg", noise(0))
    expected = decode(path, channels=3)
    monkeypatch.setattr(heif, "torchcodec_installed", lambda: installed)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    caplog.set_level("DEBUG", "alexnet_exp.data.decode")
    _jpeg_decoder.cache_clear()
    try:
        assert torch.equal(decode(path, channels=3), expected)
        assert _jpeg_decoder(("torchcodec", "torchvision")).func.__module__.startswith("torchvision")
        monkeypatch.setitem(sys.modules, "torchvision.io", None)
        _jpeg_decoder.cache_clear()
        assert torch.equal(decode(path, channels=3), expected)  # by Pillow
    finally:
        _jpeg_decoder.cache_clear()
    assert ("torchcodec does not load" in caplog.text) == installed


def test_content_decides_not_the_extension(tmp_path: Path, picture: Image.Image):
    path = save(tmp_path, "png.jpg", picture, format="PNG")
    assert torch.equal(decode(path, channels=3), pixels(picture))


def test_one_channel_is_pillows_luma(tmp_path: Path, picture: Image.Image):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    expected = torch.from_numpy(np.array(Image.fromarray(noise).convert("L")))
    assert torch.equal(luma(torch.from_numpy(noise).permute(2, 0, 1))[0], expected)
    path = save(tmp_path, "a.png", picture)
    grey = decode(path, channels=1)
    assert torch.equal(grey[0], torch.from_numpy(np.array(picture.convert("L"))))
    assert grey.shape == (1, 48, 64)


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error_not_a_grey_image(tmp_path: Path, extension: str, share: float):
    path = Path(save(tmp_path, f"a.{extension}", noise(0)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=f"{path} (cannot be decoded|is not an image)"):
        decode(str(path), channels=3)


@pytest.mark.usefixtures("jpeg_decoder")
@pytest.mark.parametrize("missing", [3, 4, 5, 50, 500])
@pytest.mark.parametrize("seed", range(4, 7))
def test_a_jpeg_that_lacks_a_few_bytes_is_an_error(tmp_path: Path, missing: int, seed: int):
    path = Path(save(tmp_path, "a.jpg", noise(seed)))
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(UserError, match=r"cannot be decoded \(.*truncated"):
        decode(str(path), channels=3)


@pytest.mark.usefixtures("jpeg_decoder")
def test_a_jpeg_that_lacks_only_its_end_marker_is_complete(tmp_path: Path):
    path = Path(save(tmp_path, "a.jpg", noise(4)))  # its last bits fill a byte; otherwise this is an error
    whole = decode(str(path), channels=3)
    path.write_bytes(path.read_bytes()[:-2])
    assert torch.equal(decode(str(path), channels=3), whole)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not"),
    ],
)
def test_a_file_that_is_not_an_image_is_named(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} {reason}"):
        decode(str(path), 3)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    for path in (tmp_path / "nope.jpg", tmp_path):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            decode(str(path), 3)


def test_pixels_are_limited_before_decoding(tmp_path: Path, picture: Image.Image):
    path = save(tmp_path, "a.png", picture)
    assert decode(path, channels=3, max_pixels=64 * 48).shape == (3, 48, 64)
    with pytest.raises(UserError, match=r"a\.png has 64 x 48 pixels, more than 3071"):
        decode(path, channels=3, max_pixels=64 * 48 - 1)


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path):
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path} has more than 178956970 pixels"):
        decode(str(path), channels=3)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (300, 201), (31, 200), (500, 60)])
@pytest.mark.parametrize("target", [32, 57])
def test_stored_matches_pillows_resize_and_center_crop(size: tuple[int, int], target: int):
    across, down = np.arange(size[0])[None, :], np.arange(size[1])[:, None]
    waves = [127 + 120 * np.sin(across / 7 + shift) * np.cos(down / 5) for shift in range(3)]
    picture = Image.fromarray(np.stack(waves, 2).astype(np.uint8))
    scale = target / min(size)
    resized = picture.resize([int(side * scale + 1e-6) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - target) / 2) for side in resized.size)
    expected = pixels(resized.crop((left, top, left + target, top + target)))
    image = stored(pixels(picture), target)
    assert image.dtype == torch.uint8
    assert image.shape == (3, target, target)
    difference = (image.int() - expected.int()).abs().float()
    assert difference.mean() < 0.6
    assert difference.max() <= 4


def test_stored_keeps_the_pixels_of_an_image_that_fits(picture: Image.Image):
    image = pixels(picture)
    assert torch.equal(stored(image, 48), image[:, :, 8:56])


def test_stored_enlarges_small_images():
    image = torch.full((1, 5, 9), 77, dtype=torch.uint8)
    assert torch.equal(stored(image, 32), torch.full((1, 32, 32), 77, dtype=torch.uint8))


def test_a_long_strip_is_cropped_before_resizing():
    strip = torch.arange(60_000).remainder(251).to(torch.uint8).view(1, 1, -1)
    image = stored(strip, 64)
    assert image.shape == (1, 64, 64)
    assert set(image.flatten().tolist()) <= set(range(int(strip[0, 0, 29_998]), int(strip[0, 0, 30_001]) + 1))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"zTXt", b"key\0\0" + zlib.compress(bytes(2 << 20))),
        (b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(2 << 20))),
        (b"tEXt", b"key\0" + bytes(65 << 20)),
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt"],
)
@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_text_of_any_size_in_a_png_is_ignored(
    tmp_path: Path, picture: Image.Image, kind: bytes, content: bytes, after_the_pixels: bool
):
    path = Path(save(tmp_path, "a.png", picture))
    data = path.read_bytes()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    place = len(data) - 12 if after_the_pixels else 33  # before IEND or after IHDR
    path.write_bytes(data[:place] + chunk + data[place:])
    assert torch.equal(decode(str(path), 3), pixels(picture))


def test_orientation_in_png_text_is_applied(tmp_path: Path, picture: Image.Image):
    about = PngImagePlugin.PngInfo()
    about.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    path = save(tmp_path, "a.png", picture, pnginfo=about)
    assert torch.equal(decode(path, 3), pixels(picture.rotate(-90, expand=True)))


def test_a_png_with_text_and_too_many_pixels_is_refused(tmp_path: Path, picture: Image.Image):
    about = PngImagePlugin.PngInfo()
    about.add_text("key", "x" * (2 << 20), zip=True)
    with pytest.raises(UserError, match="pixels, more than 5"):
        decode(save(tmp_path, "a.png", picture, pnginfo=about), 3, max_pixels=5)


def test_the_error_for_a_file_that_is_not_an_image_lists_the_supported_formats(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(UserError) as raised:
        decode(str(path), 3)
    assert f"(supported: {', '.join(readable_extensions())})" in str(raised.value)
