"""Checkpoints that are whole or not there: written beside, synced, renamed; the ones before are kept.

A file of torch.save is a zip archive with a CRC-32 of every record, and every read of ours compares them
(safe_load.py). So a checkpoint carries its checksum inside: none beside it can be lost, fall out of step or be copied
without it, and nothing is added to the time of a save.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from alexnet_exp.errors import UserError
from alexnet_exp.files import leftovers, replacing
from alexnet_exp.training.checkpoint.read import checkpoints_before, read_checkpoint

LAST = "last.ckpt"
_BEST = {"value": float, "epoch": int, "step": int}


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reader and writer of checkpoint files, made safe.

    Args:
        keep_last: How many of the latest checkpoints stay: last.ckpt, last-1.ckpt (the one before it), and so on.
    """

    def __init__(self, keep_last: int = 2) -> None:
        self.keep_last = keep_last

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: There is no room for it, or it cannot be written; what was there before is untouched.
        """
        path = Path(path)
        try:
            for stale in leftovers(path):  # of a run killed while it wrote
                stale.unlink()
            with replacing(path) as temporary:
                with open(temporary, "wb") as file:
                    told = _Told(file)
                    torch.save(checkpoint, told)  # it asks for no more than write and flush
                    told.check()
                if path.name == LAST:
                    _keep_before(path, self.keep_last)
        except OSError as error:
            raise _unwritable(path, error) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Not to the device it came from: another machine has none, and every rank would read onto the first one's.
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class _Told:
    """A file for torch.save, which would make a full disk into a complaint about positions in an archive.

    Args:
        file: Open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write while that works; `check` says whether it did."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Leave it to `check`."""

    def check(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: If something is not there.
        """
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def _keep_before(path: Path, keep_last: int) -> None:
    """Give last.ckpt the name last-1.ckpt as well, the one of that name last-2.ckpt; remove those beyond."""
    for number, file in sorted(checkpoints_before(path).items(), reverse=True):
        if number + 1 < keep_last:
            os.replace(file, path.with_name(f"{path.stem}-{number + 1}.ckpt"))
        else:
            file.unlink()
    if keep_last > 1 and path.exists():
        link(path, path.with_name(f"{path.stem}-1.ckpt"))


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` at once; copies where the file system has no hard links."""
    for stale in leftovers(target):  # of a run killed in here
        stale.unlink()
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            try:
                shutil.copyfile(source, temporary)
            except OSError as error:
                raise _unwritable(target, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    before = f"; {path.name} of before is whole" if path.exists() else ""
    return UserError(
        f"{path} cannot be written ({error.strerror}){before}: make room, then go on with "
        f"resume={path.parent.parent}."
    )
