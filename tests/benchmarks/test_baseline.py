"""The hand-written PIL loop reads the same images, preprocesses them alike, and pauses outside its turn."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from baseline import PilImages, PlainLoader, transform_of
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from alexnet_exp.config.compose import group
from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.data.streaming.dataset import StreamSource
from alexnet_exp.errors import UserError
from tests.runs.measured_runs import subject


@pytest.mark.parametrize("augment", ["none", "flip_crop", "paper"])
def test_torchvision_preprocesses_the_same_images(tmp_path: Path, augment: str) -> None:
    fit = subject(tmp_path, f"augment={augment}", "model.input_size=40").fit()
    images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
    image, label = images[5]
    assert len(images) == len(fit.data.sources["train"]) and label == int(fit.data.sources["train"].labels[5])
    assert image.shape == (3, 40, 40)
    if augment == "none":  # the same picture, up to Pillow's rounding
        ours = fit.data.pipeline.evaluate(fit.data.sources["train"].images[5:6])[0]
        assert (image - ours).abs().mean() < 0.05


def test_an_augmentation_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    one = subject(tmp_path, "augment=none", "augment.whiten=true")
    with pytest.raises(UserError, match=r"augment.whiten is not compared with torchvision's"):
        transform_of(one.fit().data, one.config()["augment"])


@pytest.mark.parametrize(("size", "crop"), [(29, 29), (40, 32)])
def test_a_crop_is_no_larger_than_the_stored_image(size: int, crop: int) -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    source = ArraySource(pixels, torch.zeros(1), ("a",), "black train")
    preprocess = SimpleNamespace(image_size=size, mean=[0.5] * 3, std=[0.5] * 3)
    data: Any = SimpleNamespace(preprocess=preprocess, sources={"train": source}, channels=3)
    transform = transform_of(data, group("augment", "paper"))
    assert f"RandomCrop(size=({crop}, {crop})" in str(transform)
    assert PilImages(source, transform)[0][0].shape == (3, size, size)


def test_the_pil_loop_reads_the_files_of_cached_images(tmp_path: Path) -> None:
    for shade in (10, 20, 30):
        Image.new("RGB", (8, 4), (shade,) * 3).save(tmp_path / f"{shade}.png")
    paths = tuple(str(tmp_path / f"{shade}.png") for shade in (10, 20, 30))
    files = FileSource(paths, torch.tensor([0, 1, 2]), ("a", "b", "c"), "shades train", str(tmp_path))
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    decoded = DecodedSource(pixels, files.labels, files.classes, files.name, files=files)
    seen: list[Any] = []
    cut = decoded.subset(torch.tensor([2, 0, 1])).first(2)
    images = PilImages(
        cut, lambda picture: seen.append((picture.size, picture.getpixel((0, 0)))) or pixels[0]
    )
    assert [images[i][1] for i in range(len(images))] == [2, 0]
    assert seen == [((8, 4), (30,) * 3), ((8, 4), (10,) * 3)]
    preprocess = SimpleNamespace(image_size=4, mean=[0.5], std=[0.5])
    data: Any = SimpleNamespace(preprocess=preprocess, sources={"train": cut}, stored_size=4, channels=1)
    transform = transform_of(data, group("augment", "none"))
    assert transform(Image.new("RGB", (8, 6))).shape == (1, 4, 4), "the strip is cut, not squeezed, and grey"
    assert "CenterCrop" in str(transform)


def test_images_in_chunks_are_refused(tmp_path: Path) -> None:
    source = StreamSource(("a",), torch.zeros(1), ("a",), "chunks train", "s3://b", "0")
    with pytest.raises(UserError, match="data=streaming is not compared with torchvision's loader"):
        PilImages(source, lambda picture: torch.zeros(1))


def test_grey_images_pass_through_pillow() -> None:
    source = ArraySource(torch.full((1, 1, 4, 4), 7, dtype=torch.uint8), torch.zeros(1), ("a",), "grey train")
    seen: list[Any] = []
    images = PilImages(source, lambda picture: seen.append(picture) or torch.zeros(1))
    images[0]
    assert isinstance(seen[0], Image.Image) and seen[0].mode == "L" and seen[0].getpixel((0, 0)) == 7


class _Slow(Dataset):
    """Says in a file that an image was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open(self.folder / str(os.getpid()), "a") as file:
            file.write(".")
        time.sleep(0.01)
        return torch.zeros(1), 0

    def asked(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def test_the_workers_of_the_pil_loop_pause_outside_their_turn(tmp_path: Path) -> None:
    dataset = _Slow(tmp_path)
    with PlainLoader(dataset, 2, 1, torch.device("cpu")) as loader:
        for turn in range(2):
            assert len(list(loader.steps(3))) == 3, turn
            time.sleep(0.05)
            before = dataset.asked()
            time.sleep(0.2)
            assert dataset.asked() == before
    assert all(not Path(f"/proc/{path.name}/stat").exists() for path in tmp_path.iterdir())
