"""The images of an evaluation: those that a checkpoint was trained with, or another data set of the same classes."""

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
from alexnet_exp.targets import build, check_trust
from alexnet_exp.tracking.redact import REDACTED, hidden_keys, with_passwords
from alexnet_exp.training.checkpoint.identity import changed_split, match_classes, own_classes

log = logging.getLogger(__name__)

# What the network reads is the checkpoint's affair, whatever the images.
_FIXED = ("image_size", "channels", "mean", "std")


def open_data(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], opened: dict[str, dict[str, Any]]
) -> ImageData:
    """Read the images that a checkpoint is evaluated on.

    Args:
        checkpoint: Its config, preprocessing and classes.
        settings: Keys of conf/evaluate.yaml.
        opened: Images read already, by data set; grows. The members of an ensemble share them.

    Returns:
        Data that prepares images as the checkpoint's run did, its labels numbered like the checkpoint's classes.

    Raises:
        UserError: If the images are not there, or are of other classes.
    """
    config, recorded = checkpoint["config"], checkpoint["preprocessing"]
    keys = _data_keys(config, settings)
    keys |= {key: recorded[key] for key in _FIXED}
    if "stored_size" in keys:
        keys["stored_size"] = recorded["stored_size"]
    if "fit" in keys or recorded.get("fit", "crop") != "crop":
        keys["fit"] = recorded.get("fit", "crop")
    keys["batch_size"] = settings["batch_size"] or config["data"]["batch_size"]
    check_recorded(config, ["augment"], "The checkpoint")
    # The mean image comes from the checkpoint; these images may be others.
    augment = {**config["augment"], "mean_image": "none"}
    data: ImageData = build(keys, augment=augment, seed=config["seed"])
    apart = {"batch_size", "mean", "std"}  # images are the same without them
    if keys.get("cache", "off") == "off":
        apart |= {"stored_size", "fit"}  # the source is files, which every member decodes as it needs
    same = json.dumps({k: v for k, v in keys.items() if k not in apart}, sort_keys=True, default=str)
    data.sources = opened.get(same, {})
    data.setup()
    opened[same] = data.sources
    data.sources = _renumbered(data.sources, checkpoint["classes"])
    data.pipeline = Pipeline(data.preprocess, config["augment"], recorded["mean_image"])
    data.views = settings["views"] or config["augment"].get("views") or "centre"
    return data


def _data_keys(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the data set: another one, or the checkpoint's own with what the user typed on top."""
    typed = dict(settings["data"])
    if "_target_" in typed:
        return whole_folder(typed)
    check_trust(config["data"], settings["trust"], "data")
    own = dict(config["data"])
    if own.get("folds") and not is_own_data(own, typed):
        own |= {"folds": None, "fold": 0, "groups": None}  # other images were in none of the folds
    for key in typed:
        if key not in own:
            raise UserError(f"The checkpoint's data set has no setting data.{key}.{nearest(key, own)}")
    elsewhere = settings["data_dir"]
    if (
        "data_dir" in own
        and "data_dir" not in typed
        and (elsewhere["typed"] or not os.path.isdir(own["data_dir"]))
    ):
        own["data_dir"] = elsewhere["path"]
    if "cache" in own:
        own["cache"] = "off"  # only one split is needed, and once
    check_recorded({"data": own | typed}, ["data"], "The checkpoint")
    if hidden := hidden_keys({"data": own | typed}):
        raise UserError(
            f"The checkpoint has {hidden[0]} as {REDACTED}, as an older version kept it; set it: {hidden[0]}=VALUE."
        )
    return with_passwords(whole_folder(own | typed) if "root" in typed else own | typed, "data")


def is_own_data(own: Mapping[str, Any], typed: Mapping[str, Any]) -> bool:
    """Return whether the keys that the user typed leave a checkpoint its own data set, which may have moved."""
    # With data=NAME a folder of the same name may be another one; a bare data.root=DIR says where it lies now.
    part: Callable[[str], str] = os.path.realpath if "_target_" in typed else os.path.basename

    def where(keys: Mapping[str, Any]) -> list[str]:
        places = [os.path.expanduser(str(keys.get(key))).rstrip("/") for key in ("root", "url")]
        return [str(keys["_target_"]), *map(part, places)]

    return where({**own, **typed}) == where(own)


def whole_folder(keys: dict[str, Any]) -> dict[str, Any]:
    """Cut nothing off a folder that has no train folder, unless the settings say how: for verbs that train nothing."""
    root = os.path.expanduser(str(keys.get("root", "")))
    if keys["_target_"] != "alexnet_exp.data.Folder" or not os.path.isdir(root):
        return keys
    folders = split_folders(root, keys.get("split_rule", "by_order"))
    whole = "train" not in folders if folders else keys["val_fraction"] is None
    return {**keys, "val_fraction": 0.0} if whole else keys


def _renumbered(sources: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Give the labels of all images the numbers that the checkpoint's classes have, matched by name."""
    found, wanted = list(next(iter(sources.values())).classes), own_classes(classes)
    if found == wanted:
        return sources
    numbers = torch.tensor(match_classes(found, wanted))
    return {
        split: replace(source, labels=numbers[source.labels], classes=tuple(wanted))
        for split, source in sources.items()
    }


def choose_split(data: ImageData, wanted: str) -> str:
    """Return the split to evaluate; 'auto' is test, or else val, or else train.

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
    """Say that a split is not the one that the checkpoint's run had, where the checkpoint knows."""
    if recorded := checkpoint.get("splits"):
        now = identify(data.sources[split], data.origins.get(split, ""))
        if changed := changed_split(recorded, path, split, now):
            log.warning("%s.", printable(changed))


def check_images(data: ImageData, split: str) -> None:
    """Refuse images that cannot be prepared as the checkpoint asks.

    Raises:
        UserError: If ten views do not fit into an image, or its mean image has another size.
    """
    source, size, mean = data.sources[split], data.preprocess.image_size, data.pipeline.mean_image
    stored = _stored_size(data, split)
    if data.views == "ten_crop" and stored < size:
        raise UserError(
            f"views=ten_crop needs images of at least the network's {size} pixels, and these have {stored}: "
            "say views=flip or views=centre."
        )
    if mean is not None and mean.shape[-1] != stored:
        raise UserError(
            f"The checkpoint subtracts a mean image of {mean.shape[-1]} pixels, and the images of {source.name} have "
            f"{stored}."
        )


def has_equal_views(data: ImageData, split: str) -> bool:
    """Return whether the four corners and the centre are one crop: the images are as large as the input."""
    return data.views == "ten_crop" and _stored_size(data, split) == data.preprocess.image_size


def _stored_size(data: ImageData, split: str) -> int:
    """Return the side of the images as stored, in pixels."""
    source = data.sources[split]
    return source.images.shape[-1] if isinstance(source, ArraySource) else data.stored_size


def image_names(data: ImageData, split: str) -> list[str]:
    """Return the path of every image of a split, or its number where the images are in memory."""
    source = data.sources[split]
    if not isinstance(source, ArraySource):
        return list(source.paths)
    numbers = range(len(source)) if source.numbers is None else source.numbers.tolist()
    if isinstance(source, DecodedSource):  # files whose pixels are in memory
        return [source.files.paths[number] for number in numbers]
    return [str(number) for number in numbers]
