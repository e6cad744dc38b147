"""Writing chunks for `prepare`, in LitData's worker processes. Imported only where LitData is needed."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from litdata.processing.functions import LambdaDataChunkRecipe
from PIL import Image

from alexnet_exp.data.decode import decode_bytes
from alexnet_exp.data.streaming.dataset import is_remote
from alexnet_exp.data.streaming.internals import Writer, kill_workers
from alexnet_exp.data.workers import ignore_signals
from alexnet_exp.errors import UserError


@dataclass(frozen=True)
class Encoder:
    """Turn an image file into a stored item: its bytes, or a smaller JPEG.

    Args:
        root: Folder that file names are relative to.
        size: Shorter side in pixels; None stores the file unchanged.
        quality: JPEG quality, 1 to 100.
    """

    root: str
    size: int | None
    quality: int

    def __call__(self, task: list[Any]) -> dict[str, Any]:
        _end_with_parent()
        name, label = task
        path = os.path.join(self.root, name)
        data = Path(path).read_bytes() if self.size is None else self._smaller(path, self.size)
        return {"image": data, "label": int(label), "name": name, "crc32": crc32(data)}

    def _smaller(self, path: str, size: int) -> bytes:
        image = decode_bytes(Path(path).read_bytes(), path, 3, enough=2 * size)
        short = min(image.shape[1:])
        if short > size:
            wanted = [size if side == short else round(side * size / short) for side in image.shape[1:]]
            floats = torch.nn.functional.interpolate(image[None], wanted, mode="bilinear", antialias=True)
            image = floats[0]
        out = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(out, "JPEG", quality=self.quality)
        return out.getvalue()


@functools.cache
def _end_with_parent() -> None:
    """Make a worker exit when `prepare` is killed, and leave the handling of signals to the parent."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    ignore_signals()
    threading.Thread(target=wait, daemon=True, name="parent").start()


def write(tasks: Sequence[list[Any]], url: str, encoder: Encoder, num_workers: int, chunk_bytes: int) -> None:
    """Write one split; continues after an interrupted call.

    Args:
        tasks: [name, label] of every image. To continue, pass the same arguments (the root may have moved).
        url: Folder or object storage.
        encoder: Turns a file into a stored item.
        num_workers: Number of processes.
        chunk_bytes: Chunk size in bytes.

    Raises:
        UserError: If an image cannot be read.
    """
    recipe = LambdaDataChunkRecipe(encoder, tasks, chunk_size=None, chunk_bytes=chunk_bytes, compression=None)
    with _contained():
        # With input_dir, LitData would copy every file before reading it.
        writer = Writer(
            input_dir=None, output_dir=url, num_workers=num_workers, fast_dev_run=False, reorder_files=False,
            use_checkpoint=True, delete_cached_files=is_remote(url), verbose=True,
        )  # fmt: skip
        try:
            writer.run(recipe)
        except RuntimeError as error:  # its text is the traceback of a worker
            said = re.search(r"UserError: (.+)", str(error))
            if said is None:
                raise
            raise UserError(said[1]) from error
        except BaseException:
            kill_workers()
            raise


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Give LitData scratch folders (it clears the default ones in /tmp), and restore the global state it changes."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    method = multiprocessing.get_start_method(allow_none=True)
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_") as folder:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{folder}/chunks"
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{folder}/data"
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            multiprocessing.set_start_method(method, force=True)
            os.environ.clear()
            os.environ.update(environment)
