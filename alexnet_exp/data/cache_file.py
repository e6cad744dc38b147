"""The file that keeps decoded images: built by one process, whole or not there, mapped by every other.

FOLDER/NAME-KEY/images.npy       uint8 (N, C, S, S), as numpy writes it
                manifest.json    size, time and checksum of images.npy; written last, and without it nothing counts
                lock             held while building; the system gives it up when the process dies
                images.npy.part  of a build that is going on, or was killed

KEY is a hash of what decides the pixels: the files' names, sizes and times, the stored size, channels, decoder.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from alexnet_exp.data.decode import VERSION
from alexnet_exp.data.heif import torchcodec_installed
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import unreadable

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_CHUNK = 1 << 24  # bytes read at a time for the checksum
_KEY_LENGTH = 16


class CacheFile:
    """The decoded images of one split.

    Args:
        folder: Where caches lie.
        source: The files.
        channels: 1 or 3.
        size: Side of the stored images.
        key: Their fingerprint; None: taken now, which looks at every file.

    Raises:
        UserError: If one of the files is gone.
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
        """Return whether the file is there as it was built; one that was copied or touched is read, once, to know."""
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
        with contextlib.suppress(OSError):  # where nobody may write, it is read every time
            self._write_manifest(manifest["crc32"])
        return True

    def open(self) -> Tensor:
        """Return the images, uint8 (N, C, S, S), mapped: read from disk when touched, and never to be written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.load(self.data, mmap_mode="r"))

    def build(self, batches: Callable[[], Generator[Tensor]]) -> None:
        """Write the images, unless another process does so first: then wait for it.

        Args:
            batches: Begins to decode: uint8 (n, C, S, S), in the order of the files.

        Raises:
            OSError: If they cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a") as lock:
            if not take(lock):
                log.info("Another process is decoding the images into %s: waiting for it.", self.folder)
                take(lock, wait=True)
            if not self.is_whole():
                self._remove_stale()
                with contextlib.closing(batches()) as decoded:
                    self._write(decoded)

    def _write(self, batches: Iterable[Tensor]) -> None:
        self.manifest.unlink(missing_ok=True)
        part = self.data.with_name("images.npy.part")
        try:
            with open(part, "wb") as file:
                checksum = _write_all(file, chain([self._header()], (images.numpy() for images in batches)))
                _sync(file)
            os.replace(part, self.data)
        finally:
            part.unlink(missing_ok=True)
        self._write_manifest(checksum)

    def _header(self) -> bytes:
        header = BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()

    def _write_manifest(self, checksum: int) -> None:
        found = self.data.stat()
        manifest: dict[str, Any] = {
            "count": self.shape[0],
            "shape": list(self.shape),
            "bytes": found.st_size,
            "modified_ns": found.st_mtime_ns,
            "crc32": checksum,
        }
        part = self.manifest.with_name("manifest.json.part")
        with open(part, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
            _sync(file)
        os.replace(part, self.manifest)

    def _remove_stale(self) -> None:
        """Remove what killed builds of any cache in this place have left."""
        for part in self.folder.parent.glob("*/images.npy.part"):
            with contextlib.suppress(OSError):  # another user's, or gone by now
                if part.parent == self.folder:
                    part.unlink()
                    continue
                with open(part.parent / "lock", "a") as lock:
                    if take(lock):
                        part.unlink()


def has_namesake(folder: Path, source: FileSource) -> bool:
    """Return whether a folder holds decoded images of a split of this name, which may be of other files."""
    return any(folder.glob(f"{glob.escape(_name(source))}-{'?' * _KEY_LENGTH}"))


def _name(source: FileSource) -> str:
    return source.name.replace(" ", "-")


def fingerprint(paths: Sequence[str], root: str, channels: int, size: int) -> str:
    """Return a hash of all that decides the pixels of files once they are decoded.

    Raises:
        UserError: If one of the files is gone.
    """
    names = ("torch", "torchvision", "pillow", *(("torchcodec",) if torchcodec_installed() else ()))
    libraries = [f"{name} {version(name)}" for name in names]
    digest = hashlib.sha256(repr((VERSION, libraries, channels, size)).encode())
    for path in paths:
        try:
            found = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        name = os.path.relpath(path, root)
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:_KEY_LENGTH]


def take(lock: IO[Any], wait: bool = False) -> bool:
    """Lock an open file; return whether this process has it now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _write_all(file: IO[bytes], parts: Iterable[Any]) -> int:
    """Write blocks of bytes one after the other; return the checksum of the whole."""
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


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
