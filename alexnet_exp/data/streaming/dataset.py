"""data=streaming: images in LitData's chunks, in a folder or in object storage, as `alexnet-exp prepare` writes them.

URL/manifest.json      classes; of each split its count and checksum, and how the images were stored
    SPLIT/images.txt   LABEL<tab>NAME (as JSON) of every image, in the order of the chunks
    SPLIT/index.json   LitData's, with its chunks
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alexnet_exp.data.cache import places
from alexnet_exp.data.cache import shown as with_bar
from alexnet_exp.data.decode import VERSION as DECODER
from alexnet_exp.data.loaders import Loader
from alexnet_exp.data.mean_image import kept_mean
from alexnet_exp.data.module import MEAN_IMAGES, ImageData, Source
from alexnet_exp.data.sources import FileSource
from alexnet_exp.data.streaming.loader import StreamLoader, StreamPlan
from alexnet_exp.errors import UserError, missing_extra

if TYPE_CHECKING:
    from alexnet_exp.data.streaming.chunks import Chunks


log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
IMAGES = "images.txt"
VERSION = 1
MAX_WORKERS = 256  # as data.num_workers


@dataclass(frozen=True, eq=False)
class StreamSource(FileSource):
    """Images in chunks; `paths` are names below `root`, not files.

    Args:
        sha256: Of the whole split, as `prepare` wrote it.
    """

    sha256: str


class Streaming(ImageData):
    """Images that `alexnet-exp prepare` has written.

    Args:
        url: Folder or object storage: s3://BUCKET/NAME, gs://BUCKET/NAME.
        cache_dir: Where the mean image is kept; None: the user's cache folder.
        common: See `ImageData`.
    """

    def __init__(self, url: str, cache_dir: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        for key in ("train_subset", "test_subset", "val_size"):
            if common.get(key):
                raise UserError(
                    f"data=streaming has no data.{key}: chunks are read whole; prepare a smaller folder."
                )
        if self.fit != "crop" or self.folds is not None or self.balanced:
            raise UserError("data=streaming has no data.fit, data.folds or data.balanced: data=folder has.")
        self.url, self.cache_dir = os.path.expanduser(url).rstrip("/"), cache_dir
        self._workers_before: int | None = None  # of the run that this one goes on from
        self._workers_of_all: int | None = None  # ranks

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.trainer is not None:  # every rank comes by here
            # Which images are a rank's depends on the number of workers, and machines have more or fewer cores.
            self._workers_of_all = self.trainer.strategy.broadcast(super()._workers())

    def load(self) -> dict[str, Source]:
        check_installed()
        manifest = read_manifest(self.url)
        return {split: self._source(split, manifest) for split in manifest["splits"]}

    def _source(self, split: str, manifest: dict[str, Any]) -> StreamSource:
        lines = fetch_text(self.url, f"{split}/{IMAGES}").splitlines()
        try:
            pairs = [(int(label), str(json.loads(name))) for label, name in (s.split("\t", 1) for s in lines)]
        except ValueError:
            pairs = []
        if len(pairs) != manifest["splits"][split]["count"]:
            raise UserError(f"{self.url}/{split}/{IMAGES} is not whole: prepare it again.")
        labels = torch.tensor([label for label, _ in pairs])
        paths = tuple(f"{self.url}/{name}" for _, name in pairs)
        name = f"{os.path.basename(self.url)} {split}"
        about = manifest["splits"][split]
        classes = tuple(manifest["classes"])
        origin = f"prepared from {about['origin']}" if "origin" in about else f"prepared {split}"
        return StreamSource(paths, labels, classes, name, self.url, about["sha256"], origin=origin)

    @property
    def needs_for_validation(self) -> str:
        return "prepare a folder that has val images, or give prepare data.val_fraction=0.1"

    def loader(self, split: str, shuffle: bool = False, spread: bool = False) -> Loader:
        # Chunks hold all classes in an order of chance: their first images are a spread already.
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world_size} devices: data=streaming needs "
                "a multiple."
            )
        return self._stream(split, self.seed if shuffle else None, rank, world_size)

    def _stream(
        self, split: str, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> StreamLoader:
        workers, source = self._workers(), self.sources[split]
        assert isinstance(source, StreamSource)
        plan = StreamPlan(
            len(source), self.batch_size, seed, rank, world_size,
            chunks=self._chunks(split, seed, rank, world_size), num_workers=workers or 1,
        )  # fmt: skip
        on_cuda = self._device().type == "cuda"
        return StreamLoader(source, plan, self.channels, self.stored_size, workers, on_cuda)

    def state_dict(self) -> dict[str, int]:
        return {"workers": self._workers()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take as many workers as before where the settings leave it open: the order of the images depends on them."""
        workers = state.get("workers") if isinstance(state, dict) else None
        if self.num_workers is None and type(workers) is int and 0 < workers <= MAX_WORKERS:
            if workers != self._workers():
                log.info("data.num_workers=%d, as before: the order of the images depends on it.", workers)
            self._workers_before = workers

    def _workers(self) -> int:
        agreed = self._workers_before or self._workers_of_all
        return super()._workers() if agreed is None else agreed

    def _chunks(self, split: str, seed: int | None = None, rank: int = 0, world_size: int = 1) -> Chunks:
        from alexnet_exp.data.streaming.chunks import Chunks

        return Chunks(f"{self.url}/{split}", seed, rank, world_size)

    def stored_image(self, split: str, index: int) -> Tensor:
        from alexnet_exp.data.streaming.chunks import decode_item

        _, item = self._chunks(split)[index]
        return decode_item(item, self.channels, self.stored_size, self.url)

    def _mean_image(self) -> Tensor:
        """Return the mean image; taking it means to decode the whole split, so it is done once and kept."""
        source = self.sources["train"]
        assert isinstance(source, StreamSource)
        shape = (self.channels, self.stored_size, self.stored_size)
        key = [source.sha256, MEAN_IMAGES, DECODER, *shape]
        return kept_mean(places(self.cache_dir, self.url), key, shape, self._take_mean)

    def _take_mean(self) -> Tensor:
        count = len(self.sources["train"])
        num_chosen = min(count, MEAN_IMAGES)
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.linspace(0, count - 1, num_chosen).round().long()] = True
        log.info("The mean image is taken of %d training images: all are read for it, once.", num_chosen)
        parts = (batch.images[chosen[batch.indices]] for batch in self._stream("train"))
        total = sum(part.double().sum(0) for part in with_bar(parts, num_chosen, "Mean image"))
        return torch.as_tensor(total / num_chosen).float()


def check_installed() -> None:
    """Refuse to go on without LitData.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("litdata") is None:
        raise UserError(f"data=streaming and prepare need {missing_extra('litdata', 'streaming')}")


def read_manifest(url: str) -> dict[str, Any]:
    """Return what `prepare` wrote last.

    Raises:
        UserError: It is not there, or of another version.
    """
    try:
        manifest: dict[str, Any] = json.loads(fetch_text(url, MANIFEST))
    except json.JSONDecodeError as error:
        raise UserError(f"{url}/{MANIFEST} is damaged ({error}): prepare it again.") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{url}/{MANIFEST} does not hold what prepare writes there: prepare it again.")
    if manifest.get("version") != VERSION:
        raise UserError(f"{url} was prepared by another version of alexnet_exp: prepare it again.")
    return manifest


def is_remote(url: str) -> bool:
    return "://" in url


def fetch_text(url: str, name: str) -> str:
    """Read a small file of a prepared data set.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if not is_remote(url):
            return Path(url, name).read_text(encoding="utf-8")
        from alexnet_exp.data.streaming.internals import storage

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            storage(url).download_file(f"{url}/{name}", str(path))
            return path.read_text(encoding="utf-8")
    except Exception as error:  # every storage has errors of its own
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}/{name} cannot be read ({reason}): data.url is what `alexnet-exp prepare` was given as out."
        ) from error
