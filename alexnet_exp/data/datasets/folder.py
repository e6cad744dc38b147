"""Folders of images, a sub-folder per class: train/CLASS/**, val/CLASS/**, test/CLASS/** or just CLASS/**."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from alexnet_exp.data.datasets.left_out import JUNK_FOLDERS, LeftOut, counted
from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.data.sources import FileSource, validation_by_name
from alexnet_exp.errors import UserError, printable, unreadable

log = logging.getLogger(__name__)

Classes = dict[str, list[str]]  # class name -> sorted paths
BadImages = Callable[[list[str], str], set[str]]  # (all paths, root) -> those to leave out

# How folders of splits are called, in any case, with numbers or one of these words about it: Train, val2017, test_set.
_ABOUT = r"(?:set|data|images?|imgs?|photos|pictures|split|[\W\d_])*"
_SPELLINGS = {"train": "train|training", "val": "val|valid|validation|dev", "test": "test|testing"}
_NAMES = {split: re.compile(f"{_ABOUT}(?:{words}){_ABOUT}") for split, words in _SPELLINGS.items()}
_UNCLEAR = re.compile(f"{_ABOUT}(?:eval|evaluation){_ABOUT}")  # some mean val by it, others test
# What runs of data.split_rule=by_order read: a run without a record of the rule goes on with the same files.
_OLD_EXTENSIONS = ("jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff")


def scan(
    root: str,
    val_fraction: float | None = None,
    seed: int = 0,
    follow_links: bool = False,
    bad_images: BadImages | None = None,
    val_classes: Mapping[str, str] | None = None,
    rule: str = "by_name",
    in_folds: bool = False,
    exclude: str | None = None,
) -> dict[str, FileSource]:
    """Find the images of every split: "train", and "val" and "test" where there are any.

    A root with a train folder has its splits in folders (`split_folders`); any other root is one set of class folders.
    Classes are numbered by name. Hidden names are skipped; a warning counts whatever else is not read. The root may be
    a link to anywhere; links in it are followed only as long as they stay inside, unless `follow_links` says otherwise.

    Args:
        root: The folder.
        val_fraction: Cut this share (0 to below 1) of every class from the training images for validation;
            needed by a root without split folders, refused by one with a val folder. 0 is for images that nothing
            is trained on: one class is enough, and no train folder is needed.
        seed: Chooses which images.
        follow_links: Follow links that lead out of the folder, too.
        bad_images: Names the files to leave out, as if they were not there.
        val_classes: The val folder has no class folders: the class of each image by its name without ending.
        rule: 'by_name', or 'by_order': split folders, endings and cut of runs that have no record of the rule.
        in_folds: Validation is cut from the training images afterwards: nothing is asked of `val_fraction`.
        exclude: A file with names relative to the root, one a line: images that are left out.

    Raises:
        UserError: A folder is missing, empty or a link that may not be followed, classes do not fit, `val_fraction`
            does not, or `exclude` names an image that is not there.
    """
    root = os.path.expanduser(root)
    folders = _checked_splits(root, val_fraction, rule, in_folds)
    walk = _Walk(root, follow_links, rule)
    if folders:
        found = {
            s: _find_split(s, os.path.join(root, name), walk, val_classes) for s, name in folders.items()
        }
        walk.look_beside(folders)
    else:
        found = {"train": _find_classes(root, walk)}
    walk.tell()
    excluded = set() if exclude is None else _excluded(exclude, found, root)
    origins = {split: _origin(folders, split) + _left_out(found[split], excluded, exclude) for split in found}
    if excluded:
        found = _without(found, excluded, "data.exclude leaves out all its images; remove the folder, too")
    if bad_images is not None:
        everything = [path for split in found.values() for paths in split.values() for path in paths]
        bad = bad_images(everything, root)
        found = _without(found, bad, "not one image can be decoded; mend or remove the folder")
    known = found.get("train") or set().union(*found.values())
    classes = tuple(sorted(known))
    if len(classes) == 1 and val_fraction != 0:
        inner = None if folders else _further_down(root)
        do = (
            f"set data.root={inner}, if the classes are there"
            if inner
            else "add a folder for at least one more"
        )
        raise UserError(f"{root} has one class only ({classes[0]}): {do}.")
    for split in found:
        unknown = [name for name in found[split] if name not in known]
        if unknown:
            names = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            where, train = (os.path.join(root, folders[s]) for s in (split, "train"))
            raise UserError(f"{where} has classes that {train} lacks: {names}; add or remove them.")
    name = os.path.basename(os.path.abspath(root))
    depth = None if rule == "by_order" else 2 if folders else 1
    sources = {
        split: _source(found[split], classes, f"{name} {split}", root, origins[split], depth)
        for split in found
    }
    return _cut(sources, val_fraction, seed) if val_fraction else sources


def split_folders(root: str, rule: str = "by_name") -> dict[str, str]:
    """Return the folders of `root` that are splits, as {"train": "Train", "val": "valid"}; none where it holds classes.

    Names in any case and usual spelling are splits where one of them means train, or where they hold the same class
    folders. A class may be called train, too: it holds images, and lies beside other classes.

    Args:
        root: The data set's folder.
        rule: 'by_order' knows train, val and test alone, spelled like that.

    Raises:
        UserError: Two folders mean the same split, or it is not clear which one means.
    """
    folders = [entry.name for entry in _entries(root) if _is(entry.is_dir) and entry.name not in JUNK_FOLDERS]
    if rule == "by_order":
        return {split: split for split in _NAMES if split in folders}
    named = {split: [f for f in folders if name.fullmatch(f.casefold())] for split, name in _NAMES.items()}
    named = {split: names for split, names in named.items() if names}
    inside = {name: _folders_in(os.path.join(root, name)) for names in named.values() for name in names}
    others = len(folders) > len(inside)
    if "train" in named:
        if others and not any(inside[name] for name in named["train"]):
            return {}
    elif not inside or not set.intersection(*inside.values()) or (others and len(inside) == 1):
        return {}
    for split, names in named.items():
        if len(names) > 1:
            both = " and ".join(os.path.join(root, name) for name in names)
            raise UserError(f"{both} both mean {split}: rename or remove all but one.")
    if len(named) < len(_NAMES) and (
        unclear := next((f for f in folders if _UNCLEAR.fullmatch(f.casefold())), None)
    ):
        raise UserError(f"{os.path.join(root, unclear)} could be val or test: rename or remove it.")
    return {split: names[0] for split, names in named.items()}


def _folders_in(folder: str) -> set[str]:
    return {entry.name for entry in _entries(folder) if _is(entry.is_dir) and entry.name not in JUNK_FOLDERS}


def _checked_splits(root: str, val_fraction: float | None, rule: str, in_folds: bool) -> dict[str, str]:
    """Return `split_folders` of a root that can be read as `val_fraction` says.

    Raises:
        UserError: It cannot.
    """
    if not os.path.exists(root):
        raise UserError(f"{root} does not exist: set data.root to a folder of images.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a directory: set data.root to a folder of images.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction} must be at least 0 and below 1.")
    folders = split_folders(root, rule)
    if folders and "train" not in folders and val_fraction != 0:
        first = next(iter(folders.values()))
        raise UserError(f"{root} has a folder {first} but none named train: add {root}/train.")
    if "val" in folders and val_fraction:
        raise UserError(f"{root} has a {folders['val']} folder of its own: leave data.val_fraction out.")
    if not folders and val_fraction is None and not in_folds:
        inner = _further_down(root)
        below = f", or set data.root={inner}, if they are there" if inner else ""
        raise UserError(
            f"{root}/train is missing: add it, or, if {root} holds the classes, set data.val_fraction=0.1{below}."
        )
    return folders


def _further_down(root: str) -> str | None:
    """Return the only folder of a root, if it has several: an archive may unpack to one more level than meant."""
    names = _folders_in(root)
    inner = os.path.join(root, *names)
    return inner if len(names) == 1 and len(_folders_in(inner)) > 1 else None


def _origin(folders: Mapping[str, str], split: str) -> str:
    return f"folder {folders[split]}" if folders else "data.root"


def _excluded(file: str, found: dict[str, Classes], root: str) -> set[str]:
    """Return the paths of the images that a file names, each relative to the root on a line.

    Raises:
        UserError: It cannot be read, or names what is no image of the data.
    """
    try:
        with open(os.path.expanduser(file), encoding="utf-8", errors="surrogateescape") as lines:
            names = [line for line in lines.read().split("\n") if line.strip()]
    except OSError as error:
        raise unreadable(f"data.exclude={file}", error) from error

    def spelled(name: str) -> str:
        return unicodedata.normalize("NFC", name)  # a Mac may store the same name decomposed

    paths = {
        spelled(os.path.relpath(path, root).replace(os.sep, "/")): path
        for split in found.values()
        for images in split.values()
        for path in images
    }
    unknown = [name for name in names if spelled(name) not in paths]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"data.exclude={file} names {unknown[0]}{more}, and {root} has no such image: names are relative to "
            "data.root; data.exclude=null leaves nothing out."
        )
    return {paths[spelled(name)] for name in names}


def _left_out(classes: Classes, excluded: set[str], file: str | None) -> str:
    """Return what the origin of a split says of the images that are left out."""
    count = sum(path in excluded for paths in classes.values() for path in paths)
    return f" without {count} of {os.path.basename(str(file))}" if count else ""


def _without(found: dict[str, Classes], bad: set[str], why: str) -> dict[str, Classes]:
    """Return the splits without some files; a class that has no others is an error that says `why`."""
    left = {
        split: {name: [path for path in paths if path not in bad] for name, paths in classes.items()}
        for split, classes in found.items()
    }
    for split in left:
        if empty := next((name for name, paths in left[split].items() if not paths), None):
            folder = os.path.dirname(found[split][empty][0])
            raise UserError(f"{folder}: {why}.")
    return left


def _find_split(split: str, folder: str, walk: _Walk, val_classes: Mapping[str, str] | None) -> Classes:
    if not walk.stays_inside(folder):
        raise UserError(
            f"{folder} is a link that leads out of {walk.root}: say data.follow_links=true to follow it."
        )
    if split == "val" and val_classes is not None and (found := _sort_out(folder, val_classes, walk)):
        return found
    return _find_classes(folder, walk)


def _sort_out(folder: str, classes: Mapping[str, str], walk: _Walk) -> Classes:
    """Return the images of a folder without class folders, by class."""
    found: Classes = {}
    for entry in walk.entries(folder):
        if walk.is_image(entry) and walk.may_enter(entry):
            name = classes.get(os.path.splitext(entry.name)[0])
            if name is None:
                raise UserError(f"{entry.path} has no label: remove it, or get the labels that list it.")
            found.setdefault(name, []).append(entry.path)
    return dict(sorted(found.items()))


def _find_classes(folder: str, walk: _Walk) -> Classes:
    """Return the images of every class folder below `folder`, classes and paths sorted."""
    found: Classes = {}
    first_link = len(walk.links)
    for entry in walk.entries(folder):
        if not _is(entry.is_dir):
            walk.leave_out(entry)
        elif walk.may_enter(entry):
            links, endings = len(walk.links), walk.left_out.endings.copy()
            found[entry.name] = sorted(walk.images(entry.path))
            if not found[entry.name]:
                walk.refuse_links(entry.path, links)
                only = walk.left_out.endings - endings
                has = f", but {counted(only)}: convert them" if only else ": fill"
                raise UserError(
                    f"{entry.path} has no images ({', '.join(walk.extensions)}){has} or remove it."
                )
    if not found:
        walk.refuse_links(folder, first_link)
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder named for it."
        )
    return dict(sorted(found.items()))


class _Walk:
    """Walks class folders without leaving the real folder of the data set; notes what is not read.

    Args:
        root: The data set's folder, which may be a link to elsewhere.
        follow_links: Go wherever links lead.
        rule: See `scan`.
    """

    def __init__(self, root: str, follow_links: bool, rule: str) -> None:
        self.root, self.follow_links, self.rule = root, follow_links, rule
        self.extensions = _OLD_EXTENSIONS if rule == "by_order" else readable_extensions()
        self.endings = tuple(f".{extension}" for extension in self.extensions)
        self.skipped = () if rule == "by_order" else JUNK_FOLDERS
        self.inside = os.path.join(os.path.realpath(root), "")
        self.links: list[str] = []  # that lead out and were not followed
        self.left_out = LeftOut(root, self.extensions)

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        return [entry for entry in _entries(folder) if entry.name not in self.skipped]

    def is_image(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a file has the ending of an image; note one that has not."""
        if entry.name.lower().endswith(self.endings):
            return True
        if _is(entry.is_file):
            self.left_out.file(entry.path)
        return False

    def leave_out(self, entry: os.DirEntry[str]) -> None:
        """Note a file that lies beside class folders."""
        if self.is_image(entry) and _is(entry.is_file):
            self.left_out.image(entry.path)

    def look_beside(self, splits: Mapping[str, str]) -> None:
        """Note the images that lie beside the folders of the splits."""
        for entry in self.entries(self.root):
            if not _is(entry.is_dir):
                self.leave_out(entry)
            elif entry.name not in splits.values() and self.may_enter(entry):
                others = _Walk(self.root, self.follow_links, self.rule)  # what else it has is of no interest
                if any(others.images(entry.path)):
                    self.left_out.folders.append(entry.path)

    def stays_inside(self, path: str) -> bool:
        return self.follow_links or os.path.realpath(path).startswith(self.inside)

    def may_enter(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink() or self.stays_inside(entry.path):
            return True
        self.links.append(entry.path)
        return False

    def refuse_links(self, folder: str, before: int) -> None:
        """Refuse a folder in which there is nothing but links that were not followed.

        Args:
            folder: Where nothing was found.
            before: How many links were left out ahead of it.
        """
        if links := self.links[before:]:
            raise UserError(
                f"{folder} has nothing but links that lead out of {self.root}, such as {links[0]}: say "
                "data.follow_links=true to follow them."
            )

    def tell(self) -> None:
        """Say what was not read, and which links were not followed."""
        if text := self.left_out.text():
            log.warning("Left out of %s: %s", printable(self.root), text)
        if self.links:
            log.warning(
                "%d links lead out of %s, such as %s: not followed (data.follow_links=true follows them)",
                len(self.links), self.root, printable(self.links[0]),
            )  # fmt: skip

    def images(self, folder: str) -> Iterator[str]:
        """Yield the images below `folder`, however deep: folders that wait are kept in a list, not in calls."""
        real = os.path.realpath(folder)
        entered = {real}  # real folders walked already, so that links cannot make a loop
        open_folders = [(real, iter(self.entries(folder)))]
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
                    open_folders.append((real, iter(self.entries(entry.path))))
            elif self.is_image(entry) and _is(entry.is_file):
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


def _cut(sources: dict[str, FileSource], fraction: float, seed: int) -> dict[str, FileSource]:
    """Cut validation from the training images, of each class its share, never its last image.

    Raises:
        UserError: Nothing is left to validate with.
    """
    whole = sources["train"]
    names = whole.names()
    if names is None:
        chosen = _chosen_by_order(whole.labels, fraction, seed)
    else:
        chosen = validation_by_name(whole.labels, names, fraction, seed)
    if not chosen.any():
        raise UserError(
            f"data.val_fraction={fraction} leaves no image of {whole.root} for validation: raise it."
        )
    train, val = whole.subset(torch.nonzero(~chosen).flatten()), whole.subset(torch.nonzero(chosen).flatten())
    how = "by order" if names is None else "by file name"
    cut = f"cut from train: val_fraction={fraction} {how}, val_seed={seed}"
    name = f"{whole.name.removesuffix('train')}val"
    return {
        **sources,
        "train": replace(train, origin=f"{whole.origin} without val"),
        "val": replace(val, name=name, origin=cut),
    }


def _chosen_by_order(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Mark the same random share of every class, never its last image, as bool (N,)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: min(round(len(members) * fraction), len(members) - 1)]]] = True
    return chosen


def _source(
    found: Classes, classes: tuple[str, ...], name: str, root: str, origin: str, depth: int | None
) -> FileSource:
    numbers = {name: number for number, name in enumerate(classes)}
    labels: Tensor = torch.tensor([numbers[name] for name in found for _ in found[name]])
    paths = tuple(path for paths in found.values() for path in paths)
    return FileSource(paths, labels, classes, name, root, origin=origin, depth=depth)
