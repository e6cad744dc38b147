"""Which of the images to classify the network was trained on, as far as its image folder is still in place."""

from __future__ import annotations

import os
from collections.abc import Iterable

from alexnet_exp.data.identity import identify
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError
from alexnet_exp.inference import LoadedClassifier
from alexnet_exp.targets import build

_FOLDER = "alexnet_exp.data.Folder"
_MAX_IMAGES = 100_000  # a larger folder takes too long to list for one remark


def trained_on(classifier: LoadedClassifier, files: Iterable[str]) -> set[str]:
    """Return the files that are training images of the network.

    A checkpoint records no names of images, only where the folder was and a digest of each split. So the folder is
    listed and split again, and counts only if the digest of its training images is the recorded one. Copies of
    training images elsewhere go unnoticed.

    Args:
        classifier: The network.
        files: Paths to classify.

    Returns:
        None of them if the data set is not an image folder, or has changed since.
    """
    settings = classifier.config["data"]
    recorded = (classifier.splits or {}).get("train")
    if settings.get("_target_") != _FOLDER or not recorded or recorded["count"] > _MAX_IMAGES:
        return set()
    folder = os.path.join(os.path.realpath(os.path.expanduser(str(settings["root"]))), "")
    inside = {file: path for file in files if (path := os.path.realpath(file)).startswith(folder)}
    if not inside:  # the usual case: new images
        return set()
    try:
        data = build({**settings, "cache": "off"}, augment={}, seed=classifier.config["seed"])
        data.setup()
    except (UserError, OSError):
        return set()
    train = data.sources["train"]
    if not isinstance(train, FileSource) or identify(train)["digest"] != recorded["digest"]:
        return set()
    seen = {os.path.realpath(path) for path in train.paths}
    return {file for file, path in inside.items() if path in seen}
