"""A mean image that takes long: taken once, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


def kept_mean(
    folders: Iterable[Path], key: Sequence[object], shape: tuple[int, int, int], take: Callable[[], Tensor]
) -> Tensor:
    """Return a mean image from the first folder that has it, else take it and keep it in the first that can.

    Args:
        folders: Where it may lie, best first.
        key: All that decides its values.
        shape: (C, S, S).
        take: Makes it, float32.
    """
    name = f"mean-image-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"
    files = [folder / name for folder in folders]
    for file in files:
        found = _read(file, shape)
        if found is not None:
            return found
    image = take()
    if not any(_write(file, image.numpy()) for file in files):
        log.warning("The mean image cannot be kept in %s: the next run takes it again.", files[0].parent)
    return image


def _read(file: Path, shape: tuple[int, int, int]) -> Tensor | None:
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):  # not there, or not whole
        return None
    return torch.from_numpy(found) if (found.shape, found.dtype) == (shape, np.float32) else None


def _write(file: Path, image: np.ndarray) -> bool:
    part = file.with_name(f"{file.stem}.{os.getpid()}.part.npy")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, image)
        os.replace(part, file)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return True
