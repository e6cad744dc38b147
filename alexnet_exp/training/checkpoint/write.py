"""Atomic checkpoints: written to a temporary file, synced, renamed; previous ones are kept.

A torch.save file is a zip archive with a CRC-32 per record, which every read here verifies (safe_load.py). So no
separate checksum file can get lost or go stale, and saving costs nothing extra.

On CUDA, training does not wait for the disk: a save copies the checkpoint to main memory, and a thread writes it, one
at a time; until then the file is the previous one. On CPU, saves are synchronous, because a thread would take cores
from training.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from alexnet_exp.errors import UserError
from alexnet_exp.files import leftovers, replacing
from alexnet_exp.tracking.log import log
from alexnet_exp.training.checkpoint.read import checkpoints_before, read_checkpoint

LAST = "last.ckpt"
_BEST = {"value": float, "epoch": int, "step": int}


class AtomicCheckpointIO(CheckpointIO):
    """A CheckpointIO that writes atomically and verifies what it reads.

    Args:
        keep_last: How many of the latest checkpoints to keep: last.ckpt, last-1.ckpt (the previous one), and so on.
        on_thread: Whether a thread writes; None: if the checkpoint has tensors on CUDA.
    """

    def __init__(self, keep_last: int = 2, on_thread: bool | None = None) -> None:
        # Two by default: damage to a file that was written well only shows when a run resumes from it.
        self.keep_last, self.on_thread = keep_last, on_thread
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or start to; first waits for the previous save.

        Raises:
            UserError: If this or the previous save failed, for example on a full disk; existing files are unchanged.
        """
        # Waiting first bounds main memory to one copy, and raises an error of the disk at the next save.
        self.wait()
        on_thread = self.on_thread
        if on_thread is None:
            on_thread = any(tensor.is_cuda for tensor in _tensors(checkpoint))
        if not on_thread:
            self._write(checkpoint, Path(path))
            return
        # One worker: files are written in the order of the saves, and best.ckpt is linked after the file that it names.
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._thread.submit(self._write, _in_main_memory(checkpoint), Path(path))

    def after_save(self, act: Callable[[], None]) -> None:
        """Call `act` once the latest save is on disk: immediately, or on the writing thread."""
        if self._writing is None or self._thread is None:
            act()
            return
        written = self._writing

        def then() -> None:
            written.result()  # raises if the save failed, so that best.ckpt stays as it was
            act()

        self._writing = self._thread.submit(then)

    def wait(self) -> None:
        """Wait until the latest save is on disk.

        Raises:
            UserError: If it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """Wait and end the thread. Only logs a failed save, so as not to hide the error of a failed run."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if self._writing is not None and (error := self._writing.exception()) is not None:
            log.error("%s", error)
        self._writing = None

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        try:
            # No other run can be writing here: this one holds the lock of its directory.
            for stale in leftovers(path):  # from a run killed while writing
                stale.unlink()
            with replacing(path) as temporary:
                with open(temporary, "wb") as file:
                    writer = _ErrorKeeper(file)
                    torch.save(checkpoint, writer)
                    # Synced before the rename: after a power cut the name must not point to half a file.
                    writer.finish()
                # Only once the new file is complete: a full disk must not cost an old one.
                if path.name == LAST:
                    _rotate(path, self.keep_last)
        except OSError as error:
            raise _unwritable(path, error) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self.wait()
        # Always to CPU: the saved device may not exist here, and all ranks would load onto that of rank 0.
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        self.wait()
        Path(path).unlink(missing_ok=True)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a nest of dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _in_main_memory(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a deep copy on CPU, independent of further training; waits for the device."""
    # copy=True: what is on CPU already (counters, step numbers) would otherwise be shared with the training that goes
    # on.
    copies = {id(tensor): tensor.detach().to("cpu", copy=True) for tensor in _tensors(checkpoint)}
    return copy.deepcopy(checkpoint, copies)  # the memo makes deepcopy use these copies


class _ErrorKeeper:
    """A file for torch.save that keeps the first OSError; torch would turn a full disk into an error about zip offsets.

    Args:
        file: Open for binary writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write unless an earlier write failed; `finish` raises the error."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes  # as if it had succeeded: torch must not raise its own error

    def flush(self) -> None:
        """Do nothing; `finish` flushes."""

    def finish(self) -> None:
        """Flush and sync to disk.

        Raises:
            OSError: If any write failed.
        """
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def _rotate(path: Path, keep_last: int) -> None:
    """Rename last-1.ckpt to last-2.ckpt and so on, link last.ckpt as last-1.ckpt, and delete surplus files."""
    # Oldest first, or a file would replace the next older one before that has moved.
    for number, file in sorted(checkpoints_before(path).items(), reverse=True):
        if number + 1 < keep_last:
            os.replace(file, path.with_name(f"{path.stem}-{number + 1}.ckpt"))
        else:
            file.unlink()
    if keep_last > 1 and path.exists():
        # A link rather than a rename: whenever the run is killed, there is a last.ckpt.
        link(path, path.with_name(f"{path.stem}-1.ckpt"))


def link(source: Path, target: Path) -> None:
    """Atomically make `target` a hard link to `source`, or a copy on file systems without hard links."""
    for stale in leftovers(target):  # from a run killed in here
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
    intact = f"; the previous {path.name} is intact" if path.exists() else ""
    return UserError(
        f"{path} cannot be written ({error.strerror}){intact}: free some space, then continue with "
        f"resume={path.parent.parent}."
    )
