"""Image files with flipped, cut or added bytes: decoded, or a one-line error that names the file."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet_exp.data.decode import FORMATS, read_stored
from alexnet_exp.errors import UserError
from tests.fuzz.damage import DAMAGE, damaged
from tests.fuzz.refusal import check_sentence

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage


def picture(kind: str) -> bytes:
    """Return an image with smooth and noisy parts, encoded in a file format."""
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([4 * x % 256, 5 * y % 256, (x * y) % 251], -1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


REAL = {kind: picture(kind) for kind in FORMATS}


@given(kind=st.sampled_from(sorted(REAL)), damage=DAMAGE, channels=st.sampled_from([1, 3]))
def test_a_damaged_image_is_a_picture_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, damage: list[tuple[str, float, bytes]], channels: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    path.write_bytes(damaged(REAL[kind], damage))
    try:
        assert read_stored(str(path), channels, 24).shape == (channels, 24, 24)
    except UserError as error:
        check_sentence(error, str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(content)
    try:
        assert read_stored(str(path), 3, 8).shape == (3, 8, 8)
    except UserError as error:
        check_sentence(error, str(path))
