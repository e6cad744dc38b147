"""Chunks as `prepare` writes them, by LitData's processes. Imported where LitData is needed."""

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
    """Turns a file into what is stored: its bytes, or a smaller JPEG.

    Args:
        root: Folder that names of files are relative to.
        size: Shorter side; None keeps the file as it is.
        quality: Of JPEG, 1 to 100.
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
    """Let no worker go on writing when `prepare` is killed; what a signal means is the parent's to say."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    ignore_signals()
    threading.Thread(target=wait, daemon=True, name="parent").start()


def write(tasks: Sequence[list[Any]], url: str, encoder: Encoder, num_workers: int, chunk_bytes: int) -> None:
    """Write one split; what an interrupted call has written is kept, and the rest follows.

    Args:
        tasks: [name, label] of every image. All arguments are those of the interrupted call, but for a moved root.
        url: Folder or object storage.
        encoder: What is stored of a file.
        num_workers: Processes.
        chunk_bytes: Size of a chunk.

    Raises:
        UserError: An image cannot be read.
    """
    recipe = LambdaDataChunkRecipe(encoder, tasks, chunk_size=None, chunk_bytes=chunk_bytes, compression=None)
    with _contained():
        # No input_dir: LitData would copy every file before it is read.
        writer = Writer(
            input_dir=None, output_dir=url, num_workers=num_workers, fast_dev_run=False, reorder_files=False,
            use_checkpoint=True, delete_cached_files=is_remote(url), verbose=True,
        )  # fmt: skip
        try:
            writer.run(recipe)
        except RuntimeError as error:  # the traceback of a worker, as text
            said = re.search(r"UserError: (.+)", str(error))
            if said is None:
                raise
            raise UserError(said[1]) from error
        except BaseException:
            kill_workers()
            raise


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Give LitData folders that it may empty (its own are data and chunks in /tmp), and undo what it sets."""
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
