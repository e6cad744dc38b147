"""A trained classifier for plain Python: everything it needs comes from its checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_exp.config.checks import check_recorded
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.decode import from_pil, luma, read_stored, stored
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.pretrained import shipped
from alexnet_exp.training.checkpoint.read import read_checkpoint
from alexnet_exp.training.checkpoint.start import find_network, network_of

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_ARTIFACT = re.compile(r"[^/\\:]+/[^/\\:]+/[^/\\:]+:[^/\\:]+")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the first the best."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Preprocessing:
    """What an image goes through ahead of the network, as the checkpoint recorded it.

    Args:
        recorded: `preprocessing` of a checkpoint.
        augment: Keys of conf/augment that the run had.
    """

    def __init__(self, recorded: dict[str, Any], augment: dict[str, Any]) -> None:
        self.stored_size, self.channels = int(recorded["stored_size"]), int(recorded["channels"])
        self.fit = recorded.get("fit", "crop")  # of an older version: all were cropped
        fixed = (recorded["image_size"], list(recorded["mean"]), list(recorded["std"]), recorded["crop"])
        self.pipeline = Pipeline(Preprocess(*fixed), augment, recorded["mean_image"])

    def __call__(self, images: Any) -> Tensor:
        """Return what the network reads, (N, C, image_size, image_size) float32, for one image or several.

        Args:
            images: As `LoadedClassifier.predict` takes them.

        Raises:
            UserError: If one of them is no image.
        """
        return self.pipeline.evaluate(torch.stack([self.stored(image) for image in as_list(images)]))

    def stored(self, image: ImageLike) -> Tensor:
        """Return one image at the size that data sets store, (C, stored_size, stored_size) uint8."""
        if isinstance(image, str | os.PathLike):
            return read_stored(os.fspath(image), self.channels, self.stored_size, self.fit)
        return stored(to_channels(read_image(image), self.channels), self.stored_size, self.fit)


@dataclass(eq=False)
class LoadedClassifier:
    """A network in evaluation mode with its classes and its preprocessing.

    Args:
        model: Maps (N, C, H, W) float32 to logits (N, K).
        classes: K names.
        preprocess: From images to what the network reads.
        config: All settings of the training run.
        path: The checkpoint.
        device: Where the network is.
        splits: What the images of its run were (data/identity.py); None in checkpoints of an older version.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocessing
    config: dict[str, Any]
    path: Path
    device: torch.device
    splits: dict[str, Any] | None = None

    def predict(self, images: Any, top_k: int = 5, batch_size: int = 32) -> list[Prediction]:
        """Name what is in images.

        Args:
            images: Paths, PIL images, uint8 arrays (H, W), (H, W, 1|3) or (N, H, W, 1|3), uint8 tensors (C, H, W) or
                (N, C, H, W), or a list of these.
            top_k: Classes to name, at most as many as there are.
            batch_size: Images that go through the network together.

        Returns:
            One prediction for each image.

        Raises:
            UserError: If one of them is no image or cannot be decoded.
        """
        everything, found = as_list(images), []
        for start in range(0, len(everything), batch_size):
            batch = [self.preprocess.stored(image) for image in everything[start : start + batch_size]]
            found += self.top(self.probabilities(torch.stack(batch)), top_k)
        return found

    def probabilities(self, images: Tensor) -> Tensor:
        """Map images as stored, (N, C, S, S) uint8, to probabilities (N, K) float32 on the CPU."""
        with torch.inference_mode():
            logits = self.model(self.preprocess.pipeline.evaluate(images.to(self.device)))
            return logits.float().softmax(1).cpu()

    def top(self, probabilities: Tensor, top_k: int = 5) -> list[Prediction]:
        """Name the most probable classes of each row of (N, K)."""
        values, labels = probabilities.topk(min(top_k, len(self.classes)), dim=1)
        return [
            Prediction(tuple(self.classes[i] for i in row), tuple(p))
            for row, p in zip(labels.tolist(), values.tolist(), strict=True)
        ]


def load_classifier(
    path: str | os.PathLike[str], device: str = "auto", trust: Iterable[str] = ()
) -> LoadedClassifier:
    """Load a trained classifier.

    Args:
        path: A checkpoint, a run directory (its best checkpoint), a W&B artifact 'entity/project/name:alias', or the
            name of a network that ships trained ('convnet_80sec').
        device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', 'mps'.
        trust: Packages of yours whose network the checkpoint may name.

    Raises:
        UserError: If the checkpoint cannot be had or read, or there is no such device.
    """
    place = choose_device(device)
    file = resolve_checkpoint(path)
    checkpoint = read_checkpoint(file)
    check_recorded(checkpoint["config"], ["augment"], str(file))
    model = network_of(checkpoint, trust).to(place).eval()
    preprocess = Preprocessing(checkpoint["preprocessing"], checkpoint["config"]["augment"])
    classes, splits = tuple(checkpoint["classes"]), checkpoint.get("splits")
    return LoadedClassifier(model, classes, preprocess, checkpoint["config"], file, place, splits)


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means.

    Raises:
        UserError: If it is not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name.replace("gpu", "cuda")
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    kind, _, index = name.partition(":")
    known = here.get(kind, False) and (not index or (kind == "cuda" and index.isdigit()))
    if not known or (index and int(index) >= torch.cuda.device_count()):
        raise UserError(f"device={name} is not here: say device=cpu, or auto to take what is there.")
    return torch.device(name)


def resolve_checkpoint(source: str | os.PathLike[str]) -> Path:
    """Return the checkpoint file that `source` means: a file, a run directory, or a W&B artifact.

    Raises:
        UserError: If there is none.
    """
    text = os.path.expanduser(os.fspath(source))
    if not os.path.exists(text) and _ARTIFACT.fullmatch(text):
        return _download(text)
    found = find_network(text)
    if not found.exists():
        near = nearest(text, shipped()) if "/" not in text else ""
        raise UserError(f"ckpt={text}: there is no such file or run directory.{near}")
    return found


def _download(name: str) -> Path:
    """Fetch the checkpoint of a W&B artifact; wandb keeps it, so that it is downloaded once."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"{name} is a W&B artifact, and wandb is not installed: pip install wandb."
        ) from error
    try:
        folder = Path(wandb.Api(timeout=20).artifact(name, type="model").download())
    except (wandb.errors.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The W&B artifact {name} could not be downloaded ({reason}): a network and `wandb login` are needed, or "
            "give the checkpoint's file."
        ) from error
    files = sorted(folder.glob("*.ckpt"))
    if not files:
        raise UserError(
            f"The W&B artifact {name} holds no .ckpt file: log it with logger.wandb.log_model=true."
        )
    return files[0]


# --------------------------------------------------------------------------------------------------- images


def as_list(images: Any) -> list[ImageLike]:
    """Return the single images of what `predict` takes."""
    return list(_singles(images))


def _singles(images: Any) -> Iterator[ImageLike]:
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        for image in images:
            yield from _singles(image)
    elif isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        yield from images
    else:
        yield images


def read_image(image: ImageLike) -> Tensor:
    """Return one image that is in memory as uint8 (1 or 3, H, W).

    Raises:
        UserError: If it is none of what `predict` takes, or cannot be decoded.
    """
    if isinstance(image, Image.Image):
        return from_pil(image)
    if isinstance(image, np.ndarray):
        return _checked(_from_array(image), f"an array {image.shape} of {image.dtype}")
    if isinstance(image, Tensor):
        tensor = image.cpu()
        return _checked(
            tensor[None] if tensor.ndim == 2 else tensor, f"{tuple(image.shape)} of {image.dtype}"
        )
    raise UserError(f"{type(image).__name__} is no image: give paths, PIL images, arrays or tensors.")


def _from_array(image: np.ndarray) -> Tensor:
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        return torch.empty(0)
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(planes.copy())


def _checked(image: Tensor, what: str) -> Tensor:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise UserError(
            f"An image must be uint8: an array (H, W) or (H, W, 3), or a tensor (C, H, W); this one is {what}."
        )
    return image


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Turn uint8 (1 or 3, H, W) into (channels, H, W): grey is repeated, colour becomes luma."""
    if len(image) == channels:
        return image
    return image.repeat(3, 1, 1) if channels == 3 else luma(image)
