"""Evaluate checkpoints on a split, with the same module, loader and arithmetic as the test of a training run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor

from alexnet_exp.data.loaders import Batch
from alexnet_exp.data.module import ImageData
from alexnet_exp.errors import UserError, printable
from alexnet_exp.models.layers.compiler import missing_compiler
from alexnet_exp.runs.evaluate.data import (
    check_images,
    choose_split,
    image_names,
    is_own_data,
    open_data,
    warn_of_changes,
)
from alexnet_exp.runs.evaluate.scores import TOP, Table, calibration_error, ensemble
from alexnet_exp.runs.evaluate.settings import Evaluate
from alexnet_exp.tracking.log import quiet_lightning
from alexnet_exp.training.automatic import compile_network, use_fast_matmul
from alexnet_exp.training.callbacks.progress import Bar
from alexnet_exp.training.checkpoint.identity import match_classes
from alexnet_exp.training.checkpoint.read import read_checkpoint
from alexnet_exp.training.checkpoint.start import network_of
from alexnet_exp.training.classifier import ImageClassifier
from alexnet_exp.training.lightning_internals import leave_signals_to_us


class Recorder(ImageClassifier):
    """Tests as a training run does, and keeps the predictions for every image.

    Args:
        whole: Keep the probabilities of all classes.
        arguments: See `ImageClassifier`.
    """

    def __init__(self, *arguments: Any, whole: bool = False, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.whole = whole
        self.metrics: dict[str, float] = {}
        self.parts: list[tuple[Tensor, ...]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self._evaluate("test", batch)
        probabilities = logits.softmax(1)
        values, classes = probabilities.topk(min(TOP, logits.shape[1]), dim=1)
        part = (batch.indices[: batch.size], batch.labels[: batch.size], classes, values)
        # All classes of all images may not fit on the device; the top five do.
        self.parts.append((*part, probabilities.cpu()) if self.whole else part)

    def on_test_epoch_end(self) -> None:
        self.metrics = self.test_meter.compute()

    def table(self) -> Table:
        """Gather the predictions of all ranks, in split order; every rank must call it."""
        # Objects rather than tensors: the ranks have different numbers of images, which all_gather does not take.
        columns = [torch.cat(column).cpu().numpy() for column in zip(*self.parts, strict=True)]
        ranks = [columns]
        if self.trainer.world_size > 1:
            ranks = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(ranks, columns)
        indices, labels, top, values, *whole = (np.concatenate(column) for column in zip(*ranks, strict=True))
        order = np.argsort(indices)
        values = values[order].astype(np.float64)  # sums over many images need more than float32
        return Table(labels[order], top[order], values, whole[0][order] if whole else None)


@dataclass
class Member:
    """A checkpoint with the images it is evaluated on."""

    path: Path
    checkpoint: dict[str, Any]
    data: ImageData
    split: str

    @property
    def classes(self) -> list[str]:
        return list(self.checkpoint["classes"])

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint["config"]


@dataclass
class Outcome:
    """Result of an evaluation.

    Args:
        members: Metrics of each checkpoint.
        metrics: Of the only checkpoint, or of the ensemble.
        table: Predictions of the only checkpoint, or of the ensemble.
        names: Of the images.
        images_per_second: Over all members, including data loading.
        device: The device used.
    """

    members: list[dict[str, float]]
    metrics: dict[str, float]
    table: Table
    names: list[str]
    images_per_second: float
    device: str


def open_members(paths: list[str], settings: Evaluate) -> list[Member]:
    """Read checkpoints and the images that they are evaluated on.

    Raises:
        UserError: If a checkpoint or the images cannot be read, or do not match.
    """
    quiet_lightning()
    opened: dict[str, dict[str, Any]] = {}
    members: list[Member] = []
    for path in paths:
        checkpoint = read_checkpoint(path)
        # Drop the optimizer state, which is up to twice the size of the weights; W&B needs the step.
        keys = ("config", "preprocessing", "classes", "state_dict", "splits", "global_step", "at_chance")
        checkpoint = {"global_step": 0} | {k: checkpoint[k] for k in keys if k in checkpoint}
        data = open_data(checkpoint, settings, opened)
        split = choose_split(data, settings.split)
        check_images(data, split)
        warn_of_changes(checkpoint, Path(path), data, split)
        members.append(Member(Path(path), checkpoint, data, split))
    _check_unseen(members, settings.data)
    for member in members[1:]:
        _check_same_images(members[0], member)
    return members


def _check_unseen(members: list[Member], typed: Mapping[str, Any]) -> None:
    """Check that no member of an ensemble of folds was trained on the images it is scored on.

    Raises:
        UserError: Names the member that was.
    """
    first = members[0]
    if len(members) == 1 or first.split == "test":
        return
    # Members see the same images, so an image trained on by one inflates the score of the ensemble.
    scored = set(image_names(first.data, first.split))
    cut = first.split == "train" or first.data.origins[first.split].startswith("cut from train")
    recut = {"folds", "fold", "groups", "val_seed"} & set(typed)  # hides which images a member was trained on
    for member in members:
        data = member.config["data"]
        if not data.get("folds") or not is_own_data(data, typed):
            continue
        trained = member.data.sources.get("train")
        if (recut and cut) or (trained and not scored.isdisjoint(image_names(member.data, "train"))):
            raise UserError(
                f"{member.path} was trained on some of these {first.split} images (data.folds={data['folds']} "
                f"data.fold={data['fold']}): evaluate an ensemble of folds on split=test or other data, or see "
                "alexnet-exp compare for their out-of-fold accuracy."
            )


def _check_same_images(first: Member, other: Member) -> None:
    if sorted(first.classes) != sorted(other.classes):
        raise UserError(
            f"{other.path} has other classes ({', '.join(other.classes)}) than {first.path} "
            f"({', '.join(first.classes)}): the members of an ensemble need the same classes."
        )
    names = [m.data.sources[m.split].name for m in (first, other)]
    images = [image_names(m.data, m.split) for m in (first, other)]
    if first.split != other.split or names[0] != names[1] or images[0] != images[1]:
        raise UserError(
            f"{other.path} and {first.path} have different {first.split} images: choose with data=NAME or split=NAME."
        )


def evaluate_all(members: list[Member], settings: Evaluate, console: Console) -> Outcome:
    """Run every member on every image; every rank must call it.

    Raises:
        UserError: If the device or precision is not supported, or a network's output is not finite.
    """
    tables, scores, started = [], [], time.perf_counter()
    for number, member in enumerate(members, start=1):
        if len(members) > 1:
            name = printable(str(member.path))
            console.print(f"network {number} of {len(members)}: {name}", highlight=False, markup=False)
        recorder, device = _test(member, settings, console, whole=len(members) > 1)
        table = _reorder_classes(recorder.table(), member.classes, members[0].classes)
        if not np.isfinite(recorder.metrics["loss"]):
            raise UserError(f"{member.path}: the network's output is not finite; its training diverged.")
        tables.append(table)
        scores.append({**recorder.metrics, "ece": calibration_error(table)})
    seconds = time.perf_counter() - started
    table, metrics = tables[0], scores[0]
    if len(members) > 1:
        table, metrics = ensemble(tables)
        metrics["ece"] = calibration_error(table)
    names = image_names(members[0].data, members[0].split)
    return Outcome(scores, metrics, table, names, len(table) * len(members) / seconds, device)


def _reorder_classes(table: Table, classes: list[str], wanted: list[str]) -> Table:
    """Renumber the classes of a table to the order of `wanted`."""
    if classes == wanted:
        return table
    numbers = np.array(match_classes(classes, wanted))
    whole = None if table.whole is None else table.whole[:, np.argsort(numbers)]
    return Table(numbers[table.labels], numbers[table.top], table.probabilities, whole)


def _test(member: Member, settings: Evaluate, console: Console, whole: bool) -> tuple[Recorder, str]:
    config, data = member.config, member.data
    model = network_of(member.checkpoint, settings.trust)
    channels_last = bool(config.get("channels_last"))
    recorder = Recorder(model, member.classes, config["optimizer"], channels_last=channels_last, whole=whole)
    trainer = _trainer(config["trainer"], settings, console)
    device = trainer.strategy.root_device
    if settings.compile is None and missing_compiler(device.type) is None:
        compile_network(model, config["compile"])
    use_fast_matmul(device)
    # The test loop is used for every split, since only it applies the test-time views.
    data.test_split = member.split
    trainer.test(recorder, datamodule=data, verbose=False)
    return recorder, str(device)


def _trainer(trained: Mapping[str, Any], settings: Evaluate, console: Console) -> lightning.Trainer:
    try:
        trainer = lightning.Trainer(
            accelerator=settings.device,
            devices=settings.devices,
            strategy="ddp" if settings.devices > 1 else "auto",
            precision=settings.precision or trained["precision"],
            deterministic=trained["deterministic"],
            benchmark=trained["benchmark"],
            callbacks=[Bar(console)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            # Lightning's sampler pads, and would count some images twice.
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"device={settings.device} devices={settings.devices}: {' '.join(str(error).split())}"
        ) from error
    leave_signals_to_us(trainer)
    return trainer
