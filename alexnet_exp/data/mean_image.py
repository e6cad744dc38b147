"""Compute an expensive mean image once and keep it in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alexnet_exp.files import locked, replacing

log = logging.getLogger(__name__)


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
    found = _first(files, shape)
    if found is not None:
        return found
    with _locked(files[0]):  # one of several runs or ranks computes it, the others wait
        found = _first(files, shape)
        if found is not None:
            return found
        image = take()
        if not any(_write(file, image.numpy()) for file in files):
            log.warning(
                "The mean image cannot be cached in %s: the next run computes it again.", files[0].parent
            )
        return image


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock beside a file; without one if the folder does not allow it."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a read-only folder, or a file system without locks
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(file.with_suffix(".lock"), wait=True))
        yield


def _first(files: Iterable[Path], shape: tuple[int, int, int]) -> Tensor | None:
    return next((found for file in files if (found := _read(file, shape)) is not None), None)


def _read(file: Path, shape: tuple[int, int, int]) -> Tensor | None:
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):  # missing or truncated
        return None
    return torch.from_numpy(found) if (found.shape, found.dtype) == (shape, np.float32) else None


def _write(file: Path, image: np.ndarray) -> bool:
    try:
        # Through an open file: np.save would append .npy to the temporary name.
        with replacing(file) as part, open(part, "wb") as opened:
            np.save(opened, image)
    except OSError:
        return False
    return True
