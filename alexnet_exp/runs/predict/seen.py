"""Which of the images to classify the network was trained on, as far as its image folder is still in place."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator

from alexnet_exp.data.identity import identify
from alexnet_exp.data.sources import FileSource
from alexnet_exp.inference import LoadedClassifier
from alexnet_exp.targets import build

_FOLDER = "alexnet_exp.data.Folder"
_MAX_IMAGES = 100_000  # a larger folder takes too long to list for one remark


def trained_on(classifier: LoadedClassifier, files: Iterable[str]) -> set[str] | None:
    """Return the files that are training images of the network.

    A checkpoint records no names of images, only where the folder was and a digest of each split. So the folder is
    listed and split again, and counts only if the digest of its training images is the recorded one. Copies of
    training images elsewhere go unnoticed. Nothing is printed or raised: predictions matter more than this remark.

    Args:
        classifier: The network.
        files: Paths to classify.

    Returns:
        None if it is not known: the data set is not an image folder, is too large or costly to list, or has changed.
    """
    try:
        with _silent():
            return _trained_on(classifier, files)
    except Exception:  # recorded settings and folders may be anything
        return None


def _trained_on(classifier: LoadedClassifier, files: Iterable[str]) -> set[str] | None:
    settings = classifier.config["data"]
    recorded = (classifier.splits or {}).get("train")
    if settings.get("_target_") != _FOLDER or not recorded or recorded["count"] > _MAX_IMAGES:
        return None
    # The first two decode every image; the others list more images than were trained on.
    if settings.get("verify") or settings.get("on_bad_image") == "skip":
        return None
    if settings.get("train_subset") is not None or settings.get("folds") is not None:
        return None
    root = os.path.expanduser(str(settings["root"]))
    real, plain = (os.path.join(path, "") for path in (os.path.realpath(root), os.path.abspath(root)))
    inside = {
        file: path
        for file in files
        # A link in the folder may lead out of it (data.follow_links).
        if (path := os.path.realpath(file)).startswith(real) or os.path.abspath(file).startswith(plain)
    }
    if not inside:  # the usual case: new images
        return set()
    if _is_large(root):
        return None
    data = build({**settings, "cache": "off"}, augment={}, seed=classifier.config["seed"])
    data.setup()
    train = data.sources["train"]
    if not isinstance(train, FileSource) or identify(train)["digest"] != recorded["digest"]:
        return None
    seen = {os.path.realpath(path) for path in train.paths}
    return {file for file, path in inside.items() if path in seen}


def _is_large(root: str) -> bool:
    """Return whether a folder has more than _MAX_IMAGES entries, links followed; stops at the first too many."""
    left, folders = _MAX_IMAGES, [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return True
                if not entry.name.startswith(".") and entry.is_dir():
                    folders.append(entry.path)
    return False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what the data set says: it was said when the network was trained."""
    about_data = logging.getLogger("alexnet_exp.data")
    level = about_data.level
    about_data.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        about_data.setLevel(level)
