"""Hold out a share of every class of an image folder for validation: data.val_fraction and data.split_rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from alexnet_exp.data.sources import FileSource, validation_by_class, validation_by_name
from alexnet_exp.errors import UserError, printable


def hold_out(
    sources: Mapping[str, FileSource], fraction: float, seed: int, rule: str
) -> dict[str, FileSource]:
    """Move a share of the training images to "val", never a class's last image.

    Args:
        sources: With "train", without "val".
        fraction: In (0, 1).
        seed: data.val_seed.
        rule: data.split_rule.

    Raises:
        UserError: If that leaves no validation images.
    """
    whole = sources["train"]
    names = whole.names()
    if names is None:
        chosen, how = _validation_by_order(whole.labels, fraction, seed), "by order"
    elif rule == "by_name":
        chosen, how = validation_by_name(whole.labels, names, fraction, seed), "by file name"
    else:
        chosen, how = validation_by_class(whole.labels, names, fraction, seed), "of every class"
    if not chosen.any():
        if rule == "stratified":
            raise UserError(
                f"No class of {whole.root} has two images, so none can be held out for validation: add images."
            )
        raise UserError(
            f"data.val_fraction={fraction} leaves no image of {whole.root} for validation: raise it."
        )
    train, val = whole.subset(torch.nonzero(~chosen).flatten()), whole.subset(torch.nonzero(chosen).flatten())
    cut = f"cut from train: val_fraction={fraction} {how}, val_seed={seed}"
    name = f"{whole.name.removesuffix('train')}val"
    return {
        **sources,
        "train": replace(train, origin=f"{whole.origin} without val"),
        "val": replace(val, name=name, origin=cut),
    }


def describe_automatic(root: str, sources: Mapping[str, FileSource], fraction: float, rule: str) -> str:
    """Return the sentence about a validation split that nobody asked for.

    Args:
        root: data.root.
        sources: As `hold_out` returned them.
        fraction: As passed to it.
        rule: As passed to it.
    """
    num_val, total = len(sources["val"]), len(sources["val"]) + len(sources["train"])
    num_classes, validated = len(sources["val"].classes), len(sources["val"].labels.unique())
    stratified = rule == "stratified"
    alone = "; a class with one image keeps it for training" if stratified and validated < num_classes else ""
    whole = f"each of its {num_classes:,} classes" if stratified else f"its {num_classes:,} classes"
    return (
        f"{printable(root)} has no val folder: {100 * fraction:g} % of {whole} ({num_val:,} of {total:,} images) are "
        f"held out for validation{alone}. Set data.val_fraction to change the share."
    )


def _validation_by_order(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Return a mask, bool (N,), of the same random share of every class, never a class's last image."""
    # One stream for all classes: an added file redraws every later class. Rules that use names avoid that.
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: min(round(len(members) * fraction), len(members) - 1)]]] = True
    return chosen
