from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.data import CIFAR10, MNIST, Digits, Folder, ImageData
from alexnet_exp.data.decode import decode, stored
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError
from tests.data.makers import CIFAR10_CLASSES, write_cifar10, write_folder, write_mnist

COMMON: dict[str, Any] = {"batch_size": 8, "image_size": 32, "mean": [0.5], "std": [0.25]}


def ready(data: ImageData) -> ImageData:
    data.setup()
    return data


def sizes(data: ImageData) -> dict[str, int]:
    return {split: len(source) for split, source in data.sources.items()}


def all_batches(data: ImageData) -> dict[str, list[torch.Tensor]]:
    """Return every batch of every split as the network receives it without random augmentation."""
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    return {
        split: [data.on_after_batch_transfer(b, 0).images for b in loader]
        for split, loader in loaders.items()
    }


# -------------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("channels", [1, 3])
def test_digits_are_split_and_upscaled(channels: int):
    data = ready(Digits(**COMMON, channels=channels, val_size=180))
    assert sizes(data) == {"train": 1262, "val": 180, "test": 355}
    assert data.classes == tuple("0123456789")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.images.shape == (8, channels, 32, 32)


def test_digits_splits_do_not_overlap():
    data = ready(Digits(**COMMON, channels=1, val_size=180))
    seen = {
        split: {image.numpy().tobytes() for image in data.sources[split].images}
        for split in ("train", "val", "test")
    }
    assert not seen["test"] & (seen["train"] | seen["val"])
    assert not seen["val"] & seen["train"]


@pytest.mark.usefixtures("no_network")
def test_cifar10_loads_all_splits_offline(tmp_path: Path):
    arrays = write_cifar10(tmp_path)
    data = ready(CIFAR10(str(tmp_path), **COMMON, val_size=20))
    assert sizes(data) == {"train": 80, "val": 20, "test": 20}
    assert data.classes == tuple(CIFAR10_CLASSES)
    assert data.sources["val"].labels.bincount().tolist() == [2] * 10
    expected = (torch.from_numpy(arrays["test"][0]).double() / 255 - 0.5) / 0.25
    result = torch.cat(all_batches(data)["test"])
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("channels", [1, 3])
def test_mnist_loads_all_splits_offline(tmp_path: Path, channels: int):
    arrays = write_mnist(tmp_path)
    data = ready(MNIST(str(tmp_path), **COMMON, channels=channels, val_size=10))
    assert sizes(data) == {"train": 30, "val": 10, "test": 20}
    assert data.classes == tuple("0123456789")
    result = torch.cat(all_batches(data)["test"])
    assert result.shape == (20, channels, 32, 32)
    expected = (torch.from_numpy(arrays["test"][0]).double() / 255 - 0.5) / 0.25
    for channel in range(channels):
        torch.testing.assert_close(result[:, channel, 2:-2, 2:-2].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", [CIFAR10, MNIST])
@pytest.mark.parametrize(
    ("download", "reason"), [(True, "the download failed"), (False, "downloads are disabled")]
)
def test_missing_data_raises_one_clear_error(tmp_path: Path, kind: type, download: bool, reason: str):
    with pytest.raises(UserError, match=f"is missing .{reason}"):
        kind(str(tmp_path), download=download, **COMMON).setup()


# -------------------------------------------------------------------------------- a folder


FOLDER = {"train/cat": 6, "train/dog": 5, "val/cat": 2, "val/dog": 2, "test/dog": 3}


def make_folder(root: Path, counts: dict[str, int] | None = None, **options: Any) -> ImageData:
    write_folder(root, counts or FOLDER, size=(40, 30), extension="png")
    return ready(Folder(str(root), **{"num_workers": 0, **COMMON, **options}))


def test_a_folder_gives_classes_and_splits(tmp_path: Path):
    data = make_folder(tmp_path)
    assert sizes(data) == {"train": 11, "val": 4, "test": 3}
    assert data.classes == ("cat", "dog")
    assert data.sources["test"].labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_decoded_resized_and_normalised(tmp_path: Path, num_workers: int, channels: int):
    data = make_folder(tmp_path, num_workers=num_workers, channels=channels)
    source = data.sources["val"]
    assert isinstance(source, FileSource)
    images = torch.stack([stored(decode(path, channels), 36) for path in source.paths]).double()
    resized = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    result = all_batches(data)
    torch.testing.assert_close(
        torch.cat(result["val"]).double(), (resized / 255 - 0.5) / 0.25, rtol=0, atol=2e-5
    )
    assert [len(batch) for batch in result["train"]] == [8, 3]
    data.teardown()


def test_the_paper_s_recipe_tests_on_center_crops(tmp_path: Path):
    data = make_folder(tmp_path, augment={"flip": True, "crop": True})
    images = torch.stack([data.stored_image("test", i) for i in range(3)])
    assert images.shape == (3, 3, 36, 36)
    expected = (images[:, :, 2:34, 2:34].double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(torch.cat(all_batches(data)["test"]).double(), expected, rtol=0, atol=1e-5)


def test_a_single_folder_is_split_by_val_fraction(tmp_path: Path):
    data = make_folder(tmp_path, {"cat": 10, "dog": 20}, val_fraction=0.2)
    assert sizes(data) == {"train": 24, "val": 6}
    assert data.sources["val"].labels.bincount().tolist() == [2, 4]
    train, val = data.sources["train"], data.sources["val"]
    assert isinstance(train, FileSource)
    assert isinstance(val, FileSource)
    everything = {str(path) for path in tmp_path.rglob("*.png")}
    assert {*train.paths, *val.paths} == everything
    assert len(train.paths) + len(val.paths) == len(everything)
    assert data.test_dataloader() == []


def test_validation_images_depend_only_on_val_seed(tmp_path: Path):
    def chosen(**options: int) -> tuple[str, ...]:
        source = ready(Folder(str(tmp_path), val_fraction=0.2, **COMMON, **options)).sources["val"]
        assert isinstance(source, FileSource)
        return source.paths

    write_folder(tmp_path, {"cat": 10, "dog": 20}, size=(9, 8))
    assert chosen(seed=1) == chosen(seed=2)
    assert chosen(val_seed=1) != chosen(val_seed=2)


def test_subsets_of_a_folder_are_the_first_files(tmp_path: Path):
    data = make_folder(tmp_path, train_subset=7, test_subset=1)
    assert sizes(data) == {"train": 7, "val": 4, "test": 1}
    train = data.sources["train"]
    assert [train.image_name(i) for i in (0, 6)] == ["train/cat/0.png", "train/dog/0.png"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_named_in_one_sentence(tmp_path: Path, num_workers: int):
    data = make_folder(tmp_path, num_workers=num_workers)
    (tmp_path / "train/cat/3.png").write_bytes(b"not an image")
    with pytest.raises(UserError) as caught:
        list(data.train_dataloader())
    assert str(caught.value).startswith(f"{tmp_path}/train/cat/3.png is not an image: ")
    assert "\n" not in str(caught.value)
    data.teardown()
