"""The data flow of a batch on the device, from stored uint8 images to network input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.augment.colour import colour_shift, scale_contrast
from alexnet_exp.data.augment.geometry import Augment, Erasing, Preprocess, Window, random_boxes, resized_crop
from alexnet_exp.data.augment.mixing import Mixer, Mixing
from alexnet_exp.data.augment.policies import ColourJitter, RandAugment, TrivialAugment, build_policy
from alexnet_exp.data.randomness import constant, uniforms
from alexnet_exp.errors import UserError


@dataclass
class Pipeline:
    """Augmentation of training batches, and deterministic preprocessing of all others.

    Args:
        preprocess: Center crop, resize and normalisation.
        options: Keys of conf/augment.
        mean_image: (C, S, S) float32 mean of the stored training images in 0..255; None if `mean_image` is none.
    """

    preprocess: Preprocess
    options: Mapping[str, Any]
    mean_image: Tensor | None = None
    augment: Augment = field(init=False)
    recolour: list[RandAugment | TrivialAugment | ColourJitter] = field(init=False)
    erasing: Erasing | None = field(init=False)
    mixer: Mixer | None = field(init=False)

    def __post_init__(self) -> None:
        get, size = self.options.get, self.preprocess.image_size
        self.augment = Augment(get("flip") or False, int(get("pad") or 0), bool(get("crop")), size)
        policy, jitter, erasing = build_policy(self.options), get("colour_jitter"), get("erasing")
        mixup, cutmix = get("mixup") or 0.0, get("cutmix") or 0.0
        self.recolour = [*([policy] if policy else []), *([ColourJitter(**jitter)] if jitter else [])]
        self.erasing = Erasing(**erasing) if erasing else None
        self.mixer = Mixer(mixup, cutmix, size) if mixup or cutmix else None
        if jitter and len(self.preprocess.mean) == 1 and (jitter.get("saturation") or jitter.get("hue")):
            raise UserError(
                "augment.colour_jitter: saturation and hue need three channels; set data.channels=3 or leave them out."
            )
        if get("resized_crop") and self.aligned:
            raise UserError(
                "augment.mean_image=aligned does not work with augment.resized_crop: use centre or none."
            )

    @property
    def aligned(self) -> bool:
        return self.options.get("mean_image") == "aligned"

    def train(
        self, images: Tensor, indices: Tensor, seed: int, epoch: int, aspects: Tensor | None = None
    ) -> Tensor:
        """Augment and preprocess a training batch.

        Args:
            images: (N, C, S, S) uint8 as stored.
            indices: (N,) int64 positions in the split, the key of each image's randomness.
            seed: Seed of the run.
            epoch: Finished epochs.
            aspects: (N,) width over height of the original images, where the stored ones are these squashed.

        Returns:
            (N, C, image_size, image_size) float32.
        """
        mean = self._mean_on(images)
        if self.options.get("views") == "ten_crop":
            self._margin(images)  # fail in the first step, not at the test after the training
        if self.options.get("resized_crop"):
            x = self._resized_crop(images, indices, seed, epoch, aspects)
            mean = None if mean is None else self._mean_at_input_size(mean)
        else:
            x, mean = self._cut(images, mean, self.augment.window(indices, images.shape[-1], seed, epoch))
        if self.recolour:  # policies and jitter work on uint8
            x = x if x.dtype == torch.uint8 else x.round().to(torch.uint8)
            for change in self.recolour:
                x = change(x, indices, seed, epoch)
        x = self.preprocess.finish(x, mean)
        x = self._add_colour_noise(x, indices, seed, epoch)
        if contrast := self.options.get("contrast"):
            x = scale_contrast(x, indices, contrast, seed, epoch)
        x = self._whiten(x)
        if self.erasing is not None:
            x = self.erasing(x, indices, seed, epoch)
        # Last, so that the partner is mixed in as augmented as the image itself.
        mixing = self.mixing(indices, seed, epoch)
        return x if mixing is None else mixing.apply(x)

    def mixing(self, indices: Tensor, seed: int, epoch: int) -> Mixing | None:
        """Return how `train` mixes a batch with these indices (N,), for mixing the labels; None without mixing."""
        return None if self.mixer is None else self.mixer.draw(indices, seed, epoch)

    def evaluate(self, images: Tensor) -> Tensor:
        """Preprocess without augmentation: (N, C, S, S) uint8 to (N, C, image_size, image_size) float32."""
        return self._whiten(self.preprocess(images, self._mean_on(images)))

    def views(self, images: Tensor, views: str) -> Tensor:
        """Preprocess every test-time view of a batch.

        Args:
            images: (N, C, S, S) uint8.
            views: 'centre' (center crop), 'flip' (and its horizontal flip), 'flip_translate' (both, and both shifted
                by one pixel up-left and down-right with reflection padding: the six views of cifar10-airbench, which
                weights the unshifted ones double) or 'ten_crop' (four corners and center, and their flips).

        Returns:
            (N, C, s, s) float32 for 'centre', else (N, V, C, s, s).
        """
        if views == "centre":
            return self.evaluate(images)
        if views == "flip":
            x = self.evaluate(images)
            return torch.stack([x, x.flip(3)], dim=1)
        if views == "flip_translate":
            x = self.evaluate(images)
            wide = functional.pad(x, (1, 1, 1, 1), mode="reflect")
            moved = [x, wide[:, :, :-2, :-2], wide[:, :, 2:, 2:]]
            return torch.stack([*moved, *(view.flip(3) for view in moved)], dim=1)
        return torch.stack([self._whiten(x) for x in self._ten_crops(images)], dim=1)

    def check_views(self, views: str, stored: int) -> None:
        """Check that stored images of this side, in pixels, have these views.

        Raises:
            UserError: Ten-crop needs images of at least the input's size.
        """
        if views == "ten_crop" and stored < (size := self.preprocess.image_size):
            raise UserError(
                f"views=ten_crop needs images of at least the network's {size} pixels, but these have {stored}: "
                "use views=flip or views=centre."
            )

    def _ten_crops(self, images: Tensor) -> list[Tensor]:
        mean, margin = self._mean_on(images), self._margin(images)
        # Rounded as in `Preprocess.centre`: the middle crop is the view of views=centre.
        middle = round(margin / 2)
        corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)]
        crops = []
        for flip, corner in product((False, True), corners):
            offsets = torch.tensor([corner], device=images.device).expand(len(images), 2)
            flipped = torch.full((len(images),), flip, device=images.device)
            window = Window(offsets, self.preprocess.image_size, flipped)
            crops.append(self.preprocess.finish(*self._cut(images, mean, window)))
        return crops

    def _margin(self, images: Tensor) -> int:
        """Return by how many pixels a crop of the input size can move in the stored images."""
        stored, size = images.shape[-1], self.preprocess.image_size
        if stored < size:
            raise UserError(
                "augment.views=ten_crop needs stored images at least as large as the input: they have "
                f"{stored} pixels, the input {size}; set augment.views=centre or, for a folder, "
                f"data.stored_size={size * 8 // 7}."
            )
        return stored - size

    def _cut(
        self, images: Tensor, mean: Tensor | None, window: Window | None
    ) -> tuple[Tensor, Tensor | None]:
        """Crop the images, and the mean image to match: per image if aligned, else its center."""
        if mean is not None and window is not None and self.aligned:
            mean = window.cut(mean.expand(len(images), -1, -1, -1))
        elif mean is not None:
            mean = self.preprocess.centre(mean[None])
        return self.preprocess.centre(images) if window is None else window.cut(images), mean

    def _mean_at_input_size(self, mean: Tensor) -> Tensor:
        size = self.preprocess.image_size
        mean = self.preprocess.centre(mean[None])
        return mean if mean.shape[-1] == size else functional.interpolate(mean, (size, size), mode="bilinear")

    def _resized_crop(
        self, images: Tensor, indices: Tensor, seed: int, epoch: int, aspects: Tensor | None
    ) -> Tensor:
        options = self.options["resized_crop"]
        corner, size = random_boxes(indices, options["scale"], options["ratio"], seed, epoch, aspects)
        draws = uniforms(indices, 3, "augment", seed, epoch)[:, 2]  # the same flips as with a plain crop
        flipped = self.augment.flips(indices, draws, seed, epoch)
        return resized_crop(images, corner, size, self.preprocess.image_size, flipped)

    def _add_colour_noise(self, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        form, until = self.options.get("colour_noise") or "none", self.options.get("colour_noise_epochs")
        if form == "none" or (until is not None and epoch >= until):
            return x
        if x.shape[1] != 3:
            raise UserError(
                "augment.colour_noise needs three channels: set data.channels=3 or augment.colour_noise=none."
            )
        std = constant(tuple(self.preprocess.std), x.device).view(1, 3, 1, 1)
        x = x + colour_shift(indices, form, seed, epoch) / std  # the images are already normalised
        return x / 1.1 if form == "source" else x  # the code divides by 1 + coefficient, the paper does not

    def _whiten(self, x: Tensor) -> Tensor:
        """Standardise each image to mean 0 and variance 1, as tf.image.per_image_standardization."""
        if not self.options.get("whiten"):
            return x
        flat = x.flatten(1)
        least = flat.shape[1] ** -0.5  # a constant image has variance 0
        mean, std = flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0).clamp(min=least)
        return ((flat - mean) / std).view_as(x)

    def _mean_on(self, images: Tensor) -> Tensor | None:
        if self.mean_image is not None and self.mean_image.device != images.device:
            self.mean_image = self.mean_image.to(images.device)
        return self.mean_image
