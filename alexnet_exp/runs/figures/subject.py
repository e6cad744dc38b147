"""The input of all figures: a network, its data set, and a sample of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from alexnet_exp.data.loaders import Batch
from alexnet_exp.data.module import ImageData
from alexnet_exp.inference import choose_device, resolve_checkpoint
from alexnet_exp.runs.evaluate.data import check_images, choose_split, open_data, warn_of_changes
from alexnet_exp.runs.figures.draw import Guess, Picture
from alexnet_exp.runs.figures.settings import Figures
from alexnet_exp.training.checkpoint.read import read_checkpoint
from alexnet_exp.training.checkpoint.start import network_of

TOP = 5


class LeftOutError(Exception):
    """Raised with the reason when a figure does not apply to a network."""


@dataclass(eq=False)
class Subject:
    """A network and its images, which are read only when a figure needs them.

    Args:
        path: The checkpoint.
        checkpoint: Its content.
        network: In evaluation mode, on `device`.
        device: Where the network runs.
        settings: Of the verb.
    """

    path: Path
    checkpoint: dict[str, Any]
    network: nn.Module
    device: torch.device
    settings: Figures

    @property
    def classes(self) -> list[str]:
        return list(self.checkpoint["classes"])

    @cached_property
    def data(self) -> ImageData:
        return open_data(self.checkpoint, self.settings, {})

    @property
    def has_read_data(self) -> bool:
        """Whether a figure has used `data`: cached_property stores it in the instance on first use."""
        return "data" in self.__dict__

    @cached_property
    def split(self) -> str:
        split = choose_split(self.data, self.settings.split)
        check_images(self.data, split)
        warn_of_changes(self.checkpoint, self.path, self.data, split)
        return split

    @cached_property
    def sample(self) -> list[int]:
        """Positions of the sampled images in the split, ascending."""
        count = len(self.data.sources[self.split])
        generator = np.random.default_rng(self.settings.seed)
        chosen = generator.choice(count, size=min(self.settings.sample, count), replace=False)
        return sorted(chosen.tolist())

    @cached_property
    def inputs(self) -> Tensor:
        """Preprocessed sampled images, (N, C, H, W) float32."""
        stored = torch.stack([self.data.stored_image(self.split, i) for i in self.sample])
        return self.prepared(stored)

    @cached_property
    def probabilities(self) -> Tensor:
        """Probabilities of the sampled images, (N, K)."""
        return self.predict(self.inputs)

    def prepared(self, stored: Tensor) -> Tensor:
        """Preprocess stored images (N, C, S, S) uint8 for the network."""
        return self.data.pipeline.evaluate(stored.to(self.device))

    def predict(self, x: Tensor) -> Tensor:
        """Map preprocessed images to probabilities (N, K) float32 on CPU."""
        with torch.inference_mode():
            return self.network(x).float().softmax(1).cpu()

    def batches(self, split: str, title: str) -> Iterator[Batch]:
        """Yield the stored images of a split in the loader's order, with a progress bar on a terminal."""
        screen = Console(stderr=True)
        try:
            loader = self.data.loader(split)
            yield from track(loader, title, console=screen, transient=True, disable=not screen.is_terminal)
        finally:
            self.data.teardown()

    def picture(self, index: int, split: str | None = None, seen: bool = False) -> Picture:
        """Return an image of a split as stored or, with `seen`, the crop that the network sees."""
        split = split or self.split
        source, image = self.data.sources[split], self.data.stored_image(split, index)
        if seen:
            image = self.data.preprocess.centre(image[None])[0]
        pixels = image.permute(1, 2, 0).cpu().numpy()
        return Picture(pixels, self.classes[int(source.labels[index])], source.image_name(index))

    def guess(self, index: int, probabilities: Tensor) -> Guess:
        """Return an image of the split with its top five of probabilities (K,)."""
        values, labels = probabilities.topk(min(TOP, len(self.classes)))
        bars = [(self.classes[i], p) for i, p in zip(labels.tolist(), values.tolist(), strict=True)]
        return Guess(self.picture(index), bars)


def open_subject(settings: Figures) -> Subject:
    """Load the checkpoint named in the settings.

    Raises:
        UserError: It cannot be found or read, or the device is not available.
    """
    device = choose_device(settings.device)
    path = resolve_checkpoint(settings.ckpt)
    checkpoint = read_checkpoint(path)
    # Without the optimizer's state, which can be twice as large as the weights.
    checkpoint = {
        k: checkpoint.get(k) for k in ("config", "preprocessing", "classes", "state_dict", "splits")
    }
    network = network_of(checkpoint, settings.trust).to(device).eval()
    return Subject(path, checkpoint, network, device, settings)
