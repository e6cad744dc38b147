"""data=streaming: images in LitData's chunks, in a folder or in object storage, as `alexnet-exp prepare` writes them.

URL/manifest.json      classes; of each split its count and checksum, and how the images were stored
    SPLIT/images.txt   LABEL<tab>NAME (as JSON) of every image, in the order of the chunks
    SPLIT/index.json   LitData's, with its chunks
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alexnet_exp.data.loaders import Batch, BatchPlan, Loader
from alexnet_exp.data.module import MEAN_IMAGES, ImageData, Source
from alexnet_exp.data.randomness import mix
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError

if TYPE_CHECKING:
    from alexnet_exp.data.streaming_chunks import Chunks

MANIFEST = "manifest.json"
IMAGES = "images.txt"
VERSION = 1


@dataclass(frozen=True, eq=False)
class StreamSource(FileSource):
    """Images in chunks; `paths` are names below `root`, not files.

    Args:
        sha256: Of the whole split, as `prepare` wrote it.
    """

    sha256: str


@dataclass(eq=False, kw_only=True)
class StreamPlan(BatchPlan):
    """How many images make each batch of each rank: LitData decides which.

    Args:
        chunks: The split, as this rank reads it.
        num_workers: Of each rank.
    """

    chunks: Chunks
    num_workers: int

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.world_size

    def shares(self) -> list[list[int]]:
        """Return the images of each worker of each rank in this epoch."""
        return self.chunks.shares(self.num_workers, self.epoch)

    def turns(self, rank: int) -> list[tuple[int, int]]:
        """Return (worker, images) of every batch of a rank: workers take turns, each until it has no more."""
        return turns(self.shares()[rank], self.rank_batch)

    def __len__(self) -> int:
        return max(len(turns(share, self.rank_batch)) for share in self.shares())


def turns(share: list[int], size: int) -> list[tuple[int, int]]:
    """Deal batches of `size` round the workers: [5, 3] in twos is (0, 2), (1, 2), (0, 2), (1, 1), (0, 1)."""
    rounds = range(-(-max(share) // size))
    return [
        (worker, min(size, count - size * turn))
        for turn in rounds
        for worker, count in enumerate(share)
        if count > size * turn
    ]


class StreamLoader(Loader):
    """Batches of a split in LitData's order; every rank takes the same number of steps.

    Args:
        source: Labels and names.
        plan: Sizes of the batches.
        channels: 1 or 3.
        stored_size: Side of the images.
        num_workers: 0 decodes here.
        pin_memory: Whether batches are made for a CUDA device.
    """

    sampler: StreamPlan

    def __init__(
        self, source: StreamSource, plan: StreamPlan, channels: int, stored_size: int, num_workers: int,
        pin_memory: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(plan)
        self.source, self.num_workers, self.pin_memory = source, num_workers, pin_memory
        self.channels, self.stored_size = channels, stored_size

    def _batches(self) -> Iterator[Batch]:
        plan, start = self.sampler, self.sampler.start()
        ranks = [turns(share, plan.rank_batch) for share in plan.shares()]
        decoded = iter(self._reader(ranks[plan.rank], start))
        spare = self._spare()
        for step in range(start, len(plan)):
            total = sum(own[step][1] for own in ranks if step < len(own))
            if step >= len(ranks[plan.rank]):  # the others still have images: step with them
                yield Batch(*spare, 0, total)
                continue
            found = next(decoded)
            if isinstance(found, UserError):
                raise found
            images, indices = found
            batch = Batch(images, self.source.labels[indices], indices, len(indices), total)
            spare = (batch.images[:1], batch.labels[:1], batch.indices[:1])
            yield batch

    def _reader(self, own: list[tuple[int, int]], start: int) -> DataLoader:
        from alexnet_exp.data.streaming_chunks import Reader

        plan = self.sampler
        share = plan.shares()[plan.rank]
        skip = [sum(size for worker, size in own[:start] if worker == w) for w in range(len(share))]
        first = own[start][0] if start < len(own) else 0
        reader = Reader(
            plan.chunks, share, skip, first, plan.epoch, plan.rank_batch, self.channels, self.stored_size,
            self.source.root,
        )  # fmt: skip
        return DataLoader(
            reader,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(mix("workers")),
        )

    def _spare(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image for a rank that has none in the whole epoch."""
        side = self.stored_size
        none = torch.zeros(1, dtype=torch.long)
        return torch.zeros((1, self.channels, side, side), dtype=torch.uint8), none, none


def _unchanged(found: Any) -> Any:
    return found


class Streaming(ImageData):
    """Images that `alexnet-exp prepare` has written.

    Args:
        url: Folder or object storage: s3://BUCKET/NAME, gs://BUCKET/NAME.
        common: See `ImageData`.
    """

    def __init__(self, url: str, **common: Any) -> None:
        super().__init__(**common)
        self.url = os.path.expanduser(url).rstrip("/")

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
        return StreamSource(paths, labels, tuple(manifest["classes"]), name, self.url, about["sha256"])

    def loader(self, split: str, shuffle: bool = False) -> Loader:
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world_size} devices: data=streaming needs "
                "a multiple."
            )
        workers, source = self._workers(), self.sources[split]
        assert isinstance(source, StreamSource)
        seed = self.seed if shuffle else None
        plan = StreamPlan(
            len(source), self.batch_size, seed, rank, world_size,
            chunks=self._chunks(split, seed, rank, world_size), num_workers=workers or 1,
        )  # fmt: skip
        on_cuda = self._device().type == "cuda"
        return StreamLoader(source, plan, self.channels, self.stored_size, workers, on_cuda)

    def _chunks(self, split: str, seed: int | None = None, rank: int = 0, world_size: int = 1) -> Chunks:
        from alexnet_exp.data.streaming_chunks import Chunks

        return Chunks(f"{self.url}/{split}", seed, rank, world_size)

    def stored_image(self, split: str, index: int) -> Tensor:
        from alexnet_exp.data.streaming_chunks import decode_item

        _, item = self._chunks(split)[index]
        return decode_item(item, self.channels, self.stored_size, self.url)

    def _mean_image(self) -> Tensor:
        count = len(self.sources["train"])
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.linspace(0, count - 1, min(count, MEAN_IMAGES)).round().long()] = True
        total = sum(
            batch.images[chosen[batch.indices]].double().sum(0)
            for batch in self.loader("train")
            if batch.size
        )
        return (total / chosen.sum()).float()


def check_installed() -> None:
    """Refuse to go on without LitData.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("litdata") is None:
        raise UserError("data=streaming and prepare need LitData: pip install 'alexnet-exp[streaming]'")


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
        from litdata.streaming.fs_provider import _get_fs_provider

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            _get_fs_provider(url).download_file(f"{url}/{name}", str(path))
            return path.read_text(encoding="utf-8")
    except Exception as error:  # every storage has errors of its own
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}/{name} cannot be read ({reason}): data.url is what `alexnet-exp prepare` was given as out."
        ) from error
