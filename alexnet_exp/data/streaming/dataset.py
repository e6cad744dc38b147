"""data=streaming: LitData chunks in a folder or in object storage, as written by `alexnet-exp prepare`.

URL/manifest.json      classes; count and checksum of each split, and how the images were stored
    SPLIT/images.txt   LABEL<tab>NAME (as JSON) of every image, in chunk order
    SPLIT/index.json   LitData's index, beside its chunks
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alexnet_exp.data.cache import places
from alexnet_exp.data.cache import shown as with_bar
from alexnet_exp.data.decode import VERSION as DECODER
from alexnet_exp.data.loaders import Loader
from alexnet_exp.data.module import MEAN_IMAGES, ImageData, Source
from alexnet_exp.data.sources import FileSource, is_remote
from alexnet_exp.data.streaming.loader import StreamLoader, StreamPlan
from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.files import locked, replacing

if TYPE_CHECKING:
    from alexnet_exp.data.streaming.chunks import Chunks


log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
IMAGES = "images.txt"
VERSION = 1
MAX_WORKERS = 256  # the limit of data.num_workers


@dataclass(frozen=True, eq=False)
class StreamSource(FileSource):
    """Images in chunks; `paths` are names below `root`, not files.

    Args:
        sha256: Digest of the whole split, from the manifest.
    """

    sha256: str


class Streaming(ImageData):
    """Images written by `alexnet-exp prepare`.

    Args:
        url: Folder or object storage: s3://BUCKET/NAME, gs://BUCKET/NAME.
        cache_dir: Where the mean image is cached; None: the user's cache folder.
        common: See `ImageData`.
    """

    def __init__(self, url: str, cache_dir: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        for key in ("train_subset", "test_subset", "val_size"):
            if common.get(key):
                raise UserError(
                    f"data=streaming does not support data.{key}, as it reads whole chunks: prepare a smaller folder."
                )
        if self.fit != "crop" or self.folds is not None or self.balanced:
            raise UserError(
                "data=streaming does not support data.fit, data.folds or data.balanced: use data=folder."
            )
        self.url, self.cache_dir = os.path.expanduser(url).rstrip("/"), cache_dir
        self._saved_workers: int | None = None  # from the checkpoint of a resumed run
        self._agreed_workers: int | None = None  # rank 0's, on every rank

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.trainer is not None:  # every rank calls setup
            # A rank's images depend on the number of workers, which defaults to the cores of each machine.
            self._agreed_workers = self.trainer.strategy.broadcast(super()._workers())

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
            raise UserError(f"{self.url}/{split}/{IMAGES} is incomplete: prepare it again.")
        labels = torch.tensor([label for label, _ in pairs])
        paths = tuple(f"{self.url}/{name}" for _, name in pairs)
        name = f"{os.path.basename(self.url)} {split}"
        facts = manifest["splits"][split]
        classes = tuple(manifest["classes"])
        origin = f"prepared from {facts['origin']}" if "origin" in facts else f"prepared {split}"
        return StreamSource(paths, labels, classes, name, self.url, facts["sha256"], origin=origin)

    @property
    def needs_for_validation(self) -> str:
        return "prepare a folder that has val images, or run prepare with data.val_fraction=0.1"

    def loader(self, split: str, shuffle: bool = False, spread: bool = False) -> Loader:
        # `prepare` shuffles images over the chunks, so the first ones are representative: ignore `spread`.
        world_size, rank = self._ranks()
        # Every rank reads its own chunks in batches of batch_size / ranks: there is no global batch to cut unevenly.
        if self.batch_size % world_size:
            raise UserError(
                f"invalid data.batch_size={self.batch_size}: expected a multiple of the {world_size} devices with "
                "data=streaming."
            )
        fit = self.train_fit if shuffle else self.fit
        return self._stream(split, self.seed if shuffle else None, rank, world_size, fit)

    def _stream(
        self, split: str, seed: int | None = None, rank: int = 0, world_size: int = 1, fit: str = ""
    ) -> StreamLoader:
        workers, source = self._workers(), self.sources[split]
        assert isinstance(source, StreamSource)
        plan = StreamPlan(
            len(source), self.batch_size, seed, rank, world_size,
            chunks=self._chunks(split, seed, rank, world_size), num_workers=workers or 1,
        )  # fmt: skip
        on_cuda = self._device().type == "cuda"
        return StreamLoader(source, plan, self.channels, self.stored_size, workers, on_cuda, fit or self.fit)

    def state_dict(self) -> dict[str, int]:
        return {"workers": self._workers()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the number of workers unless it was set: the order of the images depends on it."""
        workers = state.get("workers") if isinstance(state, dict) else None
        if self.num_workers is None and type(workers) is int and 0 < workers <= MAX_WORKERS:
            if workers != self._workers():
                log.info("data.num_workers=%d, as before: the order of the images depends on it.", workers)
            self._saved_workers = workers

    def _workers(self) -> int:
        agreed = self._saved_workers or self._agreed_workers
        return super()._workers() if agreed is None else agreed

    can_fold = False

    def _chunks(self, split: str, seed: int | None = None, rank: int = 0, world_size: int = 1) -> Chunks:
        from alexnet_exp.data.streaming.chunks import Chunks

        return Chunks(f"{self.url}/{split}", seed, rank, world_size)

    def stored_image(self, split: str, index: int) -> Tensor:
        from alexnet_exp.data.streaming.chunks import decode_item

        _, item = self._chunks(split)[index]
        return decode_item(item, self.channels, self.stored_size, self.url)[0]

    def _examples(self, count: int) -> Tensor:
        # The first ones, of one chunk: spread over the split, each would be in another.
        return torch.stack(
            [self.stored_image("train", i) for i in range(min(count, len(self.sources["train"])))]
        )

    def _mean_image(self) -> Tensor:
        """Return the mean image, cached: computing it decodes the whole split."""
        source = self.sources["train"]
        assert isinstance(source, StreamSource)
        shape = (self.channels, self.stored_size, self.stored_size)
        # `train_fit` only where it differs, so that the default finds what older versions have computed.
        key = [
            source.sha256,
            MEAN_IMAGES,
            DECODER,
            *shape,
            *([] if self.train_fit == self.fit else [self.train_fit]),
        ]
        return kept_mean(places(self.cache_dir, self.url), key, shape, self._compute_mean)

    def _compute_mean(self) -> Tensor:
        count = len(self.sources["train"])
        # Through the loader, in the order of the chunks: image by image, each would fetch a chunk of its own.
        num_chosen = min(count, MEAN_IMAGES)
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.linspace(0, count - 1, num_chosen).round().long()] = True
        log.info("Computing the mean of %d training images: this reads the whole split once.", num_chosen)
        parts = (batch.images[chosen[batch.indices]] for batch in self._stream("train", fit=self.train_fit))
        total = sum(part.double().sum(0) for part in with_bar(parts, num_chosen, "Mean image"))
        return torch.as_tensor(total / num_chosen).float()


def check_installed() -> None:
    """Check that LitData is installed.

    Raises:
        UserError: If it is not.
    """
    if importlib.util.find_spec("litdata") is None:
        raise UserError(f"data=streaming and prepare need {missing_extra('litdata', 'streaming')}")


def read_manifest(url: str) -> dict[str, Any]:
    """Read the manifest, which `prepare` writes last.

    Raises:
        UserError: If it is missing, damaged, or was written by another version.
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


def fetch_text(url: str, name: str) -> str:
    """Read a small file of a prepared data set.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        if not is_remote(url):
            return Path(url, name).read_text(encoding="utf-8")
        from alexnet_exp.data.streaming.internals import storage

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            storage(url).download_file(f"{url}/{name}", str(path))
            return path.read_text(encoding="utf-8")
    except Exception as error:  # each storage backend raises its own types
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}/{name} cannot be read ({reason}): set data.url to the out= of `alexnet-exp prepare`."
        ) from error


# ---------------------------------------------------------------------------------------- the cached mean image


def kept_mean(
    folders: Iterable[Path], key: Sequence[object], shape: tuple[int, int, int], take: Callable[[], Tensor]
) -> Tensor:
    """Return the cached mean image, or compute it and cache it in the first writable folder.

    Args:
        folders: Cache folders, in order of preference.
        key: Everything that determines the values.
        shape: (C, S, S).
        take: Computes the image, float32.
    """
    name = f"mean-image-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"
    files = [folder / name for folder in folders]
    found = _first_kept(files, shape)
    if found is not None:
        return found
    with _held(files[0]):  # one of several runs or ranks computes it, the others wait
        found = _first_kept(files, shape)
        if found is not None:
            return found
        image = take()
        if not any(_write_kept(file, image.numpy()) for file in files):
            log.warning(
                "The mean image cannot be cached in %s: the next run computes it again.", files[0].parent
            )
        return image


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """Hold the lock beside a file; without one if the folder does not allow it."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a read-only folder, or a file system without locks
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(file.with_suffix(".lock"), wait=True))
        yield


def _first_kept(files: Iterable[Path], shape: tuple[int, int, int]) -> Tensor | None:
    return next((found for file in files if (found := _read_kept(file, shape)) is not None), None)


def _read_kept(file: Path, shape: tuple[int, int, int]) -> Tensor | None:
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):  # missing or truncated
        return None
    return torch.from_numpy(found) if (found.shape, found.dtype) == (shape, np.float32) else None


def _write_kept(file: Path, image: np.ndarray) -> bool:
    try:
        # Through an open file: np.save would append .npy to the temporary name.
        with replacing(file) as part, open(part, "wb") as opened:
            np.save(opened, image)
    except OSError:
        return False
    return True
