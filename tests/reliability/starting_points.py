"""Foreign checkpoints, and runs that cannot be resumed."""

from __future__ import annotations

import argparse
import fcntl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.reliability.bad import DIGITS, Bad, Kind, text
from tests.training.small_runs import checkpoint

_HELD: list[IO[str]] = []  # locks held until the test ends


def saved(make: Callable[[], Any], name: str = "x.ckpt", **options: Any) -> Callable[[Path], None]:
    """Return a function that writes a torch.save file, and an image to predict."""

    def write(here: Path) -> None:
        torch.save(make(), here / name, **options)
        Image.new("RGB", (8, 8)).save(here / "a.png")

    return write


def _scripted(here: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages this format
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(here / "x.ckpt"))


def _bytes(content: bytes) -> Callable[[Path], object]:
    def write(here: Path) -> None:
        (here / "x.ckpt").write_bytes(content)
        Image.new("RGB", (8, 8)).save(here / "a.png")

    return write


def _arrays(here: Path) -> None:
    np.savez(here / "x.npz", weight=np.zeros(3))
    (here / "x.npz").rename(here / "x.ckpt")


def _state() -> dict[str, torch.Tensor]:
    return {f"features.{i}.{kind}": torch.zeros(4) for i in (0, 3) for kind in ("weight", "bias")}


_LIGHTNINGS = {
    "state_dict": _state(),
    "pytorch-lightning_version": "2.6.1",
    "hyper_parameters": {"lr": 0.1},
    "epoch": 3,
}
_TIMMS = {
    "arch": "alexnet",
    "state_dict": _state(),
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1),
    "version": 2,
}

FOREIGN = Kind(
    "Checkpoints of other programs",
    "refused by every verb that needs classes and preprocessing; no directory is left",
    (
        Bad("", "it has no config; use weights= for a plain state dict", "torchvision's weights", saved(_state)),
        Bad("", "it has no config; use weights= for a plain state dict", "a checkpoint of Lightning",
            saved(lambda: _LIGHTNINGS)),
        Bad("", "it has no config; use weights= for a plain state dict", "a checkpoint of timm", saved(lambda: _TIMMS)),
        Bad("", "is not what a run writes there", "one with a config of its own", saved(
            lambda: {"state_dict": _state(), "config": {g: {} for g in
                     ("model", "data", "augment", "optimizer", "trainer")}})),
        Bad("", "tensors and plain values are allowed", "a whole network, pickled", saved(lambda: nn.Linear(2, 2))),
        Bad("", "its records claim more than", "a network in TorchScript",
            lambda here: (saved(dict)(here), _scripted(here))),
        Bad("", "it has 0 records named weight.npy/data.pkl", "arrays of numpy (.npz)",
            lambda here: (saved(dict)(here), _arrays(here))),
        Bad("", "it is not a torch.save archive", "a file of HDF5, as Keras writes",
            _bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))),
        Bad("", "it is not a torch.save archive", "a network in ONNX",
            _bytes(b"\x08\x09\x12\x07pytorch" + bytes(99))),
        Bad("", "it is not a torch.save archive", "a page of HTML, in the place of a download",
            _bytes(b"<!DOCTYPE html>")),
        Bad("", "it is not a torch.save archive", "a Git LFS pointer",
            _bytes(b"version https://git-lfs.github.com/spec/v1\n")),
    ),
    base=("predict", "x.ckpt", "a.png", "device=cpu"),
)  # fmt: skip

WEIGHTS = Kind(
    "Weights that do not fit",
    "refused before the first step; the run's result.json says so",
    (
        Bad("weights=x.ckpt", "it has no features.conv1.weight", "weights of another network",
            saved(lambda: {"stem.weight": torch.zeros(3)})),
        Bad("weights=x.ckpt", "features.conv1.weight is (4,) there and", "weights of another width",
            saved(lambda: _ours(torch.zeros(4)))),
        Bad("weights=x.ckpt", "holds no weights: expected a dictionary of tensors", "the state of an optimizer",
            saved(lambda: torch.optim.SGD([torch.zeros(2)], lr=0.1).state_dict())),
        Bad("weights=empty", "empty has no checkpoints/best.ckpt", "a folder", lambda here: (here / "empty").mkdir()),
        Bad("ckpt=empty", "empty has no checkpoints/last.ckpt", "a folder to go on from",
            lambda here: (here / "empty").mkdir()),
        Bad("ckpt=x.ckpt", "it has no config; use weights= for a plain state dict", "plain weights to go on from",
            saved(_state)),
        Bad("ckpt=RUN", "has already trained 1 epochs: set trainer.max_epochs=N to more than that"),
        Bad("ckpt=RUN trainer.max_epochs=2 model.features.conv2.out_channels=9", "is from a different network: model"),
    ),
    base=(*DIGITS, "logger=none"),
    leaves="a failed run",
)  # fmt: skip


def _ours(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"features.conv{i}.{kind}": tensor for i in range(1, 6) for kind in ("weight", "bias")}


def hold(lock: Path) -> None:
    """Lock a file as a running process would."""
    _HELD.append(open(lock, "a"))  # noqa: SIM115
    fcntl.flock(_HELD[-1], fcntl.LOCK_EX)


def _locked(here: Path) -> None:
    hold(here / "RUN" / ".lock")


def release() -> None:
    """Release the locks that `hold` has taken."""
    while _HELD:
        _HELD.pop().close()


def _predicted(here: Path) -> None:
    text("old/config.yaml", "ckpt: x\nimages: y\n")(here)
    text("old/overrides.yaml", "[]\n")(here)


def _edited(here: Path) -> None:
    path = here / "RUN" / "config.yaml"
    path.write_text(path.read_text().replace("batch_size: 32", "batch_size: many"))


def _unfinished(name: str = "", content: str | bytes | None = None) -> Callable[[Path], None]:
    """Return a function that removes a run's result and replaces one of its files."""

    def change(here: Path) -> None:
        (here / "RUN" / "result.json").unlink()
        if content is not None:
            (here / "RUN" / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def _unfinished_checkpoint(**parts: Any) -> Callable[[Path], None]:
    """Return a function that removes a run's result and replaces parts of its last.ckpt."""

    def change(here: Path) -> None:
        _unfinished()(here)
        content = checkpoint(here / "RUN")
        torch.save(content | parts, here / "RUN" / "checkpoints" / "last.ckpt")

    return change


RESUMED = Kind(
    "Runs that cannot be resumed",
    "refused; the directory stays as it was",
    (
        Bad("resume=notes", "resume= takes a run directory, and notes is a file", "a file", text("notes", "")),
        Bad("resume=old", "old/config.yaml does not hold the settings of a run", "a directory of predict", _predicted),
        Bad("resume=RUN optimizer.lr=0.5", "resume= continues the same experiment, and optimizer.lr=0.5 would change"),
        Bad("resume=RUN model=alexnet", "resume= continues the same experiment, and model=alexnet would change"),
        Bad("resume=RUN data=mnist", "resume= continues the same experiment, and data=mnist would change"),
        Bad("resume=RUN ckpt=RUN", "resume= continues a run in place, ckpt= starts a new one"),
        Bad("resume=RUN trainer.max_epochs=two", "invalid trainer.max_epochs='two'"),
        Bad("resume=RUN trainer.max_epochs=2", "RUN is in use by a run that is still running", "a run that goes on",
            _locked),
        Bad("resume=RUN trainer.max_epochs=2", "invalid data.batch_size='many'",
            "a config.yaml that somebody has edited", _edited),
        Bad("hydra.run.dir=RUN", "RUN holds a run already; continue it with resume="),
    ),
    base=("train",),
)  # fmt: skip
BROKEN = Kind(
    "Unfinished runs with a broken part",
    "refused; the run stays as it was",
    (
        Bad("", "line 2 has 2 cells, but the header has 3", "a row of metrics.csv without its end", _unfinished(
            "metrics.csv", "epoch,step,lr\n0,1\n")),
        Bad("", "metrics.csv is damaged", "a metrics.csv of zeros, as a crash of the system leaves",
            _unfinished("metrics.csv", b"\0" * 4096 + b"\n\xff")),
        Bad("", "its loops is not what a run writes there", "a last.ckpt without its progress",
            _unfinished_checkpoint(loops=None)),
        Bad("", "its optimizer_states is not what a run writes there", "a last.ckpt without the optimizer",
            _unfinished_checkpoint(optimizer_states=[])),
        Bad("", "its train_sums is not what a run writes there", "a last.ckpt without the sums of its epoch",
            _unfinished_checkpoint(train_sums=None)),
    ),
    base=("train", "resume=RUN", "trainer.max_epochs=2"),
    leaves="the run as it was",
)  # fmt: skip

KINDS = (FOREIGN, WEIGHTS, RESUMED, BROKEN)
