"""The settings of `alexnet-exp figures`, for its command and for its figures."""

from __future__ import annotations

from typing import Any

from alexnet_exp.config.groups import Paths
from alexnet_exp.config.schema import (
    Rule,
    at_least,
    choice,
    group,
    list_of,
    nested,
    null,
    path,
    setting,
    text,
    trusted,
)
from alexnet_exp.runs.evaluate.settings import SPLITS, DataDir

NAMES = (
    "filters", "top5", "nearest", "activations", "grad_cam", "mistakes", "weight_histograms", "activation_histograms",
)  # fmt: skip
_SOME = list_of(choice(*NAMES))
_WHICH = Rule(f"all, or some of [{', '.join(NAMES)}]", lambda v: v in ("all", *NAMES) or _SOME.legal(v))


@group
class Figures:
    """Keys of conf/figures.yaml, as `check_settings` prepares them."""

    ckpt: str = setting(path)
    which: list[str] = setting(_WHICH)
    split: str = setting(choice("auto", *SPLITS))
    sample: int = setting(at_least(1))  # number of images
    seed: int = setting(at_least(0))
    layer: str | None = setting(text | null)
    batch_size: int | None = setting(at_least(1) | null)
    device: str = setting(text)
    trust: list[str] = setting(trusted)
    views: str
    data: dict[str, Any]  # plain: another data set, or typed keys of the checkpoint's own
    data_dir: DataDir = nested(DataDir)
    paths: Paths = nested(Paths)
