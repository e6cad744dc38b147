"""Everything that depends on LitData's private parts; tests/data/streaming/test_streaming_internals.py tests each.

Imported only where LitData is needed.
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
    """Return LitData's client for single files in object storage; its public API only handles whole data sets."""
    return fs_provider._get_fs_provider(url)


class Writer(DataProcessor):
    """The processor behind `litdata.optimize`, with fixes for defects that its public settings cannot avoid."""

    def _load_checkpoint_config(self, workers_user_items: list[list[Any]]) -> None:
        """Resume after the images in the chunks: LitData restarts its count in each call, so a third repeats images."""
        # The file is empty if the previous call was killed while writing it for the first time.
        with contextlib.suppress(json.JSONDecodeError):
            super()._load_checkpoint_config(workers_user_items)
        self.checkpoint_next_index = [
            sum(chunk["chunk_size"] for chunk in chunks) for chunks in self.checkpoint_chunks_info
        ]

    def _create_process_workers(self, *args: Any, **kwargs: Any) -> Any:
        with signals_blocked():  # inherited by the workers until their first task
            return super()._create_process_workers(*args, **kwargs)

    def _start_chunk_writers(self, *args: Any, **kwargs: Any) -> None:
        with signals_blocked():
            super()._start_chunk_writers(*args, **kwargs)

    def _exit_on_error(self, error: str) -> None:
        kill_workers()  # they ignore the SIGTERM that LitData sends
        super()._exit_on_error(error)

    def _signal_handler(self, number: Any, frame: Any) -> None:
        """Exit on Ctrl-C like other commands; LitData would exit with code 0."""
        raise KeyboardInterrupt


def kill_workers() -> None:
    """Kill all writer processes, which ignore Ctrl-C."""
    for worker in multiprocessing.active_children():
        worker.kill()
