"""ImageNet (ILSVRC 2012) as published: train/WNID/*, and val/WNID/* or the flat val folder with its official labels."""

from __future__ import annotations

import csv
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet_exp.data.datasets import folder
from alexnet_exp.data.datasets.classes import Folder
from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.data.module import Source
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError, missing_extra

log = logging.getLogger(__name__)
WNID = re.compile(r"n\d{8}")
SITE = "https://image-net.org/challenges/LSVRC/2012"
DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
_VAL_NAME = "ILSVRC2012_val_{:08d}"  # image of the n-th line of the ground truth, from 1
# First and last of the sorted WordNet ids: torchvision's names apply only to these 1000 classes.
_ENDS = ("n01440764", "n15075141")


class ImageNet(Folder):
    """The 1000 classes of ILSVRC 2012, or a subset of them.

    Args:
        root: Contains train/WNID/* and val/WNID/*, or val/*.JPEG with the devkit or Kaggle's LOC_val_solution.csv.
        common: See `Folder`.
    """

    def __init__(self, root: str, **common: Any) -> None:
        super().__init__(root, val_fraction=None, **common)  # val is a folder of its own

    needs_for_test = ""  # the test labels are not public

    def load(self) -> dict[str, Source]:
        return dict(scan(self.root, self.follow_links, self.find_bad_images(), self.split_rule, self.exclude))


def scan(
    root: str,
    follow_links: bool = False,
    bad_images: folder.BadImages | None = None,
    rule: str = "stratified",
    exclude: str | None = None,
) -> dict[str, FileSource]:
    """Find the images of both splits; the arguments are those of `folder.scan`.

    Raises:
        UserError: If the folder is not ImageNet, or its labels cannot be read.
    """
    root = os.path.expanduser(root)
    val = check_layout(root, rule)
    flat = validation_classes(root) if _is_flat(val) else None
    found = folder.scan(root, None, 0, follow_links, bad_images, flat, rule, exclude=exclude)
    names = class_names(found["train"].classes)
    # The names are in the order of the ids, so labels stay valid.
    return {split: replace(source, classes=names) for split, source in found.items()}


def check_layout(root: str, rule: str) -> str:
    """Check that a folder is laid out as ImageNet.

    Returns:
        The folder of the validation images.

    Raises:
        UserError: Names what is missing and where to get it.
    """
    splits = folder.split_folders(root, rule) if os.path.isdir(root) else {}
    for split, archive in (("train", "ILSVRC2012_img_train.tar"), ("val", "ILSVRC2012_img_val.tar")):
        if split not in splits:
            raise UserError(
                f"{os.path.join(root, split)} is missing: get {archive} from {SITE} and unpack it there "
                "(train: one folder per class), or set data.root to its location."
            )
    train = os.path.join(root, splits["train"])
    with os.scandir(train) as entries:
        other = next((e.name for e in entries if os.path.isdir(e.path) and not _is_class(e.name)), None)
    if other is not None:
        raise UserError(
            f"{os.path.join(train, other)} is not an ImageNet class such as {_ENDS[0]}: "
            "use data=folder for other class folders."
        )
    return os.path.join(root, splits["val"])


def _is_class(name: str) -> bool:
    return name.startswith(".") or WNID.fullmatch(name) is not None


def _is_flat(val: str) -> bool:
    """Return whether a folder holds images rather than classes, beside which a stray image is left out."""
    with os.scandir(val) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries]
    images = [name for name, _ in names if os.path.splitext(name.lower())[1][1:] in readable_extensions()]
    return bool(images) and not any(is_dir and WNID.fullmatch(name) for name, is_dir in names)


def class_names(wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Return torchvision's names of the 1000 classes; the WordNet ids themselves for a subset.

    Args:
        wnids: Sorted WordNet ids.
    """
    if len(wnids) != 1000 or (wnids[0], wnids[-1]) != _ENDS:
        log.info("%d of ImageNet's 1000 classes: using their WordNet ids as names.", len(wnids))
        return wnids
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def validation_classes(root: str) -> dict[str, str]:
    """Return the class (WordNet id) of every image in the flat val folder, keyed by file stem.

    Raises:
        UserError: If there are no labels, or they cannot be read.
    """
    places = [Path(root, SOLUTION), Path(root, DEVKIT, "data"), Path(root, "devkit", "data")]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(
            f"{root}/val has neither class folders nor labels: unpack {DEVKIT}.tar.gz from {SITE} "
            f"in {root}, or put Kaggle's {SOLUTION} there."
        )
    try:
        return _solution(found) if found.name == SOLUTION else _devkit(found)
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"The labels in {found} cannot be read ({reason}): unpack them again.") from error


def _solution(path: Path) -> dict[str, str]:
    """Read Kaggle's table, with lines such as ILSVRC2012_val_00048981,n03995372 85 1 499 272."""
    with open(path, newline="", encoding="ascii") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


def _devkit(data: Path) -> dict[str, str]:
    """Read the official ground truth: line n is the ILSVRC2012_ID (1 to 1000) of validation image n."""
    wnids = _wnids(data / "meta.mat")
    lines = (data / "ILSVRC2012_validation_ground_truth.txt").read_text(encoding="ascii").split()
    return {_VAL_NAME.format(number): wnids[int(line)] for number, line in enumerate(lines, start=1)}


def _wnids(path: Path) -> dict[int, str]:
    """Return the WordNet id of every ILSVRC2012_ID; only leaves of the hierarchy are classes."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"Put Kaggle's {SOLUTION} into {path.parents[2]}: reading the MATLAB file {path} needs "
            f"{missing_extra('scipy', 'imagenet')}"
        ) from None
    synsets = loadmat(path, squeeze_me=True)["synsets"]  # else every field is a 1 x 1 array
    leaves = synsets[synsets["num_children"] == 0]
    return {int(i): str(wnid) for i, wnid in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
