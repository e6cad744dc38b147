"""Folders of images, a sub-folder per class: train/CLASS/**, val/CLASS/**, test/CLASS/** or just CLASS/**."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError, printable

log = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff")
ENDINGS = tuple(f".{extension}" for extension in EXTENSIONS)
Classes = dict[str, list[str]]  # class name -> sorted paths
BadImages = Callable[[list[str], str], set[str]]  # (all paths, root) -> those to leave out


def load(root: str, split: str, val_fraction: float | None = None, seed: int = 0) -> FileSource:
    """Return one split of `scan`.

    Raises:
        UserError: As `scan`, or there is no such split.
    """
    splits = scan(root, val_fraction, seed)
    if split not in splits:
        raise UserError(
            f"{root} has no {split} images (it has {', '.join(splits)}): add the folder {root}/{split}."
        )
    return splits[split]


def scan(
    root: str,
    val_fraction: float | None = None,
    seed: int = 0,
    follow_links: bool = False,
    bad_images: BadImages | None = None,
    val_classes: Mapping[str, str] | None = None,
) -> dict[str, FileSource]:
    """Find the images of every split: "train", and "val" and "test" where there are any.

    A root with a train folder has its splits in folders; any other root is one set of class folders. Classes
    are numbered by name. Hidden names are skipped. The root may be a link to anywhere; links in it are followed only
    as long as they stay inside, unless `follow_links` says otherwise.

    Args:
        root: The folder.
        val_fraction: Cut this share (0 to below 1) of every class from the training images for validation;
            needed by a root without split folders, refused by one with a val folder.
        seed: Chooses which images.
        follow_links: Follow links that lead out of the folder, too.
        bad_images: Names the files to leave out, as if they were not there.
        val_classes: The val folder has no class folders: the class of each image by its name without ending.

    Raises:
        UserError: A folder is missing, empty or a link that may not be followed, classes do not fit, or `val_fraction`
            does not.
    """
    root = os.path.expanduser(root)
    found = _find_splits(root, val_fraction, follow_links, val_classes)
    if bad_images is not None:
        found = _without(found, bad_images, root)
    classes = tuple(found["train"])
    if len(classes) == 1:
        raise UserError(f"{root} has one class only ({classes[0]}): add a folder for at least one more.")
    for split in found:
        unknown = [name for name in found[split] if name not in found["train"]]
        if unknown:
            names = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            raise UserError(
                f"{root}/{split} has classes that {root}/train lacks: {names}; add or remove them."
            )
    if val_fraction:
        found["train"], found["val"] = _cut(found["train"], val_fraction, seed)
        if not any(found["val"].values()):
            raise UserError(
                f"data.val_fraction={val_fraction} leaves no image of {root} for validation: raise it."
            )
    name = os.path.basename(os.path.abspath(root))
    return {split: _source(found[split], classes, f"{name} {split}", root) for split in found}


def _without(found: dict[str, Classes], bad_images: BadImages, root: str) -> dict[str, Classes]:
    """Return the splits without the files that are no images."""
    everything = [path for split in found.values() for paths in split.values() for path in paths]
    bad = bad_images(everything, root)
    left = {
        split: {name: [path for path in paths if path not in bad] for name, paths in classes.items()}
        for split, classes in found.items()
    }
    for split in left:
        if empty := next((name for name, paths in left[split].items() if not paths), None):
            folder = os.path.dirname(found[split][empty][0])
            raise UserError(f"{folder}: not one image can be decoded; mend or remove the folder.")
    return left


def _find_splits(
    root: str, val_fraction: float | None, follow_links: bool, val_classes: Mapping[str, str] | None = None
) -> dict[str, Classes]:
    if not os.path.exists(root):
        raise UserError(f"{root} does not exist: set data.root to a folder of images.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a directory: set data.root to a folder of images.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction} must be at least 0 and below 1.")
    splits = [split for split in ("train", "val", "test") if os.path.isdir(os.path.join(root, split))]
    if "train" in splits:
        if "val" in splits and val_fraction is not None:
            raise UserError(f"{root} has a val folder of its own: leave data.val_fraction out.")
        return {split: _find_split(root, split, follow_links, val_classes) for split in splits}
    if splits:
        raise UserError(f"{root} has a folder {splits[0]} but none named train: add {root}/train.")
    if val_fraction is None:
        raise UserError(
            f"{root}/train is missing: add it, or, if {root} holds the classes, set data.val_fraction=0.1."
        )
    return {"train": _find_classes(root, _Walk(root, follow_links))}


def _find_split(root: str, split: str, follow_links: bool, val_classes: Mapping[str, str] | None) -> Classes:
    folder, walk = os.path.join(root, split), _Walk(root, follow_links)
    if not walk.stays_inside(folder):
        raise UserError(
            f"{folder} is a link that leads out of {root}: say data.follow_links=true to follow it."
        )
    if split == "val" and val_classes is not None and (found := _sort_out(folder, val_classes, walk)):
        return found
    return _find_classes(folder, walk)


def _sort_out(folder: str, classes: Mapping[str, str], walk: _Walk) -> Classes:
    """Return the images of a folder without class folders, by class."""
    found: Classes = {}
    for entry in _entries(folder):
        if entry.name.lower().endswith(ENDINGS) and walk.may_enter(entry):
            name = classes.get(os.path.splitext(entry.name)[0])
            if name is None:
                raise UserError(f"{entry.path} has no label: remove it, or get the labels that list it.")
            found.setdefault(name, []).append(entry.path)
    walk.tell()
    return dict(sorted(found.items()))


def _find_classes(folder: str, walk: _Walk) -> Classes:
    """Return the images of every class folder below `folder`, classes and paths sorted."""
    found: Classes = {}
    for entry in _entries(folder):
        if _is(entry.is_dir) and walk.may_enter(entry):
            before = len(walk.left_out)
            found[entry.name] = sorted(walk.images(entry.path))
            if not found[entry.name]:
                walk.refuse_links(entry.path, before)
                raise UserError(f"{entry.path} has no images ({', '.join(EXTENSIONS)}): fill or remove it.")
    if not found:
        walk.refuse_links(folder)
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder named for it."
        )
    walk.tell()
    return dict(sorted(found.items()))


class _Walk:
    """Walks class folders without leaving the real folder of the data set; notes the links that would.

    Args:
        root: The data set's folder, which may be a link to elsewhere.
        follow_links: Go wherever links lead.
    """

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.inside = os.path.join(os.path.realpath(root), "")
        self.left_out: list[str] = []

    def stays_inside(self, path: str) -> bool:
        return self.follow_links or os.path.realpath(path).startswith(self.inside)

    def may_enter(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink() or self.stays_inside(entry.path):
            return True
        self.left_out.append(entry.path)
        return False

    def refuse_links(self, folder: str, before: int = 0) -> None:
        """Refuse a folder in which there is nothing but links that were not followed.

        Args:
            folder: Where nothing was found.
            before: How many links were left out ahead of it.
        """
        if links := self.left_out[before:]:
            raise UserError(
                f"{folder} has nothing but links that lead out of {self.root}, such as {links[0]}: say "
                "data.follow_links=true to follow them."
            )

    def tell(self) -> None:
        """Say which links were not followed."""
        if self.left_out:
            log.warning(
                "%d links lead out of %s, such as %s: not followed (data.follow_links=true follows them)",
                len(self.left_out), self.root, printable(self.left_out[0]),
            )  # fmt: skip

    def images(self, folder: str) -> Iterator[str]:
        """Yield the images below `folder`, however deep: folders that wait are kept in a list, not in calls."""
        real = os.path.realpath(folder)
        entered = {real}  # real folders walked already, so that links cannot make a loop
        open_folders = [(real, iter(_entries(folder)))]
        while open_folders:
            inside, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None:
                open_folders.pop()
            elif not self.may_enter(entry):
                continue
            elif _is(entry.is_dir):
                linked = entry.is_symlink()
                real = os.path.realpath(entry.path) if linked else os.path.join(inside, entry.name)
                if real not in entered:
                    entered.add(real)
                    open_folders.append((real, iter(_entries(entry.path))))
            elif entry.name.lower().endswith(ENDINGS) and _is(entry.is_file):
                yield entry.path


def _is(asked: Callable[[], bool]) -> bool:
    """Ask what an entry is; a link that leads round in a circle is nothing."""
    try:
        return asked()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        return sorted(visible, key=lambda entry: entry.name)  # the same on every machine
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): mend its permissions.") from error


def _cut(classes: Classes, fraction: float, seed: int) -> tuple[Classes, Classes]:
    """Return training and validation images: of each class the same random share, never its last image."""
    generator = torch.Generator().manual_seed(seed)
    train, val = {}, {}
    for name, paths in classes.items():
        order = torch.randperm(len(paths), generator=generator).tolist()
        count = min(round(len(paths) * fraction), len(paths) - 1)
        val[name] = [paths[i] for i in sorted(order[:count])]
        train[name] = [paths[i] for i in sorted(order[count:])]
    return train, val


def _source(found: Classes, classes: tuple[str, ...], name: str, root: str) -> FileSource:
    numbers = {name: number for number, name in enumerate(classes)}
    labels: Tensor = torch.tensor([numbers[name] for name in found for _ in found[name]])
    return FileSource(tuple(path for paths in found.values() for path in paths), labels, classes, name, root)
