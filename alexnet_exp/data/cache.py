"""Decode once: a cache of decoded images.

`disk`: one memory-mapped file per split, shared with later runs and other processes. `ram`: in the memory of this
process. `auto`: `disk` if there is room. Cached images are uint8 (N, C, S, S) exactly as decoded, so batches are the
same byte by byte with and without the cache.

Channels first: cropping channels-last images took 2.4 times as long, copying them just as long (one Xeon core,
64 images of 256 x 256).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from alexnet_exp.data.decode import VERSION
from alexnet_exp.data.heif import torchcodec_installed
from alexnet_exp.data.loaders import BatchPlan, FileLoader
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.errors import UserError, unreadable
from alexnet_exp.files import leftovers, locked, replacing
from alexnet_exp.memory import free_memory

log = logging.getLogger(__name__)
Part = TypeVar("Part", bound=Sized)
MODES = ("auto", "ram", "disk", "off")
AUTO_BYTES = 20e9  # limit of auto
AUTO_SHARE = 0.5  # limit of auto, as a share of the free disk space
_BATCH = 64  # images decoded at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedSource(ArraySource):
    """Image files with their decoded pixels.

    Args:
        files: The files.
    """

    files: FileSource

    def image_name(self, index: int) -> str:
        """Return the file's path relative to the data set's folder: "val/hat/17.jpg"."""
        return self.files.image_name(index if self.numbers is None else int(self.numbers[index]))


@dataclass(frozen=True)
class Cache:
    """How images are decoded and cached.

    Args:
        mode: 'auto', 'ram', 'disk' or 'off'.
        folder: Folder of the `disk` cache. None, or not writable: the user's cache folder.
        channels: 1 or 3.
        size: Side of the stored images, in pixels.
        num_workers: Decoding processes.
        fit: How images that are not square become one.
        train_fit: The same for the training images; None: as `fit`.
    """

    mode: str
    folder: str | None
    channels: int
    size: int
    num_workers: int
    fit: str = "crop"
    train_fit: str | None = None

    def keep(self, sources: Mapping[str, FileSource]) -> Mapping[str, FileSource | DecodedSource]:
        """Return the splits with decoded images, or unchanged if nothing is cached.

        Raises:
            UserError: If an image cannot be decoded, or the requested cache does not fit.
        """
        if self.mode == "off":
            return sources
        if self.mode == "ram":
            return self._in_memory(sources)
        root = next(iter(sources.values())).root
        try:
            return self._on_disk(sources, places(self.folder, root))
        except OSError as error:
            reason = error.strerror or str(error)
            if self.mode == "disk":
                raise UserError(
                    f"Cannot cache the decoded images ({error.filename or 'cache'}: {reason}): set data.cache=off, "
                    "or paths.cache_dir=DIR to a writable folder with enough space."
                ) from error
            log.warning("Cannot cache the decoded images (%s): decoding them in every epoch.", reason)
            return sources

    def _in_memory(self, sources: Mapping[str, FileSource]) -> dict[str, DecodedSource]:
        num_bytes = sum(map(self._bytes, sources.values()))
        free = free_memory()
        if num_bytes > free:
            raise UserError(
                f"data.cache=ram needs {_size(num_bytes)} of memory, but {_size(free)} are free: set data.cache=disk."
            )
        log.info("Decoding all images once, into memory (%s, data.cache=ram).", _size(num_bytes))
        kept = {}
        for split, source in sources.items():
            images = torch.empty((len(source), self.channels, self.size, self.size), dtype=torch.uint8)
            start, aspects = 0, list[float]()
            for batch in self._decoded(source, self._fit(split), aspects):
                images[start : start + len(batch)] = batch
                start += len(batch)
            kept[split] = _with_pixels(source, images, aspects)
        return kept

    def _on_disk(
        self, sources: Mapping[str, FileSource], folders: list[Path]
    ) -> Mapping[str, FileSource | DecodedSource]:
        """Map existing cache files, and build the others in the first writable folder."""
        new = [s for s in sources.values() if not any(has_namesake(folder, s) for folder in folders)]
        place = next(filter(_writable, folders), folders[0])
        # Finding a cache costs a stat of every image: skip it if there is no cache and no room for one.
        if new and not self._fits(sum(map(self._bytes, new)), place):
            return sources
        found = {split: self._find(source, self._fit(split), folders) for split, source in sources.items()}
        missing = [file for file in found.values() if not file.is_whole()]
        needed = sum(file.num_bytes for file in missing)
        if missing and not self._fits(needed, missing[0].folder.parent):
            return sources
        if missing:
            count = sum(file.shape[0] for file in missing)
            log.info(
                "Decoding %d images once, into %s (%s, data.cache=%s; data.cache=off disables the cache).",
                count, missing[0].folder.parent, _size(needed), self.mode,
            )  # fmt: skip
        else:
            log.info(
                "Reading decoded images from %s (data.cache=%s).",
                next(iter(found.values())).folder.parent, self.mode,
            )  # fmt: skip
        for split, source in sources.items():
            if found[split] in missing:
                aspects: list[float] = []
                found[split].build(partial(self._decoded, source, self._fit(split), aspects), aspects)
        return {
            split: _with_pixels(source, found[split].open(), found[split].aspects())
            for split, source in sources.items()
        }

    def _fit(self, split: str) -> str:
        return self.train_fit if self.train_fit and split == "train" else self.fit

    def _find(self, source: FileSource, fit: str, folders: list[Path]) -> CacheFile:
        """Return the cache file in the first folder that has it complete, else in the first writable one."""
        key = fingerprint(source.paths, source.root, self.channels, self.size, fit)
        files = [CacheFile(folder, source, self.channels, self.size, key) for folder in folders]
        whole = next((file for file in files if file.is_whole()), None)
        return whole or next((f for f in files if _writable(f.folder)), files[0])

    def _fits(self, needed: int, folder: Path) -> bool:
        """Return whether the cache may take this much space; log why not.

        Raises:
            UserError: If data.cache=disk and there is not enough space.
        """
        free = shutil.disk_usage(_existing(folder)).free
        if self.mode == "disk":
            if needed > free:
                raise UserError(
                    f"data.cache=disk needs {_size(needed)} in {folder}, but {_size(free)} are free: set "
                    "data.cache=off or another paths.cache_dir."
                )
            return True
        if needed <= min(AUTO_BYTES, AUTO_SHARE * free):
            return True
        log.info(
            "Decoding the images in every epoch: a cache would take %s of the %s free in %s "
            "(data.cache=disk caches them anyway).",
            _size(needed), _size(free), folder,
        )  # fmt: skip
        return False

    def _bytes(self, source: FileSource) -> int:
        return len(source) * self.channels * self.size**2

    def _decoded(self, source: FileSource, fit: str, aspects: list[float]) -> Generator[Tensor]:
        """Decode all files of a split in order, in worker processes, with a progress bar on a terminal.

        Args:
            source: The files.
            fit: How images become square.
            aspects: Receives the images' aspect ratios, if `fit` is decode.WHOLE.
        """
        plan = BatchPlan(len(source), _BATCH)
        loader = FileLoader(source, plan, self.channels, self.size, self.num_workers, fit=fit)

        def images() -> Iterator[Tensor]:
            for batch in loader:
                aspects.extend([] if batch.aspects is None else batch.aspects.tolist())
                yield batch.images

        with closing(loader):
            yield from shown(images(), len(source), f"Decoding {source.name}")


def _with_pixels(source: FileSource, images: Tensor, aspects: Sequence[float]) -> DecodedSource:
    return DecodedSource(
        images, source.labels, source.classes, source.name, files=source, origin=source.origin,
        aspects=torch.tensor(aspects) if aspects else None,
    )  # fmt: skip


def places(folder: str | None, root: str) -> list[Path]:
    """Return the folders that may hold caches, best first, none of them inside the data set.

    Args:
        folder: paths.cache_dir.
        root: The data set's folder, in which a cache would look like another class.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_exp"
    wanted = [Path(folder).expanduser().absolute(), home] if folder else [home]
    return [place for place in wanted if not place.resolve().is_relative_to(Path(root).resolve())] or [home]


def _existing(folder: Path) -> Path:
    """Return the folder or its nearest existing parent."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _writable(folder: Path) -> bool:
    nearest = _existing(folder)
    # Respect read-only mode bits even as root, for whom os.access is always true.
    return nearest.is_dir() and os.access(nearest, os.W_OK) and bool(nearest.stat().st_mode & 0o222)


def shown(batches: Iterable[Part], count: int, title: str) -> Generator[Part]:
    """Yield the batches, with a progress bar on the terminal of rank 0."""
    on_terminal = sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # No refresh thread: it could hold a lock while the worker processes are forked.
    drawn = {"console": Console(stderr=True), "transient": True, "auto_refresh": False}
    with Progress(*columns, disable=not on_terminal, **drawn) as bar:
        task = bar.add_task(title, total=count)
        for batch in batches:
            yield batch
            bar.update(task, advance=len(batch), refresh=True)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


_CHUNK = 1 << 24  # read size for the checksum, in bytes
_KEY_LENGTH = 16
_LOCK = "lock"


class CacheFile:
    """The decoded images of one split.

    Args:
        folder: Folder of all caches.
        source: The image files.
        channels: 1 or 3.
        size: Side of the stored images.
        key: Their fingerprint; None: computed here, with a stat of every file.

    Raises:
        UserError: If one of the files is missing.
    """

    def __init__(
        self, folder: Path, source: FileSource, channels: int, size: int, key: str | None = None
    ) -> None:
        self.shape = (len(source), channels, size, size)
        key = key or fingerprint(source.paths, source.root, channels, size)
        self.folder = folder / f"{_name(source)}-{key}"
        self.data, self.manifest = self.folder / "images.npy", self.folder / "manifest.json"

    @property
    def num_bytes(self) -> int:
        """Size of the images."""
        count, channels, size, _ = self.shape
        return count * channels * size * size

    def is_whole(self) -> bool:
        """Return whether the cache is complete; one that was copied or touched is verified once by its checksum."""
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            found = self.data.stat()
            if manifest["shape"] != list(self.shape) or manifest["bytes"] != found.st_size:
                return False
            if manifest["modified_ns"] == found.st_mtime_ns:
                return True
            if manifest["crc32"] != _crc32(self.data):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        with contextlib.suppress(OSError):  # read-only: verified every time
            self._write_manifest(manifest["crc32"], manifest.get("aspects", ()))
        return True

    def aspects(self) -> list[float]:
        """Return width over height of each original image, where the stored ones are these squashed; else nothing."""
        found: list[float] = json.loads(self.manifest.read_text(encoding="utf-8")).get("aspects", [])
        return found

    def open(self) -> Tensor:
        """Return the images, uint8 (N, C, S, S), memory-mapped and read-only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.load(self.data, mmap_mode="r"))

    def build(self, batches: Callable[[], Generator[Tensor]], aspects: Sequence[float] = ()) -> None:
        """Write the images, or wait if another process is already doing so.

        Args:
            batches: Starts decoding: yields uint8 (n, C, S, S), in file order.
            aspects: Kept with the images; read when all of them are decoded.

        Raises:
            OSError: If the cache cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            if not held.enter_context(locked(self.folder / _LOCK)):
                log.info("Another process is decoding the images into %s: waiting for it.", self.folder)
                held.enter_context(locked(self.folder / _LOCK, wait=True))
            if not self.is_whole():
                self._remove_stale()
                with contextlib.closing(batches()) as decoded:
                    self._write(decoded, aspects)

    def _write(self, batches: Iterable[Tensor], aspects: Sequence[float]) -> None:
        # First: from here on the cache counts as incomplete, until its new manifest is written.
        self.manifest.unlink(missing_ok=True)
        with replacing(self.data, sync=True) as part, open(part, "wb") as file:
            checksum = _write_all(file, chain([self._header()], (images.numpy() for images in batches)))
        self._write_manifest(checksum, aspects)

    def _header(self) -> bytes:
        header = BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()

    def _write_manifest(self, checksum: int, aspects: Sequence[float]) -> None:
        found = self.data.stat()
        manifest: dict[str, Any] = {
            "count": self.shape[0],
            "shape": list(self.shape),
            "bytes": found.st_size,
            "modified_ns": found.st_mtime_ns,
            "crc32": checksum,
            **({"aspects": list(aspects)} if aspects else {}),
        }
        with replacing(self.manifest, sync=True) as part:
            part.write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    def _remove_stale(self) -> None:
        """Remove leftovers of killed builds of any cache in this folder."""
        for folder in self.folder.parent.glob("*/"):
            if parts := leftovers(folder / self.data.name):
                # An OSError: another user's folder, or gone by now.
                with contextlib.suppress(OSError), contextlib.ExitStack() as held:
                    if folder == self.folder or held.enter_context(locked(folder / _LOCK)):
                        for part in parts:
                            part.unlink()


def has_namesake(folder: Path, source: FileSource) -> bool:
    """Return whether a folder has a cache of a split of this name, possibly of other files."""
    return any(folder.glob(f"{glob.escape(_name(source))}-{'?' * _KEY_LENGTH}"))


def _name(source: FileSource) -> str:
    return source.name.replace(" ", "-")


def fingerprint(paths: Sequence[str], root: str, channels: int, size: int, fit: str = "crop") -> str:
    """Return a hash of everything that determines the decoded pixels.

    Raises:
        UserError: If one of the files is missing.
    """
    names = ("torch", "torchvision", "pillow", *(("torchcodec",) if torchcodec_installed() else ()))
    libraries = [f"{name} {version(name)}" for name in names]
    # Without the default fit, as in the names of caches from before there was a choice.
    decoding = (VERSION, libraries, channels, size, *([] if fit == "crop" else [fit]))
    digest = hashlib.sha256(repr(decoding).encode())
    for path in paths:
        try:
            found = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        name = os.path.relpath(path, root)
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_KEY_LENGTH]


def _write_all(file: IO[bytes], parts: Iterable[Any]) -> int:
    """Write blocks of bytes; return the CRC-32 of all of them."""
    checksum = 0
    for part in parts:
        file.write(part)
        checksum = zlib.crc32(part, checksum)
    return checksum


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            checksum = zlib.crc32(block, checksum)
    return checksum
