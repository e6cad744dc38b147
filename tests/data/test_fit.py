"""data.fit: how an image becomes a square, the same in training, cache, prediction and export."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexnet_exp.data.cache import Cache, fingerprint
from alexnet_exp.data.datasets.classes import Folder
from alexnet_exp.data.decode import FITS, decode, stored
from alexnet_exp.inference import Preprocessing
from alexnet_exp.runs.export.image import FromImages
from alexnet_exp.training.checkpoint.identity import preprocessing_changes
from alexnet_exp.training.checkpoint.read import is_preprocessing
from tests.data.makers import write_folder

SIZES = [(40, 60), (61, 33), (32, 32), (500, 20), (7, 90), (31, 32)]  # height, width


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def by_pillow(image: torch.Tensor, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_resizes_both_sides_as_pillow_does(height: int, width: int) -> None:
    image = noise(height, width)
    found = stored(image, 32, "squash")
    assert found.shape == (3, 32, 32)
    difference = found.numpy().astype(int) - by_pillow(image, 32, 32)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_shows_the_whole_image_between_equal_black_bars(height: int, width: int) -> None:
    image = noise(height, width)
    rows, columns = (max(1, 32 * side // max(height, width)) for side in (height, width))
    top, left = round((32 - rows) / 2), round((32 - columns) / 2)
    found = stored(image, 32, "pad").numpy()
    inner = found[:, top : top + rows, left : left + columns].astype(int)
    assert found.shape == (3, 32, 32)
    assert np.abs(inner - by_pillow(image, rows, columns)).max() <= 1
    assert found.astype(int).sum() == inner.sum()  # the rest is black


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_exported_graph_makes_the_same_square_bit_for_bit(fit: str, height: int, width: int) -> None:
    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x
            return x.flatten(1)

    same = SimpleNamespace(evaluate=lambda x: x)
    image, seen = noise(height, width), Seen()
    FromImages(seen, same, 32, 3, fit)(image.permute(1, 2, 0)[None])  # type: ignore[arg-type]
    assert torch.equal(seen.seen[0].to(torch.uint8), stored(image, 32, fit))


def folder(root: Path, fit: str, cache: str) -> Folder:
    made = Folder(str(root), batch_size=2, image_size=8, mean=[0.5], std=[0.5], split_rule="by_name", fit=fit,
                  num_workers=0, cache=cache, cache_dir=str(root.parent / "cache"), val_fraction=0.5)  # fmt: skip
    made.setup()
    return made


def test_loader_cache_and_prediction_see_the_same_square(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {"a": 4, "b": 4}, size=(20, 12))
    squares = []
    for fit in FITS:
        plain, kept = (folder(tmp_path / "photos", fit, cache) for cache in ("off", "disk"))
        predict = Preprocessing(plain.preprocessing(), {})
        files = plain.sources["train"]
        for batch, cached in zip(plain.loader("train"), kept.loader("train"), strict=True):
            paths = [files.paths[i] for i in batch.indices.tolist()]  # type: ignore[union-attr]
            expected = torch.stack([stored(decode(path, 3), plain.stored_size, fit) for path in paths])
            assert torch.equal(batch.images, expected) and torch.equal(cached.images, expected)
            assert torch.equal(torch.stack([predict.stored(path) for path in paths]), expected)
        squares.append(expected)
    assert not any(torch.equal(squares[i], squares[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_cache_belongs_to_one_fit_and_an_older_one_to_crop() -> None:
    keys = {fingerprint([], "/", 3, 8, fit) for fit in FITS}
    assert len(keys) == 3 and fingerprint([], "/", 3, 8) in keys
    assert Cache("off", None, 3, 8, 0).fit == "crop"


def test_the_fit_is_part_of_the_preprocessing_and_a_change_is_reported(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {"a": 4, "b": 4}, size=(20, 12))
    crop, squash = (folder(tmp_path / "photos", fit, "off").preprocessing() for fit in ("crop", "squash"))
    assert preprocessing_changes(crop, squash) == ["fit is squash and was crop"]
    assert is_preprocessing(squash) and not is_preprocessing({**squash, "fit": "bend"})
    old = {key: value for key, value in crop.items() if key != "fit"}
    assert is_preprocessing(old) and Preprocessing(old, {}).fit == "crop"
    assert preprocessing_changes(old, crop) == []
