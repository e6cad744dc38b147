"""What happens to a batch on the device, from stored uint8 images to what the network reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from alexnet_exp.data.augment.colour import colour_shift, with_contrast
from alexnet_exp.data.augment.geometry import Augment, Erasing, Preprocess, Window, random_boxes, resized_crop
from alexnet_exp.data.augment.mixing import Mixer, Mixing
from alexnet_exp.data.augment.policies import ColourJitter, RandAugment, TrivialAugment, build_policy
from alexnet_exp.data.randomness import constant, uniforms
from alexnet_exp.errors import UserError


@dataclass
class Pipeline:
    """Augmentation of training batches, and the fixed preparation of all others.

    Args:
        preprocess: Centre, size, normalisation.
        options: Keys of conf/augment.
        mean_image: (C, S, S) float32 mean of the training images as stored, in 0..255; None without `mean_image`.
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
                "augment.colour_jitter: saturation and hue need three channels: say data.channels=3 or leave them out."
            )
        if get("resized_crop") and self.aligned:
            raise UserError(
                "augment.mean_image=aligned has no meaning with augment.resized_crop: say centre or none."
            )

    @property
    def aligned(self) -> bool:
        return self.options.get("mean_image") == "aligned"

    def train(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Augment and prepare a training batch.

        Args:
            images: (N, C, S, S) uint8 as stored.
            indices: (N,) int64 positions in the split: what each image's randomness depends on.
            seed: Of the run.
            epoch: Finished epochs.

        Returns:
            (N, C, image_size, image_size) float32.
        """
        mean = self._mean_on(images)
        if self.options.get("views") == "ten_crop":
            self._room(images)  # said now, not after the training
        if self.options.get("resized_crop"):
            x = self._recoloured(self._resized(images, indices, seed, epoch), indices, seed, epoch)
            x = self.preprocess.finish(x, None if mean is None else self._mean_at_input_size(mean))
        else:
            window = self.augment.window(indices, images.shape[-1], seed, epoch)
            x, mean = self._windowed(images, mean, window)
            x = self.preprocess.finish(self._recoloured(x, indices, seed, epoch), mean)
        x = self._coloured(x, indices, seed, epoch)
        if contrast := self.options.get("contrast"):
            x = with_contrast(x, indices, contrast, seed, epoch)
        x = self._whitened(x)
        if self.erasing is not None:
            x = self.erasing(x, indices, seed, epoch)
        mixing = self.mixing(indices, seed, epoch)
        return x if mixing is None else mixing.apply(x)

    def mixing(self, indices: Tensor, seed: int, epoch: int) -> Mixing | None:
        """Return how `train` mixes the batch of these indices (N,), for its labels; None if it does not."""
        return None if self.mixer is None else self.mixer.draw(indices, seed, epoch)

    def evaluate(self, images: Tensor) -> Tensor:
        """Prepare a batch without chance: (N, C, S, S) uint8 to (N, C, image_size, image_size) float32."""
        return self._whitened(self.preprocess(images, self._mean_on(images)))

    def views(self, images: Tensor, views: str) -> Tensor:
        """Prepare every test view of a batch.

        Args:
            images: (N, C, S, S) uint8.
            views: 'centre', 'flip' (centre and its mirror image), 'flip_translate' (these, and moved by one pixel up
                left and down right, the border reflected: cifar10-airbench's six views, which weighs the unmoved ones
                twice) or 'ten_crop' (corners and centre, and mirror images).

        Returns:
            (N, C, s, s) for the centre alone, else (N, V, C, s, s) float32.
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
        return torch.stack([self._whitened(x) for x in self._ten_crops(images)], dim=1)

    def _ten_crops(self, images: Tensor) -> list[Tensor]:
        mean, room = self._mean_on(images), self._room(images)
        middle = round(room / 2)
        corners = [(0, 0), (0, room), (room, 0), (room, room), (middle, middle)]
        crops = []
        for mirrored in (False, True):
            for corner in corners:
                offsets = torch.tensor([corner], device=images.device).expand(len(images), 2)
                mirror = torch.full((len(images),), mirrored, device=images.device)
                window = Window(offsets, self.preprocess.image_size, mirror)
                crops.append(self.preprocess.finish(*self._windowed(images, mean, window)))
        return crops

    def _room(self, images: Tensor) -> int:
        """Return how many pixels a view can move."""
        stored, size = images.shape[-1], self.preprocess.image_size
        if stored < size:
            raise UserError(
                f"augment.views=ten_crop needs stored images no smaller than the input: they have {stored} pixels, "
                f"the input {size}; say augment.views=centre or, for a folder, data.stored_size={size * 8 // 7}."
            )
        return stored - size

    def _windowed(
        self, images: Tensor, mean: Tensor | None, window: Window | None
    ) -> tuple[Tensor, Tensor | None]:
        """Cut images, and the mean image so that it fits them."""
        if window is None:
            return self.preprocess.centre(images), None if mean is None else self.preprocess.centre(
                mean[None]
            )
        if mean is not None and self.aligned:
            mean = window.cut(mean.expand(len(images), -1, -1, -1))
        elif mean is not None:
            mean = self.preprocess.centre(mean[None])
        return window.cut(images), mean

    def _recoloured(self, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Apply policy and colour jitter, which work on uint8."""
        if self.recolour:
            x = x if x.dtype == torch.uint8 else x.round().to(torch.uint8)
            for change in self.recolour:
                x = change(x, indices, seed, epoch)
        return x

    def _mean_at_input_size(self, mean: Tensor) -> Tensor:
        size = self.preprocess.image_size
        mean = self.preprocess.centre(mean[None])
        return mean if mean.shape[-1] == size else functional.interpolate(mean, (size, size), mode="bilinear")

    def _resized(self, images: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        chosen = self.options["resized_crop"]
        corner, size = random_boxes(indices, chosen["scale"], chosen["ratio"], seed, epoch)
        draws = uniforms(indices, 3, "augment", seed, epoch)[:, 2]
        mirrored = self.augment.mirrored(indices, draws, seed, epoch)
        return resized_crop(images, corner, size, self.preprocess.image_size, mirrored)

    def _coloured(self, x: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        form, until = self.options.get("colour_noise") or "none", self.options.get("colour_noise_epochs")
        if form == "none" or (until is not None and epoch >= until):
            return x
        if x.shape[1] != 3:
            raise UserError(
                "augment.colour_noise needs three channels: say data.channels=3 or augment.colour_noise=none."
            )
        std = constant(tuple(self.preprocess.std), x.device).view(1, 3, 1, 1)
        x = x + colour_shift(indices, form, seed, epoch) / std
        return x / 1.1 if form == "source" else x  # the code divides by 1 + coefficient, the paper does not

    def _whitened(self, x: Tensor) -> Tensor:
        """Give each image mean 0 and variance 1, as tf.image.per_image_standardization."""
        if not self.options.get("whiten"):
            return x
        flat = x.flatten(1)
        least = flat.shape[1] ** -0.5  # an image of one colour has no variance
        mean, std = flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0).clamp(min=least)
        return ((flat - mean) / std).view_as(x)

    def _mean_on(self, images: Tensor) -> Tensor | None:
        if self.mean_image is not None and self.mean_image.device != images.device:
            self.mean_image = self.mean_image.to(images.device)
        return self.mean_image
