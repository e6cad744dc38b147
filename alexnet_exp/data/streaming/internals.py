"""All that is used of LitData's private parts. tests/data/streaming/test_streaming_internals.py names each.

Imported where LitData is needed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from typing import Any

from litdata.processing.data_processor import DataProcessor
from litdata.streaming import fs_provider

from alexnet_exp.data.workers import signals_blocked


def storage(url: str) -> fs_provider.FsProvider:
    """Return what reads and writes single files of an object storage; LitData's public names take whole data sets."""
    return fs_provider._get_fs_provider(url)


class Writer(DataProcessor):
    """What `litdata.optimize` runs, but for defects that its public settings do not reach."""

    def _load_checkpoint_config(self, workers_user_items: list[list[Any]]) -> None:
        """Resume after what the chunks hold: LitData counts from zero in each call, so the third repeats images."""
        # If the call was killed while it wrote its first file, there is nothing yet.
        with contextlib.suppress(json.JSONDecodeError):
            super()._load_checkpoint_config(workers_user_items)
        self.checkpoint_next_index = [
            sum(chunk["chunk_size"] for chunk in chunks) for chunks in self.checkpoint_chunks_info
        ]

    def _create_process_workers(self, *args: Any, **kwargs: Any) -> Any:
        with signals_blocked():  # what they start with, until the first task
            return super()._create_process_workers(*args, **kwargs)

    def _start_chunk_writers(self, *args: Any, **kwargs: Any) -> None:
        with signals_blocked():
            super()._start_chunk_writers(*args, **kwargs)

    def _exit_on_error(self, error: str) -> None:
        kill_workers()  # they ignore LitData's SIGTERM
        super()._exit_on_error(error)

    def _signal_handler(self, number: Any, frame: Any) -> None:
        """End on Ctrl-C as other commands do; LitData ends the process with exit code 0."""
        raise KeyboardInterrupt


def kill_workers() -> None:
    """End every process that writes: they ignore the signals of a terminal."""
    for worker in multiprocessing.active_children():
        worker.kill()
