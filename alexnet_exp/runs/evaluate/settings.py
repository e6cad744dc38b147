"""The settings of `alexnet-exp evaluate`, for every file of this folder; `figures` has those of images from here."""

from __future__ import annotations

from typing import Any, Protocol

from alexnet_exp.config.schema import (
    VIEWS,
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

SPLITS = ("test", "val", "train")


@group
class DataDir:
    path: str
    typed: bool  # on this command line


class OfImages(Protocol):
    """The settings that say which images a checkpoint is read with."""

    @property
    def views(self) -> str | None: ...  # None: as in the run's own test
    @property
    def batch_size(self) -> int | None: ...  # None: as in training
    @property
    def trust(self) -> list[str]: ...
    @property
    def data(self) -> dict[str, Any]: ...
    @property
    def data_dir(self) -> DataDir: ...


@group
class Evaluate:
    """Keys of conf/evaluate.yaml, as `check_settings` prepares and records them."""

    ckpt: list[str] = setting(path | list_of(path))
    split: str = setting(choice("auto", *SPLITS))
    views: str | None = setting(choice(*VIEWS) | null)
    batch_size: int | None = setting(at_least(1) | null)
    device: str = setting(choice("auto", "cpu", "gpu", "cuda", "mps"))
    devices: int = setting(at_least(1))
    precision: str | None = setting(text | null)
    compile: bool | None = setting(Rule("false", lambda v: v is False) | null)
    trust: list[str] = setting(trusted)
    data: dict[str, Any]  # plain: another data set, or typed keys of the checkpoint's own
    data_dir: DataDir = nested(DataDir)
    logger: dict[str, Any] | None  # plain: conf/logger
