"""The run that a benchmark measures, on its own data or on noise of the same shape."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data.module import ImageData, Source
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.runs.benchmark.settings import Benchmark
from alexnet_exp.runs.train import fit as heavy
from alexnet_exp.runs.train.fit import Fit
from alexnet_exp.runs.train.loggers import make_loggers
from alexnet_exp.settings import assigned, key_of
from alexnet_exp.tracking.run_directory import RunDirectory


class _NullFile(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


SYNTHETIC = "synthetic"  # data.root=synthetic: a temporary folder of generated JPEG files


@dataclass(frozen=True)
class Published:
    """Files of a data set, and the shape of the noise that replaces it if they are missing."""

    files: tuple[str, ...]  # below data_dir; one of them suffices
    images: int
    side: int


PUBLISHED = {
    "alexnet_exp.data.CIFAR10": Published(("cifar-10-batches-py", "cifar-10-python.tar.gz"), 50_000, 32),
    "alexnet_exp.data.MNIST": Published(("MNIST/raw",), 60_000, 32),
}


class Noise(ImageData):
    """Random images of ten classes, in the shape of a missing data set.

    Args:
        images: Number of training images; there is a tenth as many test images.
        side: Side in pixels.
        common: See `ImageData`.
    """

    def __init__(self, images: int, side: int, **common: Any) -> None:
        super().__init__(**common)
        self.images, self.side = images, side

    def load(self) -> dict[str, Source]:
        return {
            split: self._split(split, n) for split, n in (("train", self.images), ("test", self.images // 10))
        }

    def _split(self, split: str, count: int) -> ArraySource:
        generator = torch.Generator().manual_seed(0)
        shape = (count, self.channels, self.side, self.side)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        classes = tuple(f"class {i}" for i in range(10))
        return ArraySource(images, torch.arange(count) % 10, classes, f"noise {split}")


WIDTH, HEIGHT = 500, 375  # the most common size in ImageNet
CLASSES, FILES_PER_CLASS, VALIDATION_PER_CLASS = 4, 128, 2
_DISTINCT = 8  # generated images; the files are shifted copies of them


def write_jpegs(root: Path) -> Path:
    """Write root/train/CLASS/*.jpg and root/val/CLASS/*.jpg, unless they exist; return the root."""
    if root.exists():
        return root
    pictures = [_picture(seed) for seed in range(_DISTINCT)]
    for number in range(CLASSES):
        for split, count in (("train", FILES_PER_CLASS), ("val", VALIDATION_PER_CLASS)):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                shifted = np.roll(pictures[i % _DISTINCT], (7 * i + number, 11 * i), axis=(0, 1))
                Image.fromarray(shifted).save(folder / f"{i:04}.jpg", quality=90)
    return root


def _picture(seed: int) -> np.ndarray:
    """Return smooth colours with fine grain, uint8 (H, W, 3): about 70 kB as JPEG, like a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    return (smooth + random.normal(0, 9, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)


# Settings that would otherwise end a run, or an epoch, during a measurement.
UNENDING: dict[str, Any] = {
    "max_epochs": 100_000, "max_steps": -1, "max_time": None, "fast_dev_run": False, "overfit_batches": 0.0,
    "limit_train_batches": 1.0, "val_check_interval": 1.0, "check_val_every_n_epoch": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The run to measure.

    Args:
        options: The benchmark's own settings.
        overrides: Overrides of the run.
        device: 'cpu' or 'cuda'.
        scratch: A folder that is deleted after the benchmark.
        notes: Remarks on the results, appended to while measuring.
        further: Settings of the script in benchmarks/ that measures, plain values.
    """

    options: Benchmark
    overrides: list[str]
    device: str
    scratch: Path
    notes: list[str] = field(default_factory=list)
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def repeats(self) -> int:
        return self.options.repeats

    def with_overrides(self, *more: str) -> Subject:
        """Return a copy with more overrides, which replace those of the same key."""
        keys = {key_of(override) for override in more}
        kept = [override for override in self.overrides if key_of(override) not in keys]
        return replace(self, overrides=[*kept, *more])

    def config(self) -> dict[str, Any]:
        """Compose the settings of the run for one device, without uploads to W&B or other trackers.

        Raises:
            UserError: Illegal setting.
        """
        accelerator = "gpu" if self.device == "cuda" else "cpu"
        config = plain(compose("train", self.overrides))
        check_config(config)
        config["trainer"] |= {"accelerator": accelerator, "devices": 1, "num_nodes": 1}
        config["callbacks"]["model_summary"]["enabled"] = False
        config["logger"] = {k: v for k, v in config["logger"].items() if "_target_" not in v}
        if "wandb" in config["logger"]:
            config["logger"]["wandb"]["mode"] = "offline"
        if "cache_dir" in config["data"]:
            config["data"]["cache_dir"] = str(self.scratch / "cache")
        return config

    def data(self, config: dict[str, Any]) -> ImageData:
        """Read the images, or generate noise of the same shape and add a note."""
        data = config["data"]
        if _is_missing(data):
            published = PUBLISHED[data["_target_"]]
            name = data["_target_"].rpartition(".")[2]
            self._note(f"{name} was not found in {data['data_dir']}: measured with noise of the same shape.")
            taken = {k: v for k, v in data.items() if k not in ("data_dir", "download")}
            target = f"{Noise.__module__}.{Noise.__name__}"
            config["data"] = {**taken, "_target_": target, "images": published.images, "side": published.side}
        elif data.get("root") == SYNTHETIC:
            self._note("The image folder is synthetic: generated JPEG files of 500 x 375 pixels.")
            data["root"] = str(write_jpegs(self.scratch / "jpegs"))
        return heavy.prepare_data(config)

    def has_images(self) -> bool:
        """Return whether the run's images exist, so that `data` need not generate any."""
        data = self.config()["data"]
        return not _is_missing(data) and data.get("root") != SYNTHETIC

    def fit(self, tracked: bool = False) -> Fit:
        """Assemble the run as `train` does.

        Args:
            tracked: Include its loggers.
        """
        config = self.config()
        data = self.data(config)
        heavy.fit_to_data(config, data, self.overrides)
        # Only now, since compile=auto depends on the length of the run.
        config["trainer"] |= UNENDING
        config["callbacks"]["early_stopping"]["enabled"] = False
        run = RunDirectory(tempfile.mkdtemp(dir=self.scratch))
        loggers = make_loggers(config, run) if tracked else []
        # Drawn as on a terminal, so that the progress bar costs what it does in a run.
        console = Console(file=_NullFile(), force_terminal=True)
        fit = heavy.assemble(config, data, run.path, loggers, console)
        data.trainer = fit.trainer
        return fit

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _is_missing(data: dict[str, Any]) -> bool:
    """Return whether this is a published data set whose files are missing."""
    published = PUBLISHED.get(data["_target_"])
    return published is not None and not any(
        (Path(data["data_dir"]) / name).exists() for name in published.files
    )


def title(fit: Fit, overrides: list[str]) -> str:
    """Describe a run in a few words: 'alexnet_lrn, cifar10 at 227, batch 64'."""
    chosen = assigned(overrides)
    network = chosen.get("model") or chosen.get("experiment") or "alexnet_cifar"
    source = fit.data.sources["train"].name.removesuffix(" train")
    return f"{network}, {source} at {fit.settings.data.image_size}, batch {fit.data.batch_size}"
