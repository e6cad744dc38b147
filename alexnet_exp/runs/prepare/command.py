"""`alexnet-exp prepare`: prepare images for training, as chunks for data=streaming or as the decode-once cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp import cores
from alexnet_exp.config.schema import checked
from alexnet_exp.errors import UserError
from alexnet_exp.runs.prepare.settings import Images, Prepare

if TYPE_CHECKING:
    from alexnet_exp.data.sources import FileSource


CACHE_SIZE = 256  # what data=folder stores for networks of 224 and 227 pixels


def prepare(config: Mapping[str, Any]) -> None:
    """Write chunks or the cache, and verify what was written.

    Args:
        config: Keys of conf/prepare.yaml.

    Raises:
        UserError: Illegal setting, images that cannot be read, or a copy that differs from the original.
    """
    settings = checked(Prepare, config)
    _check(settings)
    console = Console(soft_wrap=True, highlight=False)
    if settings.cache:
        _cache(settings, settings.num_workers or cores.available_cores(), console)
        return
    from alexnet_exp.data.streaming.dataset import check_installed

    check_installed()
    from alexnet_exp.runs.prepare.chunks import write_chunks

    write_chunks(_sources(settings.data, console), settings, console)


def _check(settings: Prepare) -> None:
    if settings.cache == (settings.out is not None):
        raise UserError("Set either out=DIR_OR_URL for chunks, or cache=true for the cache.")
    if settings.data.fit != "crop" and not settings.cache:
        raise UserError("data.fit is for cache=true: chunks keep the whole image. Leave it out.")


def _sources(images: Images, console: Console) -> dict[str, FileSource]:
    """Find the images of every split."""
    from alexnet_exp.data.datasets import folder
    from alexnet_exp.data.datasets.holdout import describe_automatic
    from alexnet_exp.tracking.log import logging_to

    root, links, rule, exclude = images.root, images.follow_links, images.split_rule, images.exclude
    with logging_to(None, on_screen=True):
        if images.kind == "imagenet":
            from alexnet_exp.data.datasets.imagenet import scan

            return scan(root, links, rule=rule, exclude=exclude)
        fraction, automatic = images.val_fraction, isinstance(images.val_fraction, str)
        if isinstance(fraction, str):
            fraction = folder.automatic_fraction(root, rule)
        found = folder.scan(root, fraction, images.val_seed, links, rule=rule, exclude=exclude)
        if automatic and fraction:
            console.print(describe_automatic(root, found, fraction, rule), markup=False)
        return found


def _cache(settings: Prepare, workers: int, console: Console) -> None:
    from alexnet_exp.data.cache import Cache
    from alexnet_exp.data.decode import WHOLE
    from alexnet_exp.tracking.log import logging_to

    size, images = settings.size or CACHE_SIZE, settings.data
    sources = _sources(images, console)
    # Only training cuts its crops from the whole image; evaluation reads the central square (data/module.py).
    whole = images.fit == WHOLE
    fits = ("crop", WHOLE) if whole else (images.fit, None)
    cache = Cache("disk", settings.paths.cache_dir, images.channels, size, workers, *fits)
    with logging_to(None):
        cache.keep(sources)
    count = sum(map(len, sources.values()))
    fit = " augment=resized_crop" if whole else "" if fits[0] == "crop" else f" data.fit={fits[0]}"
    console.print(
        f"cached: {count} images of {size} x {size} pixels, for data={images.kind} data.stored_size={size}{fit}"
    )
