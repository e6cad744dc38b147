"""The images of an evaluation: the checkpoint's own data set, or another one with the same classes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alexnet_exp.config.checks import check_recorded
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.datasets.folder import split_folders
from alexnet_exp.data.identity import identify
from alexnet_exp.data.module import ImageData
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import UserError, nearest, printable
from alexnet_exp.runs.evaluate.settings import OfImages
from alexnet_exp.targets import build, check_trust
from alexnet_exp.tracking.redact import REDACTED, hidden_keys, with_passwords
from alexnet_exp.training.checkpoint.identity import changed_split, match_classes, own_classes

log = logging.getLogger(__name__)

# Preprocessing always comes from the checkpoint, whatever the images.
_FIXED = ("image_size", "channels", "mean", "std")


def open_data(
    checkpoint: Mapping[str, Any], settings: OfImages, opened: dict[str, dict[str, Any]]
) -> ImageData:
    """Read the images that a checkpoint is evaluated on.

    Args:
        checkpoint: With config, preprocessing and classes.
        settings: Of the verb.
        opened: Cache of images by data set, shared by the members of an ensemble; updated in place.

    Returns:
        Data that prepares images as the checkpoint's run did, with labels that index the checkpoint's classes.

    Raises:
        UserError: If the images are missing, or have other classes.
    """
    config, recorded = checkpoint["config"], checkpoint["preprocessing"]
    keys = _data_keys(config, settings)
    keys |= {key: recorded[key] for key in _FIXED}
    if "stored_size" in keys:
        keys["stored_size"] = recorded["stored_size"]
    if "fit" in keys or recorded.get("fit", "crop") != "crop":
        keys["fit"] = recorded.get("fit", "crop")
    keys["batch_size"] = settings.batch_size or config["data"]["batch_size"]
    check_recorded(config, ["augment"], "The checkpoint")
    # The mean image comes from the checkpoint; these images may be others, and none is cropped at random.
    augment = {**config["augment"], "mean_image": "none", "resized_crop": None}
    data: ImageData = build(keys, augment=augment, seed=config["seed"])
    ignored = {"batch_size", "mean", "std"}  # do not affect which images are read
    if keys.get("cache", "off") == "off":
        ignored |= {"stored_size", "fit"}  # the source is a list of files, which every member decodes itself
    cache_key = json.dumps({k: v for k, v in keys.items() if k not in ignored}, sort_keys=True, default=str)
    # With sources `setup` reads nothing, so members of an ensemble share their images.
    data.sources = opened.get(cache_key, {})
    data.setup()
    opened[cache_key] = data.sources
    data.sources = _renumber(data.sources, checkpoint["classes"])
    # After `setup`, which would have computed a mean image of these images.
    data.pipeline = Pipeline(data.preprocess, config["augment"], recorded["mean_image"])
    data.views = settings.views or config["augment"].get("views") or "centre"
    return data


def _data_keys(config: Mapping[str, Any], settings: OfImages) -> dict[str, Any]:
    """Return the settings of the data set: another one, or the checkpoint's own with typed keys on top."""
    typed = dict(settings.data)
    if "_target_" in typed:
        return whole_folder(typed)
    check_trust(config["data"], settings.trust, "data")
    own = dict(config["data"])
    if own.get("folds") and not is_own_data(own, typed):
        # Folds only apply to the checkpoint's own images.
        own |= {"folds": None, "fold": 0, "groups": None}
    for key in typed:
        if key not in own:
            raise UserError(f"The checkpoint's data set has no setting data.{key}.{nearest(key, own)}")
    current, inherited = settings.data_dir, "data_dir" in own and "data_dir" not in typed
    if inherited and (current.typed or not os.path.isdir(own["data_dir"])):
        own["data_dir"] = current.path
    if "cache" in own:
        own["cache"] = "off"  # a single pass over one split does not pay for a cache
    check_recorded({"data": own | typed}, ["data"], "The checkpoint")
    if hidden := hidden_keys({"data": own | typed}):
        raise UserError(
            f"The checkpoint, from an older version, has {hidden[0]} as {REDACTED}: set {hidden[0]}=VALUE."
        )
    return with_passwords(whole_folder(own | typed) if "root" in typed else own | typed, "data")


def is_own_data(own: Mapping[str, Any], typed: Mapping[str, Any]) -> bool:
    """Return whether the typed keys still mean the checkpoint's own data set, which may have moved."""
    # A bare data.root=DIR says where the folder is now; with data=NAME, an equal folder name proves nothing.
    part: Callable[[str], str] = os.path.realpath if "_target_" in typed else os.path.basename

    def where(keys: Mapping[str, Any]) -> list[str]:
        places = [os.path.expanduser(str(keys.get(key))).rstrip("/") for key in ("root", "url")]
        return [str(keys["_target_"]), *map(part, places)]

    return where({**own, **typed}) == where(own)


def whole_folder(keys: dict[str, Any], unsplit: tuple[str | None, ...] = (None, "auto")) -> dict[str, Any]:
    """Use all images of a folder without a train folder unless the settings split it: for verbs that do not train.

    Args:
        keys: Settings of the data set.
        unsplit: Values of val_fraction that leave a folder of classes whole.
    """
    root = os.path.expanduser(str(keys.get("root", "")))
    if keys["_target_"] != "alexnet_exp.data.Folder" or not os.path.isdir(root):
        return keys
    folders = split_folders(root, keys.get("split_rule", "by_order"))
    whole = "train" not in folders if folders else keys["val_fraction"] in unsplit
    return {**keys, "val_fraction": 0.0} if whole else keys


def _renumber(sources: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Map the labels to the checkpoint's class numbers, matching classes by name."""
    found, wanted = list(next(iter(sources.values())).classes), own_classes(classes)
    if found == wanted:
        return sources
    numbers = torch.tensor(match_classes(found, wanted))
    return {
        split: replace(source, labels=numbers[source.labels], classes=tuple(wanted))
        for split, source in sources.items()
    }


def choose_split(data: ImageData, wanted: str) -> str:
    """Return the split to evaluate; 'auto' is the first of test, val, train that exists.

    Raises:
        UserError: If the data has no such split.
    """
    if wanted == "auto":
        return next(split for split in ("test", "val", "train") if split in data.sources)
    if wanted not in data.sources:
        has = ", ".join(data.sources)
        raise UserError(f"split={wanted}: the data has no {wanted} images, only {has}.")
    return wanted


def warn_of_changes(checkpoint: Mapping[str, Any], path: Path, data: ImageData, split: str) -> None:
    """Warn if the images of a split have changed since the checkpoint's run; older checkpoints do not record them."""
    if recorded := checkpoint.get("splits"):
        now = identify(data.sources[split], data.origins.get(split, ""))
        if changed := changed_split(recorded, path, split, now):
            log.warning("%s.", printable(changed))


def check_images(data: ImageData, split: str) -> None:
    """Check that the images can be preprocessed as the checkpoint requires.

    Raises:
        UserError: If ten-crop does not fit into the images, or the mean image has another size.
    """
    source, mean, stored = data.sources[split], data.pipeline.mean_image, _stored_size(data, split)
    data.pipeline.check_views(data.views, stored)
    if mean is not None and mean.shape[-1] != stored:
        raise UserError(
            f"The checkpoint subtracts a mean image of {mean.shape[-1]} pixels, but the images of {source.name} have "
            f"{stored}: evaluate on images of that size."
        )


def has_equal_views(data: ImageData, split: str) -> bool:
    """Return whether all five crops of ten-crop coincide, as the images have the size of the input."""
    return data.views == "ten_crop" and _stored_size(data, split) == data.preprocess.image_size


def _stored_size(data: ImageData, split: str) -> int:
    """Return the side of stored images, in pixels."""
    source = data.sources[split]
    return source.images.shape[-1] if isinstance(source, ArraySource) else data.stored_size


def image_names(data: ImageData, split: str) -> list[str]:
    """Return the path of every image in a split, or its number for in-memory images."""
    source = data.sources[split]
    if not isinstance(source, ArraySource):
        return list(source.paths)
    numbers = range(len(source)) if source.numbers is None else source.numbers.tolist()
    if isinstance(source, DecodedSource):  # files that were decoded into memory
        return [source.files.paths[number] for number in numbers]
    return [str(number) for number in numbers]
