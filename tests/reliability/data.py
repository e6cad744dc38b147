"""Folders, published files and subsets that training cannot use."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.makers import pack_cifar10, write_cifar10, write_folder, write_idx, write_mnist
from tests.reliability.bad import DIGITS, FILES, PUBLISHED, Bad, Kind, text
from tests.reliability.starting_points import hold

PETS = {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 2}


def pets(*changes: Callable[[Path], object], **counts: int) -> Callable[[Path], None]:
    """Return a function that makes a folder of images and then changes it."""

    def make(here: Path) -> None:
        write_folder(here / "pets", counts or PETS)
        for change in changes:
            change(here / "pets")

    return make


def _link_out(root: Path) -> None:
    """Replace the class folders by links to folders elsewhere."""
    for name in ("cat", "dog"):
        (root / "train" / name).rename(root.parent / name)
        os.symlink(root.parent / name, root / "train" / name)


def _link_split(root: Path) -> None:
    """Replace the train folder by a link to a folder elsewhere."""
    (root / "train").rename(root.parent / "elsewhere")
    os.symlink(root.parent / "elsewhere", root / "train")


def _link_in(root: Path) -> None:
    """Add a class that contains only a link to itself."""
    (root / "train" / "eel").mkdir()
    os.symlink(".", root / "train" / "eel" / "again")


def _truncate(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            (root / name).write_bytes((root / name).read_bytes()[:80])

    return change


def _pipe(root: Path) -> None:
    (root / "train" / "eel").mkdir()
    os.mkfifo(root / "train" / "eel" / "0.jpg")


FOLDERS = Kind(
    "Folders of images",
    "named with what to add or remove; the run's result.json says so, and no cache is left half-built",
    (
        Bad("", "pets does not exist: set data.root to a folder of images", "a root that is gone"),
        Bad("", "pets is not a directory", "a root that is a file", text("pets", "")),
        Bad("data.val_fraction=null", "pets/train is missing",
            "a root that holds the classes, with `data.val_fraction=null`", pets(cat=3, dog=3)),
        Bad("", "No class of pets has two images", "classes of one image", pets(cat=1, dog=1)),
        Bad("data.val_fraction=0.01 data.split_rule=by_name", "leaves no image of pets for validation: raise it",
            given=pets(cat=3, dog=3)),
        Bad("data.val_fraction=0.5", "pets already has a val folder: leave data.val_fraction out",
            "`data.val_fraction=` beside a val folder", pets()),
        Bad("", "pets has a folder val but none named train", "val without train",
            pets(**{"val/cat": 2, "val/dog": 2})),
        Bad("", "pets has only one class (cat)", "one class", pets(**{"train/cat": 3, "val/cat": 1})),
        Bad("", "pets/train/dog has no images", "a class without images",
            pets(lambda root: [path.unlink() for path in (root / "train" / "dog").iterdir()])),
        Bad("", "pets/train/notes has no images", "a class of text files", pets(
            lambda root: text("train/notes/a.txt", "a")(root))),
        Bad("", "pets/train/eel has no images", "a class that is a link to itself", pets(_link_in)),
        Bad("", "pets/train/eel has no images", "a class of a named pipe", pets(_pipe)),
        Bad("", "pets/val has classes that pets/train lacks: eel", "a class to validate with alone",
            pets(**PETS, **{"val/eel": 1})),
        Bad("", "pets/train has no class folders", "images without class folders", pets(
            lambda root: [path.rename(root / f"train/{path.parent.name}.{path.name}")
                          for path in (root / "train").glob("*/*")],
            lambda root: [path.rmdir() for path in (root / "train").iterdir() if path.is_dir()])),
        Bad("", "links that lead out of pets", "classes that are links to other folders", pets(_link_out)),
        Bad("", "pets/train is a link that leads out of pets", "a train folder that is a link", pets(_link_split)),
        Bad("data.verify=true", "cannot be decoded", "an image cut short, with data.verify=true",
            pets(_truncate("train/cat/1.jpg"))),
        Bad("data.cache=off", "cannot be decoded", "an image cut short that training comes to",
            pets(_truncate("train/cat/1.jpg"))),
        Bad("data.cache=disk", "cannot be decoded", "an image cut short in the way of the cache",
            pets(_truncate("val/cat/1.jpg"))),
    ),
    base=(*FILES, "data=folder", "data.root=pets"),
    leaves="a failed run",
    notes=("Decoding 10 images once",),
)  # fmt: skip
SKIPPED = Kind(
    "A class without a readable image",
    "a warning names the skipped images; then the class is refused",
    (
        Bad("data.on_bad_image=skip", "pets/val/dog: none of its images can be decoded; fix or remove the folder",
            "a class of broken images, with data.on_bad_image=skip", pets(_truncate("val/dog/0.jpg", "val/dog/1.jpg"))),
    ),
    base=(*FILES, "data=folder", "data.root=pets"),
    leaves="a failed run",
    notes=("Skipping 2 of 10 images", "The first one"),
)  # fmt: skip


def imagenet(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that makes two ImageNet classes with a flat val folder."""
    names = {f"train/n0144076{i}": 2 for i in (4, 5)} | {"val": 2}
    return pets(*changes, **names)


IMAGENET = Kind(
    "ImageNet's folder",
    "named with what is missing and where it is published; the run's result.json says so",
    (
        Bad("", "pets/train is missing: get ILSVRC2012_img_train.tar", "no training images", text("pets/a.txt", "")),
        Bad("", "is not an ImageNet class", "a folder of other classes", pets()),
        Bad("", "has neither class folders nor labels: unpack ILSVRC2012_devkit", "a flat val folder without labels",
            imagenet()),
        Bad("", "The labels in pets/LOC_val_solution.csv cannot be read", "a table of labels without its columns",
            imagenet(text("LOC_val_solution.csv", "a,b\n1,2\n"))),
        Bad("", "has no label: remove it, or get labels that include it", "an image that the labels do not list",
            imagenet(text("LOC_val_solution.csv", "ImageId,PredictionString\nother,n01440764 1 1 2 2\n"))),
    ),
    base=(*FILES, "data=imagenet", "data.root=pets"),
    leaves="a failed run",
)  # fmt: skip


def cifar(name: str = "", change: Callable[[Any], Any] | None = None) -> Callable[[Path], None]:
    """Return a function that writes CIFAR-10 with one of its pickles changed."""

    def make(here: Path) -> None:
        write_cifar10(here / "data", per_batch=10)
        path = here / "data" / "cifar-10-batches-py" / name
        if change is not None:
            path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes())), protocol=4))

    return make


class Call:
    """An object that makes an unpickler call os.system."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def _cut(path: str) -> Callable[[Path], None]:
    return lambda here: (here / path).write_bytes((here / path).read_bytes()[:-40])  # type: ignore[func-returns-value]


def _then(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        for step in steps:
            step(here)

    return make


_BATCH = "data_batch_2"
CIFAR10 = Kind(
    "Files of CIFAR-10",
    "named with where to get them; no code in them runs, and the run's result.json says so",
    (
        Bad("", "batches.meta is missing (downloads are disabled)", "no files, and data.download=false"),
        Bad("", "test_batch is missing", "one file of six",
            _then(cifar(), lambda here: (here / "data/cifar-10-batches-py/test_batch").unlink())),
        Bad("", "data_batch_2 is damaged", "a batch cut short",
            _then(cifar(), _cut(f"data/cifar-10-batches-py/{_BATCH}"))),
        Bad("", "it refers to posix.system", "a batch that calls os.system",
            cifar(_BATCH, lambda batch: [batch, Call()])),
        Bad("", "a label is not one of the 10 classes", "a label of 10",
            cifar(_BATCH, lambda b: b | {"labels": [10] * 10})),
        Bad("", "and 9 labels instead of 10 of each", "a label too few",
            cifar(_BATCH, lambda b: b | {"labels": [0] * 9})),
        Bad("", "pixels are f8, not bytes", "pixels of floats",
            cifar(_BATCH, lambda b: b | {"data": b["data"].astype(np.float64)})),
        Bad("", "cifar-10-python.tar.gz is damaged", "an archive cut short", _then(
            cifar(), lambda here: pack_cifar10(here / "data"), _cut("data/cifar-10-python.tar.gz"))),
    ),
    base=(*PUBLISHED, "data=cifar10", "data.val_size=10"),
    leaves="a failed run",
)  # fmt: skip


def mnist(name: str = "", array: np.ndarray | None = None) -> Callable[[Path], None]:
    """Return a function that writes MNIST with one of its files replaced."""

    def make(here: Path) -> None:
        write_mnist(here / "data")
        if array is not None:
            write_idx(here / "data" / "MNIST" / "raw" / name, array, packed=True)

    return make


_LABELS, _IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"
MNIST = Kind(
    "Files of MNIST",
    "named with where to get them; the run's result.json says so",
    (
        Bad("", "one of four files, is missing (downloads are disabled)", "no files, and data.download=false"),
        Bad("", f"{_IMAGES}.gz is damaged", "a file cut short", _then(mnist(), _cut(f"data/MNIST/raw/{_IMAGES}.gz"))),
        Bad("", "its first bytes are 0x00000803, not 0x00000801", "images in the place of labels",
            mnist(_LABELS, np.zeros((40, 28, 28), np.uint8))),
        Bad("", "label 11 is not a digit", "a label of 11", mnist(_LABELS, np.full(40, 11, np.uint8))),
        Bad("", "its images are 32 x 32, not 28 x 28", "images of another size",
            mnist(_IMAGES, np.zeros((40, 32, 32), np.uint8))),
        Bad("", "its header claims 4278190080 bytes", "a header that promises 4 GB", _then(
            mnist(), lambda here: (here / f"data/MNIST/raw/{_LABELS}.gz").unlink(),
            text(f"data/MNIST/raw/{_LABELS}", b"\0\0\x08\x01\xff\0\0\0"))),
    ),
    base=(*PUBLISHED, "data=mnist", "data.val_size=10"),
    leaves="a failed run",
)  # fmt: skip


def _being_written(here: Path) -> None:
    (here / "chunks").mkdir()
    hold(here / "chunks" / ".lock")


def _partial(**settings: object) -> Callable[[Path], object]:
    """Return a function that leaves unfinished chunks, of images that do not exist."""
    asked = {"size": None, "quality": 90, "chunk_mb": 64, "num_workers": 1, "images": "", "sizes": ""}
    return text("chunks/prepare.json", json.dumps(asked | settings))


STREAMS = Kind(
    "Chunks for streaming",
    "named with what to do; the run's result.json says so",
    (
        Bad("", "chunks/manifest.json cannot be read (No such file or directory)", "a folder that is gone"),
        Bad("", "chunks/manifest.json is damaged", "a manifest cut short", text("chunks/manifest.json", '{"version"')),
        Bad("", "chunks/manifest.json does not hold what prepare writes", "a manifest that is a list",
            text("chunks/manifest.json", "[]")),
        Bad("", "was prepared by another version", "a manifest of another version",
            text("chunks/manifest.json", '{"version": 99}')),
    ),
    base=(*FILES, "data=streaming", "data.url=chunks"),
    leaves="a failed run",
    needs=("litdata",),
)  # fmt: skip

PREPARED = Kind(
    "Chunks into a folder",
    "refused; existing files stay unchanged",
    (
        Bad("", "chunks is being written by another prepare", "a folder that another prepare is writing",
            _then(pets(), _being_written)),
        Bad("", "chunks was started with size=64: use the same", "a folder begun with another size",
            _then(pets(), _partial(size=64))),
        Bad("", "chunks was started with other images", "a folder begun with other images", _then(pets(), _partial())),
        Bad("", "chunks/prepare.json is damaged", "a prepare.json cut short",
            _then(pets(), text("chunks/prepare.json", '{"size": '))),
        Bad("", "chunks/prepare.json is damaged", "a prepare.json that is a list",
            _then(pets(), text("chunks/prepare.json", "[]"))),
        Bad("", "chunks cannot be written (File exists)", "a file in the place of the folder",
            _then(pets(), text("chunks", "a file"))),
    ),
    base=("prepare", "data.root=pets", "out=chunks"),
    needs=("litdata",),
)  # fmt: skip

RUNS = Kind(
    "Settings that do not fit the data, the network or the machine",
    "refused before the first step; the run's result.json says so",
    (
        Bad("data.val_size=5000", "are left besides the first 200 (data.train_subset)"),
        Bad("data.train_subset=null data.val_size=5000", "invalid data.val_size=5000: expected at most"),
        Bad("model.num_classes=5", "invalid model.num_classes=5: expected at least 10"),
        Bad("model.in_channels=1", "model.in_channels=1 does not match data.channels=3"),
        Bad("model._target_=my_package.Net", "_target_: my_package.Net cannot be imported"),
        Bad("model._target_=torch.nn.Linear", "torch.nn.Linear: "),
        Bad("+optimizer.layers.fc9.lr_factor=2", "the network has no such layer. Did you mean fc8"),
        Bad("scheduler=table 'scheduler.changes=[{epoch:1,lr:0.1,layer:fc9}]'", "fc9 needs a parameter group"),
        Bad("trainer.devices=[0,1]", "trainer.devices=[0, 1]: "),
        Bad("trainer.accelerator=tpu", "trainer.accelerator=tpu trainer.devices=1: "),
        Bad("trainer.val_check_interval=1000", "trainer.val_check_interval: "),
        Bad("weights=torchvision", "weights=torchvision only fits alexnet_owt and resnet18"),
    ),
    base=(*DIGITS, "logger=none"),
    leaves="a failed run",
    notes=("The images (0 MB) are kept",),
)  # fmt: skip

KINDS = (RUNS, FOLDERS, SKIPPED, IMAGENET, CIFAR10, MNIST, STREAMS, PREPARED)
