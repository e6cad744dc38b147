"""`alexnet-exp prepare`: prepare images for training, as chunks for data=streaming or as the decode-once cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp import cores
from alexnet_exp.config.checks import check_rules
from alexnet_exp.config.schema import RULES as SETTINGS
from alexnet_exp.config.schema import Rule, at_least, choice, flag, null, text
from alexnet_exp.errors import UserError

if TYPE_CHECKING:
    from alexnet_exp.data.sources import FileSource


RULES = {
    "out": text | null,
    "size": at_least(1) | null,
    "quality": Rule("an integer in [1, 100]", lambda v: at_least(1).legal(v) and v <= 100),
    "chunk_mb": at_least(1),
    "num_workers": at_least(1) | null,
    "cache": flag,
}
DATA_KEYS = ("root", "val_fraction", "val_seed", "split_rule", "follow_links", "exclude", "channels", "fit")
CACHE_SIZE = 256  # what data=folder stores for networks of 224 and 227 pixels


def prepare(config: Mapping[str, Any]) -> None:
    """Write chunks or the cache, and verify what was written.

    Args:
        config: Keys of conf/prepare.yaml.

    Raises:
        UserError: Illegal setting, images that cannot be read, or a copy that differs from the original.
    """
    _check(config)
    console = Console(soft_wrap=True, highlight=False)
    if config["cache"]:
        _cache(config, config["num_workers"] or cores.available_cores(), console)
        return
    from alexnet_exp.data.streaming.dataset import check_installed

    check_installed()
    from alexnet_exp.runs.prepare.chunks import write_chunks

    write_chunks(_sources(config["data"], console), config, console)


def _check(config: Mapping[str, Any]) -> None:
    rules = RULES | {f"data.{key}": SETTINGS[f"data.{key}"] for key in DATA_KEYS}
    rules["data.kind"] = choice("folder", "imagenet")
    rules["data.fit"] = choice("crop", "squash", "pad", "whole")
    check_rules({**config, **{f"data.{key}": value for key, value in config["data"].items()}}, rules)
    if config["cache"] == (config["out"] is not None):
        raise UserError("Set either out=DIR_OR_URL for chunks, or cache=true for the cache.")
    if config["data"]["fit"] != "crop" and not config["cache"]:
        raise UserError("data.fit is for cache=true: chunks keep the whole image. Leave it out.")


def _sources(settings: Mapping[str, Any], console: Console) -> dict[str, FileSource]:
    """Find the images of every split."""
    from alexnet_exp.data.datasets import folder
    from alexnet_exp.data.datasets.holdout import describe_automatic
    from alexnet_exp.tracking.log import logging_to

    root, links, rule = settings["root"], settings["follow_links"], settings["split_rule"]
    exclude = settings["exclude"]
    with logging_to(None, on_screen=True):
        if settings["kind"] == "imagenet":
            from alexnet_exp.data.datasets.imagenet import scan

            return scan(root, links, rule=rule, exclude=exclude)
        fraction, automatic = settings["val_fraction"], settings["val_fraction"] == "auto"
        if automatic:
            fraction = folder.automatic_fraction(root, rule)
        found = folder.scan(root, fraction, settings["val_seed"], links, rule=rule, exclude=exclude)
        if automatic and fraction:
            console.print(describe_automatic(root, found, fraction), markup=False)
        return found


def _cache(config: Mapping[str, Any], workers: int, console: Console) -> None:
    from alexnet_exp.data.cache import Cache
    from alexnet_exp.data.decode import WHOLE
    from alexnet_exp.tracking.log import logging_to

    size, settings = config["size"] or CACHE_SIZE, config["data"]
    sources = _sources(settings, console)
    # Only training cuts its crops from the whole image; evaluation reads the central square (data/module.py).
    whole = settings["fit"] == WHOLE
    fits = ("crop", WHOLE) if whole else (settings["fit"], None)
    cache = Cache("disk", config["paths"]["cache_dir"], settings["channels"], size, workers, *fits)
    with logging_to(None):
        cache.keep(sources)
    count = sum(map(len, sources.values()))
    fit = " augment=resized_crop" if whole else "" if fits[0] == "crop" else f" data.fit={fits[0]}"
    console.print(
        f"cached: {count} images of {size} x {size} pixels, for data={settings['kind']} data.stored_size={size}{fit}"
    )
