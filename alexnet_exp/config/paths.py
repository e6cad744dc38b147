"""Which settings are paths, and the expansion of ~ in them, whether typed, in a yaml or in the environment."""

from __future__ import annotations

import os
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

PATH_KEYS = (
    "resume", "sweep.resume", "weights", "data.root", "data.url", "data.data_dir", "data.exclude", "data.groups",
    "data.cache_dir", "paths.data_dir", "paths.output_dir", "paths.cache_dir", "hydra.run.dir", "hydra.sweep.dir",
    "hydra.sweeper.storage", "out",
)  # fmt: skip
PATH_LISTS = ("ckpt", "images", "runs")  # one path or a [list]


def expand_home(value: Any, key: str = "") -> Any:
    """Return settings with ~ expanded in every path and list of paths.

    Args:
        value: Plain values.
        key: Dotted key of `value`.
    """
    if isinstance(value, dict):
        return {k: expand_home(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if key not in (*PATH_KEYS, *PATH_LISTS):
        return value
    if isinstance(value, list):
        return [expand_home(v, key) for v in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


class HomeDirectories(Callback):
    """Expand ~ in the directories that Hydra itself creates, before it does."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _expand(config.get("paths"), "output_dir")
        _expand(config.hydra.run, "dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _expand(config.get("paths"), "output_dir")
        _expand(config.hydra.sweep, "dir")


def _expand(settings: DictConfig | None, key: str) -> None:
    try:
        # hydra.run.dir interpolates values known only when the run begins: check its unresolved text.
        text = (OmegaConf.to_container(settings) if key == "dir" else settings or {})[key]  # type: ignore[call-overload, index]
    except (KeyError, ValueError, OmegaConfBaseException):  # Hydra will report it
        return
    if settings is not None and str(text).startswith("~"):
        with read_write(settings):
            settings[key] = os.path.expanduser(text)
