"""Image folders with one subfolder per class: train/CLASS/**, val/CLASS/**, test/CLASS/** or just CLASS/**."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from alexnet_exp.data.datasets.holdout import hold_out
from alexnet_exp.data.datasets.left_out import JUNK_FOLDERS, LeftOut, counted
from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError, printable, unreadable

log = logging.getLogger(__name__)

Classes = dict[str, list[str]]  # class name -> sorted paths
BadImages = Callable[[list[str], str], set[str]]  # (all paths, root) -> the ones to leave out

# Names of split folders, in any case, with digits or one of these words around them: Train, val2017, test_set.
_AROUND = r"(?:set|data|images?|imgs?|photos|pictures|split|[\W\d_])*"
_SPELLINGS = {"train": "train|training", "val": "val|valid|validation|dev", "test": "test|testing"}
_NAMES = {split: re.compile(f"{_AROUND}(?:{words}){_AROUND}") for split, words in _SPELLINGS.items()}
_UNCLEAR = re.compile(f"{_AROUND}(?:eval|evaluation){_AROUND}")  # means val to some, test to others
_AUTO_FRACTION = 0.2  # as valid_pct of fastai
# Frozen for data.split_rule=by_order: runs that predate the rule must keep finding the same files.
_OLD_EXTENSIONS = ("jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff")


def scan(
    root: str,
    val_fraction: float | None = None,
    seed: int = 0,
    follow_links: bool = False,
    bad_images: BadImages | None = None,
    val_classes: Mapping[str, str] | None = None,
    rule: str = "stratified",
    in_folds: bool = False,
    exclude: str | None = None,
) -> dict[str, FileSource]:
    """Find the images of every split: "train", plus "val" and "test" if present.

    A root with a train folder has one folder per split (`split_folders`); any other root holds class folders directly.
    Labels follow sorted class names. Hidden files are skipped; a warning counts anything else that is left out. The
    root may link anywhere, but links inside it must stay inside unless `follow_links` is set.

    Args:
        root: The data set's folder.
        val_fraction: Share of every class, in [0, 1), to hold out from the training images for validation. Required
            without split folders, refused with a val folder. 0 is for evaluation only: a single class is accepted, and
            no train folder is needed.
        seed: Selects the validation images.
        follow_links: Follow links that point outside the root.
        bad_images: Returns files to leave out.
        val_classes: For a val folder without class folders: the class of each image, keyed by file stem.
        rule: How `val_fraction` is held out: 'stratified', 'by_name', or 'by_order' for the split folders, extensions
            and split of runs that predate the setting.
        in_folds: Validation images are held out later (cross-validation), so `val_fraction` is not required.
        exclude: File with names relative to the root, one per line: images to leave out.

    Raises:
        UserError: If a folder is missing, empty or a forbidden link, classes or `val_fraction` do not match the
            folders, or `exclude` names an unknown image.
    """
    root = os.path.expanduser(root)
    folders = _checked_splits(root, val_fraction, rule, in_folds)
    walk = _Walk(root, follow_links, rule)
    if folders:
        found = {s: _find_split(s, os.path.join(root, n), walk, val_classes) for s, n in folders.items()}
        walk.look_beside(folders)
    else:
        found = {"train": _find_classes(root, walk)}
    walk.warn()
    origins = {split: f"folder {folders[split]}" if folders else "data.root" for split in found}
    if exclude is not None:
        excluded = _excluded(exclude, found, root)
        for split, per_class in found.items():
            if count := sum(path in excluded for paths in per_class.values() for path in paths):
                origins[split] += f" without {count} of {os.path.basename(exclude)}"
        found = _without(found, excluded, "data.exclude leaves out all its images; remove the folder, too")
    if bad_images is not None:
        # After data.exclude, which may list the very images that cannot be decoded.
        everything = [path for split in found.values() for paths in split.values() for path in paths]
        bad = bad_images(everything, root)
        found = _without(found, bad, "none of its images can be decoded; fix or remove the folder")
    classes = _known_classes(found, folders, root, one_is_enough=val_fraction == 0)
    name = os.path.basename(os.path.abspath(root))
    depth = None if rule == "by_order" else 2 if folders else 1  # of SPLIT/CLASS or CLASS in a name
    sources = {s: _source(found[s], classes, f"{name} {s}", root, origins[s], depth) for s in found}
    return hold_out(sources, val_fraction, seed, rule) if val_fraction else sources


def _known_classes(
    found: Mapping[str, Classes], folders: Mapping[str, str], root: str, one_is_enough: bool
) -> tuple[str, ...]:
    """Return the sorted class names: those of train, or of all splits if there is no train folder.

    Raises:
        UserError: If there is one class only and that is not enough, or a split has classes that train lacks.
    """
    known = found.get("train") or set().union(*found.values())
    classes = tuple(sorted(known))
    if len(classes) == 1 and not one_is_enough:
        inner = None if folders else _nested_root(root)
        fix = (
            f"set data.root={inner}, if the classes are there"
            if inner
            else "add at least one more class folder"
        )
        raise UserError(f"{root} has only one class ({classes[0]}): {fix}.")
    for split in found:
        unknown = [name for name in found[split] if name not in known]
        if unknown:
            names = ", ".join(unknown[:10]) + (" ..." if len(unknown) > 10 else "")
            where, train = (os.path.join(root, folders[s]) for s in (split, "train"))
            raise UserError(f"{where} has classes that {train} lacks: {names}; add or remove them.")
    return classes


def automatic_fraction(root: str, rule: str, in_folds: bool = False) -> float | None:
    """Return what data.val_fraction=auto stands for: a fifth if `root` holds class folders, else None.

    Args:
        root: See `scan`.
        rule: See `scan`.
        in_folds: See `scan`.
    """
    root = os.path.expanduser(root)
    holds_classes = os.path.isdir(root) and not split_folders(root, rule)
    return _AUTO_FRACTION if holds_classes and not in_folds else None


def split_folders(root: str, rule: str = "stratified") -> dict[str, str]:
    """Return the split folders of `root`, such as {"train": "Train", "val": "valid"}; empty if it holds class folders.

    Folders with usual split names (any case) count as splits if one of them means train, or if they share class
    folders. A class may also be named train (a locomotive): it then holds images, and lies beside other classes.

    Args:
        root: The data set's folder.
        rule: 'by_order' recognises only the exact names train, val and test.

    Raises:
        UserError: If two folders mean the same split, or a name is ambiguous.
    """
    folders = _folders_in(root)
    if rule == "by_order":
        return {split: split for split in _NAMES if split in folders}
    named = {split: [f for f in folders if name.fullmatch(f.casefold())] for split, name in _NAMES.items()}
    named = {split: names for split, names in named.items() if names}
    inside = {name: set(_folders_in(os.path.join(root, name))) for names in named.values() for name in names}
    others = len(folders) > len(inside)
    if "train" in named:
        # Beside other folders, a "train" without class folders is a class itself.
        if others and not any(inside[name] for name in named["train"]):
            return {}
    # Without train, val and test must share class folders, and a single one beside others is a class.
    elif not inside or not set.intersection(*map(set, inside.values())) or (others and len(inside) == 1):
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


def _folders_in(folder: str) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is(entry.is_dir) and entry.name not in JUNK_FOLDERS]


def _checked_splits(root: str, val_fraction: float | None, rule: str, in_folds: bool) -> dict[str, str]:
    """Return `split_folders` of a root.

    Raises:
        UserError: If they do not match `val_fraction`.
    """
    if not os.path.exists(root):
        raise UserError(f"{root} does not exist: set data.root to a folder of images.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a directory: set data.root to a folder of images.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"invalid data.val_fraction={val_fraction}: expected a number in [0, 1).")
    folders = split_folders(root, rule)
    if folders and "train" not in folders and val_fraction != 0:
        first = next(iter(folders.values()))
        raise UserError(f"{root} has a folder {first} but none named train: add {root}/train.")
    if "val" in folders and val_fraction:
        raise UserError(f"{root} already has a {folders['val']} folder: leave data.val_fraction out.")
    if not folders and val_fraction is None and not in_folds:
        inner = _nested_root(root)
        below = f", or set data.root={inner}, if they are there" if inner else ""
        raise UserError(
            f"{root}/train is missing: add it, or, if {root} holds the classes, set data.val_fraction=0.2 (few images: "
            f"data.folds=5){below}."
        )
    return folders


def _nested_root(root: str) -> str | None:
    """Return the only folder of a root if it has several itself: archives often unpack to an extra level."""
    names = _folders_in(root)
    inner = os.path.join(root, *names)
    return inner if len(names) == 1 and len(_folders_in(inner)) > 1 else None


def _excluded(file: str, found: dict[str, Classes], root: str) -> set[str]:
    """Return the paths of the images listed in a file, one per line, relative to the root.

    Raises:
        UserError: If it cannot be read, or lists an unknown image.
    """
    try:
        # surrogateescape, as in the names that os.scandir returns.
        with open(os.path.expanduser(file), encoding="utf-8", errors="surrogateescape") as lines:
            # Not splitlines, which would cut names at \x0b or \u2028.
            names = [line for line in lines.read().split("\n") if line.strip()]
    except OSError as error:
        raise unreadable(f"data.exclude={file}", error) from error

    def normal(name: str) -> str:
        return unicodedata.normalize("NFC", name)  # macOS may store the same name decomposed

    paths = {
        normal(os.path.relpath(path, root).replace(os.sep, "/")): path
        for split in found.values()
        for images in split.values()
        for path in images
    }
    unknown = [name for name in names if normal(name) not in paths]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"data.exclude={file} lists {unknown[0]}{more}, but {root} has no such image: list names relative to "
            "data.root, or set data.exclude=null."
        )
    return {paths[normal(name)] for name in names}


def _without(found: dict[str, Classes], bad: set[str], why: str) -> dict[str, Classes]:
    """Return the splits without some files; a class left empty is an error with the reason `why`."""
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
            f"{folder} is a link that leads out of {walk.root}: set data.follow_links=true to follow it."
        )
    if split == "val" and val_classes is not None and (found := _find_flat(folder, val_classes, walk)):
        return found
    return _find_classes(folder, walk)


def _find_flat(folder: str, classes: Mapping[str, str], walk: _Walk) -> Classes:
    """Return the images of a folder without class folders, by class."""
    found: Classes = {}
    for entry in walk.entries(folder):
        if walk.is_image(entry) and walk.may_enter(entry):
            name = classes.get(os.path.splitext(entry.name)[0])
            if name is None:
                raise UserError(f"{entry.path} has no label: remove it, or get labels that include it.")
            found.setdefault(name, []).append(entry.path)
    return dict(sorted(found.items()))


def _find_classes(folder: str, walk: _Walk) -> Classes:
    """Return the images of every class folder in `folder`, classes and paths sorted."""
    found: Classes = {}
    first_link = len(walk.links)
    for entry in walk.entries(folder):
        if not _is(entry.is_dir):
            walk.leave_out(entry)
        elif walk.may_enter(entry):
            links, endings = len(walk.links), walk.left_out.endings.copy()  # to see what this class adds
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
            f"{folder} has no class folders: put the images of each class into a folder named after it."
        )
    return dict(sorted(found.items()))


class _Walk:
    """Walks class folders without leaving the data set's real folder; records what is left out.

    Args:
        root: The data set's folder; may itself be a link.
        follow_links: Follow links that point outside it.
        rule: See `scan`.
    """

    def __init__(self, root: str, follow_links: bool, rule: str) -> None:
        self.root, self.follow_links, self.rule = root, follow_links, rule
        self.extensions = _OLD_EXTENSIONS if rule == "by_order" else readable_extensions()
        self.endings = tuple(f".{extension}" for extension in self.extensions)
        self.skipped = () if rule == "by_order" else JUNK_FOLDERS
        self.inside = os.path.join(os.path.realpath(root), "")  # with a separator: /data2 is not inside
        self.links: list[str] = []  # links that point outside and were not followed
        self.left_out = LeftOut(root, self.extensions)

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        return [entry for entry in _entries(folder) if entry.name not in self.skipped]

    def is_image(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry has an image extension; record a file without one."""
        if entry.name.lower().endswith(self.endings):
            return True
        if _is(entry.is_file):
            self.left_out.file(entry.path)
        return False

    def leave_out(self, entry: os.DirEntry[str]) -> None:
        """Record a file that lies beside class folders."""
        if self.is_image(entry) and _is(entry.is_file):
            self.left_out.image(entry.path)

    def look_beside(self, splits: Mapping[str, str]) -> None:
        """Record images and folders of images that lie beside the split folders."""
        for entry in self.entries(self.root):
            if not _is(entry.is_dir):
                self.leave_out(entry)
            elif entry.name not in splits.values() and self.may_enter(entry):
                walk = _Walk(
                    self.root, self.follow_links, self.rule
                )  # its other files are not worth a warning
                if any(walk.images(entry.path)):
                    self.left_out.folders.append(entry.path)

    def stays_inside(self, path: str) -> bool:
        return self.follow_links or os.path.realpath(path).startswith(self.inside)

    def may_enter(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink() or self.stays_inside(entry.path):
            return True
        self.links.append(entry.path)
        return False

    def refuse_links(self, folder: str, before: int) -> None:
        """Raise if a folder contains only links that were not followed.

        Args:
            folder: A folder in which no images were found.
            before: Length of `links` before it was walked.
        """
        if links := self.links[before:]:
            raise UserError(
                f"{folder} has nothing but links that lead out of {self.root}, such as {links[0]}: set "
                "data.follow_links=true to follow them."
            )

    def warn(self) -> None:
        """Warn about what was left out, and which links were not followed."""
        if text := self.left_out.text():
            log.warning("Left out of %s: %s", printable(self.root), text)
        if self.links:
            log.warning(
                "%d links lead out of %s, such as %s: not followed (data.follow_links=true follows them)",
                len(self.links), self.root, printable(self.links[0]),
            )  # fmt: skip

    def images(self, folder: str) -> Iterator[str]:
        """Yield the images below `folder`, at any depth: iterative, so deep trees cannot overflow the stack."""
        real = os.path.realpath(folder)
        entered = {real}  # real paths, so that links cannot loop
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
                # Only links need realpath, which asks the system about every component of the path.
                real = os.path.realpath(entry.path) if linked else os.path.join(inside, entry.name)
                if real not in entered:
                    entered.add(real)
                    open_folders.append((real, iter(self.entries(entry.path))))
            elif self.is_image(entry) and _is(entry.is_file):
                yield entry.path


def _is(check: Callable[[], bool]) -> bool:
    """Call `DirEntry.is_dir` or `is_file`; a circular link is neither."""
    try:
        return check()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        return sorted(visible, key=lambda entry: entry.name)  # scandir's order differs between machines
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): fix its permissions.") from error


def _source(
    found: Classes, classes: tuple[str, ...], name: str, root: str, origin: str, depth: int | None
) -> FileSource:
    numbers = {name: number for number, name in enumerate(classes)}
    labels: Tensor = torch.tensor([numbers[name] for name in found for _ in found[name]])
    paths = tuple(path for paths in found.values() for path in paths)
    return FileSource(paths, labels, classes, name, root, origin=origin, depth=depth)
