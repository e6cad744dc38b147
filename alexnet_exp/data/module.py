"""The LightningDataModule behind every data set: splits, loaders, augmentation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import lightning
import torch

from alexnet_exp import cores
from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.decode import FITS, WHOLE, read_stored, read_with_aspect
from alexnet_exp.data.folds import fold_of_each
from alexnet_exp.data.identity import Identity, facts, identify_ahead, lines, missing
from alexnet_exp.data.loaders import ArrayLoader, Batch, BatchPlan, FileLoader, Loader, choose_place, share
from alexnet_exp.data.randomness import EpochUniforms
from alexnet_exp.data.sources import (
    RULES,
    ArraySource,
    FileSource,
    check_count,
    even_subset,
    split_validation,
    spread_order,
)
from alexnet_exp.errors import UserError

log = logging.getLogger(__name__)
Source = ArraySource | FileSource
SPLITS = ("train", "val", "test")
_FEW_VAL_IMAGES = 30  # one of them is more than three points of accuracy
MEAN_IMAGES = 50_000


class ImageData(lightning.LightningDataModule):
    """Training, validation and test images of one data set.

    Args:
        batch_size: Global batch size, over all devices.
        image_size: Side of the network's input, in pixels.
        mean: Per channel, of pixels in 0..1; three values are averaged for one channel.
        std: Per channel.
        channels: 1 or 3.
        augment: Keys of conf/augment.
        seed: Seeds sampling order and augmentation.
        val_size: Number of training images to hold out for validation.
        val_split: 'random' (stratified) or 'last'.
        val_seed: Selects the validation images.
        train_subset: Train on N images only; validation images come from the rest. Files that are split by name keep
            an even share of every class, other data the first N.
        test_subset: Test on N images only, chosen the same way.
        subset_seed: Selects the subset of files that are split by name; None: val_seed.
        split_rule: How files are split: 'stratified', 'by_name', or 'by_order' for runs that predate the setting
            (data/sources.py, data/datasets/holdout.py).
        stored_size: Side of decoded image files, in pixels; None: 8/7 of the input.
        fit: How image files are made square: 'crop', 'squash' or 'pad' (data/decode.py).
        num_workers: Decoding processes; None: one per core, at most 8.
        resident: Where in-memory images are kept: 'auto', 'device', 'host' or 'off' (data/loaders.py).
        folds: Number of cross-validation folds; one is held out for validation (data/folds.py).
        fold: The held-out fold, from 0.
        groups: Images that must stay in one fold: a csv file or a regular expression.
        balanced: Sample classes equally often; the length of an epoch stays the same.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 3,
        augment: Mapping[str, Any] | None = None,
        seed: int = 0,
        val_size: int = 0,
        val_split: str = "random",
        val_seed: int = 0,
        train_subset: int | None = None,
        test_subset: int | None = None,
        subset_seed: int | None = None,
        split_rule: str = "by_order",
        stored_size: int | None = None,
        num_workers: int | None = None,
        resident: str = "auto",
        balanced: bool = False,
        folds: int | None = None,
        fold: int = 0,
        groups: str | None = None,
        fit: str = "crop",
    ) -> None:
        super().__init__()
        self.batch_size, self.channels, self.seed = batch_size, channels, seed
        self.val_size, self.val_split, self.val_seed = val_size, val_split, val_seed
        self.train_subset, self.test_subset = train_subset, test_subset
        self.subset_seed = val_seed if subset_seed is None else subset_seed
        if split_rule not in RULES:
            raise UserError(f"invalid data.split_rule={split_rule}: expected one of {', '.join(RULES)}.")
        self.split_rule = split_rule
        if fit not in FITS:
            raise UserError(f"invalid data.fit={fit}: expected one of {', '.join(FITS)}.")
        self.fit = fit
        self.num_workers, self.resident, self.balanced = num_workers, resident, balanced
        if folds is not None and not 0 <= fold < folds:
            raise UserError(f"invalid data.fold={fold}: expected 0 to {folds - 1}, since data.folds={folds}.")
        self.folds, self.fold, self.groups = folds, fold, groups
        self.unused_val = 0  # images in the data set's own val split, which a held-out fold replaces
        self._place = ""  # chosen once, since the free memory it depends on changes
        self._on_device: dict[str, ArraySource] = {}
        options = dict(augment or {})
        # Random resized crops come from the whole image, evaluation from its central square.
        whole = fit == "crop" and (options.get("resized_crop") or {}).get("whole_image", False)
        self.train_fit = WHOLE if whole else fit
        crop = bool(options.get("crop") or options.get("centre_crop"))
        # As 256 is to 224 in Krizhevsky et al. 2012.
        self.stored_size = stored_size or max(image_size * 8 // 7 // 4 * 4, image_size)
        self.preprocess = Preprocess(
            image_size, _per_channel(mean, channels), _per_channel(std, channels), crop
        )
        self.pipeline = Pipeline(self.preprocess, options)
        self.views = str(options.get("views") or "centre")
        self.sources: dict[str, Source] = {}
        self.origins: dict[str, str] = {}  # per split: where it came from, and how it was split off
        # Settings that were `auto`, for the run to record; known after `setup`.
        self.chosen: dict[str, Any] = {}
        self._open: list[Loader] = []
        self.test_split = "test"

    def load(self) -> dict[str, Source]:
        """Read or download the images.

        Returns:
            'train', plus 'val' and 'test' if the data set itself has them.

        Raises:
            UserError: If they are missing and cannot be downloaded.
        """
        raise NotImplementedError

    def decoded(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Return the splits to load from; a data set of files may decode them once, here."""
        return sources

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split off validation, once for all of Lightning's stages."""
        if not self.sources:
            self.sources = self.decoded(self._cut(self.load()))
            if self.pipeline.options.get("mean_image", "none") != "none":
                self.pipeline.mean_image = self._mean_image()
        self.origins = {split: source.origin or source.name for split, source in self.sources.items()}
        if self.trainer is not None and "val" not in self.sources:
            self.trainer.limit_val_batches = 0  # Lightning warns about an empty loader

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return next(iter(self.sources.values())).classes

    @cached_property
    def identity(self) -> Callable[[], Identity]:
        """Identity of the splits (data/identity.py); computed in the background from the first access on."""
        return identify_ahead(self.sources, self.origins)

    @property
    def needs_for_validation(self) -> str:
        """How to give this data set validation images, for error messages."""
        return "set data.val_size=N"

    @property
    def needs_for_test(self) -> str:
        """How to give this data set test images, as a sentence; empty if there is no way to say."""
        return ""

    def _cut(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Apply train_subset, then hold out validation from the rest, then apply test_subset."""
        if "train" not in sources:  # a folder used for evaluation only
            return sources
        if self.folds is not None:
            sources = self._with_fold(sources)
        train = rest = sources["train"]
        if self.train_subset is not None:
            train, rest = self._subset(train, "train", self.train_subset)
            if "val" not in sources and self.val_size > len(rest):
                raise UserError(
                    f"data.val_size={self.val_size}: only {len(rest)} images are left besides the first "
                    f"{self.train_subset} (data.train_subset); use data.val_size={len(rest)} or less."
                )
        cut = dict(sources)
        if "val" not in sources and self.val_size:
            keep = 1 if self.train_subset is None else 0  # leave something to train on
            names = rest.names() if isinstance(rest, FileSource) else None
            kept, chosen = split_validation(
                rest.labels, self.val_size, self.val_split, self.val_seed, keep, names
            )
            how = "the last" if self.val_split == "last" else "at random" if names is None else "by file name"
            seed = "" if self.val_split == "last" else f", val_seed={self.val_seed}"
            origin = f"cut from train: val_size={self.val_size} {how}{seed}"
            cut["val"] = replace(rest.subset(chosen), origin=origin)
            if self.train_subset is None:
                train = replace(rest.subset(kept), origin=f"{_origin(rest)} without val")
        cut["train"] = train
        if self.test_subset is not None and "test" in cut:
            cut["test"], _ = self._subset(cut["test"], "test", self.test_subset)
        return {split: cut[split] for split in ("train", "val", "test") if split in cut}

    def _with_fold(self, sources: dict[str, Source]) -> dict[str, Source]:
        """Validate on one fold and train on the others; the data set's own val split, if any, is not used."""
        assert self.folds is not None
        whole = sources["train"]
        is_val = fold_of_each(whole, self.folds, self.val_seed, self.groups) == self.fold
        if not is_val.any() or is_val.all():
            raise UserError(
                f"data.folds={self.folds} leaves no images in fold {self.fold} or outside it: there are {len(whole)}."
            )
        by_name = isinstance(whole, FileSource) and whole.names() is not None
        how = "by group" if self.groups else "by file name" if by_name else "at random"
        cut = f"cut from train: fold {self.fold} of {self.folds} {how}, val_seed={self.val_seed}"
        self.unused_val = len(sources.get("val", ()))
        train, val = (whole.subset(torch.nonzero(part).flatten()) for part in (~is_val, is_val))
        return {
            **sources,
            "train": replace(train, origin=f"{_origin(whole)} without fold {self.fold} of {self.folds}"),
            "val": replace(val, origin=cut),
        }

    def _subset(self, source: Source, split: str, count: int) -> tuple[Source, Source]:
        """Return `count` images of a split, and the rest.

        Raises:
            UserError: If there are fewer.
        """
        names = source.names() if isinstance(source, FileSource) else None
        if names is None:
            part, how = source.first(count), "the first"
            others = torch.arange(count, len(source))
        else:
            check_count(count, len(source), source.name)
            chosen = even_subset(source.labels, names, count, self.subset_seed)
            part, how = source.subset(chosen), f"an even share of every class, subset_seed={self.subset_seed}"
            is_other = torch.ones(len(source), dtype=torch.bool)
            is_other[chosen] = False
            others = torch.nonzero(is_other).flatten()
        origin = f"{_origin(source)}, {split}_subset={count}: {how}"
        return replace(part, origin=origin), source.subset(others)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return what a run records of each split: images, classes, smallest and largest class, origin."""
        return {s: facts(source, self.origins.get(s, source.name)) for s, source in self.sources.items()}

    can_fold = True  # whether `folds` is supported

    def tell(self, say: Callable[[str], None]) -> None:
        """Pass one line per split to `say`, and warn about classes without images."""
        for line in lines(self.facts()):
            say(line)
        if self.unused_val:
            num, fold = self.unused_val, self.fold
            say(f"Ignoring the data set's {num:,} val images: fold {fold} is used for validation.")
        num_val = len(self.sources["val"]) if "val" in self.sources else 0
        if 0 < num_val < _FEW_VAL_IMAGES and self.folds is None and self.can_fold:
            points = 100 / num_val
            say(f"val is small: one image is {points:.0f} points of accuracy. data.folds=5 validates on all.")
        for split, source in self.sources.items():
            if text := missing(split, source):
                log.warning(text)

    def spread(self, split: str) -> torch.Tensor:
        """Return an order of a split (int64) whose first few images are representative of all."""
        return spread_order(self.sources[split].labels)

    def _mean_image(self) -> torch.Tensor:
        """Return the mean training image as stored, (C, S, S) float32, over at most MEAN_IMAGES evenly spaced ones."""
        source = self.sources["train"]
        # Evenly spaced, because files are sorted by class.
        chosen = torch.linspace(0, len(source) - 1, min(len(source), MEAN_IMAGES)).round().long()
        if isinstance(source, ArraySource):
            # In parts, because the whole split as float64 would take eight times its memory.
            total = sum(source.images[part].double().sum(0) for part in chosen.split(64))
        else:
            plan, files = BatchPlan(len(chosen), 64), source.subset(chosen)
            with closing(self._file_loader(files, plan, self.train_fit)) as loader:
                total = sum(batch.images.double().sum(0) for batch in loader)
        return (total / len(chosen)).float()

    # ---------------------------------------------------------------------------------------- loaders

    def loader(self, split: str, shuffle: bool = False, spread: bool = False) -> Loader:
        """Make the loader of a split for this process.

        Args:
            split: 'train', 'val' or 'test'.
            shuffle: Use a different order in every epoch.
            spread: Use the order of `spread`, for a loader that is not read to the end.
        """
        source = self.sources[split]
        world_size, rank = self._ranks()
        plan = BatchPlan(len(source), self.batch_size, self.seed if shuffle else None, rank, world_size)
        plan.order = self.spread(split) if spread else None
        plan.labels = source.labels if shuffle and self.balanced else None
        if isinstance(source, ArraySource):
            return self._array_loader(split, source, plan)
        fit = self.train_fit if shuffle else self.fit
        loader = self._file_loader(source, plan, fit, self._device().type == "cuda")
        # Lightning only shuts down the workers of torch's own loaders: `teardown` closes these.
        self._open.append(loader)
        return loader

    def whole_slice(self) -> int:
        """Return how many images of a full batch this rank has."""
        world_size, rank = self._ranks()
        return max(1, len(share(self.batch_size, rank, world_size)))

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _file_loader(
        self, source: FileSource, plan: BatchPlan, fit: str, pin_memory: bool = False
    ) -> FileLoader:
        return FileLoader(source, plan, self.channels, self.stored_size, self._workers(), pin_memory, fit)

    def _array_loader(self, split: str, source: ArraySource, plan: BatchPlan) -> ArrayLoader:
        device = self._device()
        place = self._place or self._choose_place(device)
        if place == "device" and split not in self._on_device:
            images, labels, aspects = (
                None if x is None else x.to(device) for x in (source.images, source.labels, source.aspects)
            )
            self._on_device[split] = replace(source, images=images, labels=labels, aspects=aspects)
        source = self._on_device.get(split, source)
        return ArrayLoader(source, plan, device if place == "host" and device.type == "cuda" else None)

    def _choose_place(self, device: torch.device) -> str:
        sources = [s for s in self.sources.values() if isinstance(s, ArraySource)]
        num_bytes = sum(s.images.numel() for s in sources)
        self._place = choose_place(self.resident, num_bytes, device)
        if self._place != "off" and self.resident == "auto":  # on CPU there is nothing to choose
            where = "on the GPU" if self._place == "device" else "in host memory and prefetched"
            log.info("The images (%.0f MB) are kept %s (data.resident=auto).", num_bytes / 1e6, where)
        return self._place

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        local = self.trainer.num_devices if self.trainer else 1
        return max(1, min(8, cores.available_cores() // local))

    def train_dataloader(self) -> Loader:
        if self.resident in ("device", "host") and isinstance(self.sources["train"], FileSource):
            log.warning("data.resident=%s has no effect without a cache: set data.cache=disk.", self.resident)
        loader = self.loader("train", shuffle=True)
        loader.sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        # Drawn once an epoch: kernel launches would dominate a small step. Not if balanced: an image that comes again
        # in an epoch has an index beyond the split (see `Batch`).
        if self._device().type == "cuda" and not self.balanced:
            self.pipeline.augment.draw = EpochUniforms(len(self.sources["train"]))
        return loader

    def val_dataloader(self) -> Any:
        spread = self._is_limited("limit_val_batches")
        return self.loader("val", spread=spread) if "val" in self.sources else []

    def test_dataloader(self) -> Any:
        spread = self._is_limited("limit_test_batches")
        return self.loader(self.test_split, spread=spread) if self.test_split in self.sources else []

    def _is_limited(self, key: str) -> bool:
        limit = getattr(self.trainer, key, 1.0)
        return isinstance(limit, int) or limit < 1.0  # 1 means one batch, 1.0 all of them

    # ---------------------------------------------------------------------------------------- on the device

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch unless it is there already; Lightning's generic transfer costs more than a small step."""
        if batch.images.device == device:
            return batch
        # CUDA copies pageable memory to a staging buffer before returning; MPS may read it after it was freed.
        on_cuda = device.type == "cuda"
        images, labels, indices, aspects = (
            None if x is None else x.to(device, non_blocking=on_cuda) for x in (*batch[:3], batch.aspects)
        )
        return batch._replace(images=images, labels=labels, indices=indices, aspects=aspects)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches; resize and normalise all batches."""
        with _one_thread_beside_workers(batch.images):
            if self.trainer is not None and self.trainer.training:
                epoch = self.trainer.current_epoch
                x = self.pipeline.train(batch.images, batch.indices, self.seed, epoch, batch.aspects)
            elif self.trainer is not None and self.trainer.testing:
                x = self.pipeline.views(batch.images, self.views)
            else:
                x = self.pipeline.evaluate(batch.images)
        return batch._replace(images=x)

    def teardown(self, stage: str | None = None) -> None:
        """Shut down the decoding workers."""
        while self._open:
            self._open.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown()

    def stored_image(self, split: str, index: int) -> torch.Tensor:
        """Return one image as stored, (C, H, W) uint8; cached training images are those that crops are cut from."""
        source = self.sources[split]
        if isinstance(source, ArraySource):
            return source.images[index]
        return read_stored(source.paths[index], self.channels, self.stored_size, self.fit)

    def training_images(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return training images (N, C, H, W) uint8 as the training loader yields them, with their aspect ratios."""
        source = self.sources["train"]
        if isinstance(source, ArraySource):
            part = source.subset(torch.tensor(indices))
            return part.images, part.aspects
        sizes = self.channels, self.stored_size, self.train_fit
        images, aspects = zip(*(read_with_aspect(source.paths[i], *sizes) for i in indices), strict=True)
        return torch.stack(images), torch.tensor(aspects) if self.train_fit == WHOLE else None

    def examples(self, count: int) -> torch.Tensor:
        """Return up to `count` training images as the network gets them, not augmented: (N, C, S, S) float32 on CPU."""
        return self.pipeline.evaluate(self._examples(count).cpu())

    def _examples(self, count: int) -> torch.Tensor:
        # Not `stored_image`, which depends on whether the images are cached.
        return self.training_images(self.spread("train")[:count].tolist())[0]

    def preprocessing(self) -> dict[str, Any]:
        """Return, as plain values and tensors, what a checkpoint needs to prepare an image for the network."""
        source, stored_size = self.sources.get("train"), self.stored_size
        if isinstance(source, ArraySource):  # in-memory images keep their own size
            stored_size = source.images.shape[-1]
        return {
            "image_size": self.preprocess.image_size,
            "stored_size": stored_size,
            "fit": self.fit,
            "crop": self.preprocess.crop,
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "channels": self.channels,
            "whiten": bool(self.pipeline.options.get("whiten")),
            "mean_image": self.pipeline.mean_image,
        }


def _origin(source: Source) -> str:
    return source.origin or source.name


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    if len(values) == channels:
        return [float(v) for v in values]
    if channels == 1:
        return [float(sum(values) / len(values))]
    if len(values) == 1:
        return [float(values[0])] * channels
    raise UserError(f"data.mean and data.std need {channels} values, not {len(values)}.")


@contextmanager
def _one_thread_beside_workers(images: torch.Tensor) -> Iterator[None]:
    """Use a single thread while workers decode the next batches, since they need the cores.

    OpenMP threads spin while they wait: augmenting with two threads slowed two decoding workers on two cores by a
    fifth.
    """
    if images.device.type != "cpu" or not images.is_shared():  # shared memory: a worker made this batch
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
