"""Python API for trained classifiers; everything comes from the checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
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
from alexnet_exp.models.activations import find_layer, record
from alexnet_exp.pretrained import shipped
from alexnet_exp.training.checkpoint.read import read_checkpoint
from alexnet_exp.training.checkpoint.start import find_network, network_of
from alexnet_exp.training.classifier import logits_of_views

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

# Three parts and a version, without which it would also match a path.
_ARTIFACT = re.compile(r"[^/\\:]+/[^/\\:]+/[^/\\:]+:[^/\\:]+")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, in descending order; `labels` are their positions among all classes."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    # Names do not identify a class: ImageNet has two called crane.
    labels: tuple[int, ...] = ()


class Preprocessing:
    """The preprocessing of images, as recorded in a checkpoint.

    Args:
        recorded: `preprocessing` of the checkpoint.
        augment: conf/augment settings of the run.
    """

    def __init__(self, recorded: dict[str, Any], augment: dict[str, Any]) -> None:
        self.stored_size, self.channels = int(recorded["stored_size"]), int(recorded["channels"])
        self.fit = recorded.get("fit", "crop")  # older versions always cropped
        fixed = (recorded["image_size"], list(recorded["mean"]), list(recorded["std"]), recorded["crop"])
        self.pipeline = Pipeline(Preprocess(*fixed), augment, recorded["mean_image"])

    def __call__(self, images: Any) -> Tensor:
        """Preprocess one or several images for the network: (N, C, image_size, image_size) float32.

        Args:
            images: See `LoadedClassifier.predict`.

        Raises:
            UserError: One of them is not an image.
        """
        return self.pipeline.evaluate(torch.stack([self.stored(image) for image in as_list(images)]))

    def stored(self, image: ImageLike) -> Tensor:
        """Resize and crop an image as data sets store it: (C, stored_size, stored_size) uint8."""
        if isinstance(image, str | os.PathLike):
            return read_stored(os.fspath(image), self.channels, self.stored_size, self.fit)
        return stored(to_channels(read_image(image), self.channels), self.stored_size, self.fit)


@dataclass(eq=False)
class LoadedClassifier:
    """A network in evaluation mode with its classes and its preprocessing.

    Args:
        model: Maps (N, C, H, W) float32 to logits (N, K).
        classes: K names.
        preprocess: From images to network input.
        config: All settings of the training run.
        path: The checkpoint.
        device: Device of the network.
        splits: Fingerprints of the run's images (data/identity.py); None in checkpoints of older versions.
        at_chance: Set if the network is no better than guessing: its loss, that of guessing, and the steps so far.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocessing
    config: dict[str, Any]
    path: Path
    device: torch.device
    splits: dict[str, Any] | None = None
    at_chance: dict[str, float] | None = None

    def predict(
        self, images: Any, top_k: int = 5, batch_size: int = 32, views: str = "centre"
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: Paths, PIL images, uint8 arrays (H, W), (H, W, 1|3) or (N, H, W, 1|3), uint8 tensors (C, H, W) or
                (N, C, H, W), or a list of these.
            top_k: Classes to return, at most all.
            batch_size: Images per forward pass.
            views: Test-time views, whose softmax is averaged; see `Pipeline.views`.

        Returns:
            One prediction per image.

        Raises:
            UserError: One of them is not an image or cannot be decoded.
        """
        everything, found = as_list(images), []
        for start in range(0, len(everything), batch_size):
            batch = [self.preprocess.stored(image) for image in everything[start : start + batch_size]]
            found += self.top(self.probabilities(torch.stack(batch), views), top_k)
        return found

    def embed(self, images: Any, layer: str, batch_size: int = 32, views: str = "centre") -> Tensor:
        """Return the activations of a layer for images, (N, D) float32; arguments as for `predict`.

        Args:
            images: See `predict`.
            layer: A layer as in `alexnet-exp figures` (conv1 ... fc7; its activation included), or any other module of
                the network. Feature maps (C, H, W) are flattened.
            batch_size: See `predict`.
            views: See `predict`; activations are averaged over views.

        Raises:
            UserError: The network has no such layer, its output is not one tensor, or one of the images cannot be
                decoded.
        """
        everything = as_list(images)
        if not everything:  # (0, D): a blank image tells D
            blank = torch.zeros(
                1, self.preprocess.channels, *[self.preprocess.stored_size] * 2, dtype=torch.uint8
            )
            return self.probabilities_and_activations(blank, layer, views)[1][:0]
        parts = []
        for start in range(0, len(everything), batch_size):
            batch = [self.preprocess.stored(image) for image in everything[start : start + batch_size]]
            parts.append(self.probabilities_and_activations(torch.stack(batch), layer, views)[1])
        return torch.cat(parts)

    def probabilities(self, images: Tensor, views: str = "centre") -> Tensor:
        """Map stored images (N, C, S, S) uint8 to probabilities (N, K) float32 on CPU."""
        pipeline = self.preprocess.pipeline
        pipeline.check_views(views, images.shape[-1])
        with torch.inference_mode():
            x = pipeline.views(images.to(self.device), views)  # (N, C, s, s), or (N, V, C, s, s) for V views
            return logits_of_views(self.model, x).float().softmax(1).cpu()

    def probabilities_and_activations(
        self, images: Tensor, layer: str, views: str = "centre"
    ) -> tuple[Tensor, Tensor]:
        """Map stored images (N, C, S, S) uint8 to probabilities (N, K) and activations (N, D); see `embed`."""
        with record({layer: find_layer(self.model, layer, "embed")}) as recorded:
            probabilities = self.probabilities(images, views)
        if layer not in recorded:
            raise UserError(
                f"embed={layer}: its output is not one tensor, or the network does not use this layer when it "
                "classifies; choose another layer."
            )
        x = recorded[layer].flatten(1)  # (N * V, D)
        return probabilities, x.unflatten(0, (len(images), -1)).mean(1).cpu()

    def top(self, probabilities: Tensor, top_k: int = 5) -> list[Prediction]:
        """Return the most probable classes of each row of (N, K)."""
        values, labels = probabilities.topk(min(top_k, len(self.classes)), dim=1)
        return [
            Prediction(tuple(self.classes[i] for i in row), tuple(p), tuple(row))
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
        trust: Your own packages whose network class the checkpoint may name.

    Raises:
        UserError: The checkpoint cannot be found or read, or the device is not available.
    """
    place = choose_device(device)
    file = resolve_checkpoint(path)
    checkpoint = read_checkpoint(file)
    check_recorded(checkpoint["config"], ["augment"], str(file))
    model = network_of(checkpoint, trust).to(place).eval()
    preprocess = Preprocessing(checkpoint["preprocessing"], checkpoint["config"]["augment"])
    classes, splits = tuple(checkpoint["classes"]), checkpoint.get("splits")
    at_chance = checkpoint.get("at_chance")
    return LoadedClassifier(model, classes, preprocess, checkpoint["config"], file, place, splits, at_chance)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; 'auto' prefers a GPU.

    Raises:
        UserError: It is not available.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    # Lightning's word, which trainer.accelerator takes.
    name = name.replace("gpu", "cuda")
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    kind, _, index = name.partition(":")
    known = here.get(kind, False) and (not index or (kind == "cuda" and index.isdigit()))
    if not known or (index and int(index) >= torch.cuda.device_count()):
        raise UserError(f"device={name} is not available: set device=cpu, or device=auto.")
    return torch.device(name)


def resolve_checkpoint(source: str | os.PathLike[str]) -> Path:
    """Return the checkpoint file of a path, a run directory or a W&B artifact.

    Raises:
        UserError: There is none.
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
    """Download the checkpoint of a W&B artifact; wandb caches it."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"{name} is a W&B artifact, but wandb is not installed: pip install wandb."
        ) from error
    try:
        folder = Path(wandb.Api(timeout=20).artifact(name, type="model").download())
    except (wandb.errors.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The W&B artifact {name} could not be downloaded ({reason}): check the network and `wandb login`, or use "
            "a checkpoint file."
        ) from error
    files = sorted(folder.glob("*.ckpt"))
    if not files:
        raise UserError(
            f"The W&B artifact {name} contains no .ckpt file: log one with logger.wandb.log_model=true."
        )
    return files[0]


# --------------------------------------------------------------------------------------------------- images


def as_list(images: Any) -> list[ImageLike]:
    """Split the input of `predict` into single images; lists may be nested."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return [single for image in images for single in as_list(image)]
    return list(images) if isinstance(images, Tensor | np.ndarray) and images.ndim == 4 else [images]


def read_image(image: ImageLike) -> Tensor:
    """Convert an image in memory to uint8 (1 or 3, H, W).

    Raises:
        UserError: It is not a valid image, or cannot be decoded.
    """
    if isinstance(image, Image.Image):
        return from_pil(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"{type(image).__name__} is not an image: pass paths, PIL images, arrays or tensors.")
    # Checked before conversion, which fails for some NumPy dtypes.
    is_array = not isinstance(image, Tensor)
    channels = 1 if image.ndim == 2 else image.shape[-1 if is_array else 0] if image.ndim == 3 else 0
    if str(image.dtype) not in ("uint8", "torch.uint8") or channels not in (1, 3) or 0 in image.shape:
        raise UserError(
            "An image must be uint8: an array (H, W) or (H, W, 3), or a tensor (C, H, W); this one is "
            f"{'an array ' if is_array else ''}{tuple(image.shape)} of {image.dtype}."
        )
    # A copy, since from_numpy rejects negative strides (a flipped view) and warns of read-only arrays.
    planes = image.cpu() if isinstance(image, Tensor) else torch.from_numpy(image.copy())
    if planes.ndim == 2:
        return planes[None]
    return planes.permute(2, 0, 1).contiguous() if is_array else planes


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Convert uint8 (1 or 3, H, W) to (channels, H, W): grey is repeated, colour becomes luma."""
    if len(image) == channels:
        return image
    return image.repeat(3, 1, 1) if channels == 3 else luma(image)
