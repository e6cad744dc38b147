"""The settings of `alexnet-exp prepare`, for its command and for the writer of chunks."""

from __future__ import annotations

from alexnet_exp.config.groups import RULES, Paths
from alexnet_exp.config.schema import at_least, choice, flag, group, integer, nested, null, setting, text


@group
class Images:
    """Keys of conf/data/folder.yaml, and of which data set they are."""

    root: str = setting(RULES["data.root"])
    val_fraction: float | str | None = setting(RULES["data.val_fraction"])
    val_seed: int = setting(RULES["data.val_seed"])
    split_rule: str = setting(RULES["data.split_rule"])
    follow_links: bool = setting(RULES["data.follow_links"])
    exclude: str | None = setting(RULES["data.exclude"])
    channels: int = setting(RULES["data.channels"])
    fit: str = setting(choice("crop", "squash", "pad", "whole"))
    kind: str = setting(choice("folder", "imagenet"))


@group
class Prepare:
    """Keys of conf/prepare.yaml."""

    out: str | None = setting(text | null)
    size: int | None = setting(at_least(1) | null)  # in pixels
    quality: int = setting(integer(1, 100))
    chunk_mb: int = setting(at_least(1))
    num_workers: int | None = setting(at_least(1) | null)
    cache: bool = setting(flag)
    data: Images = nested(Images)
    paths: Paths = nested(Paths)
