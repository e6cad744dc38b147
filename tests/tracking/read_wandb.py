"""Read a .wandb file, which is all that an offline W&B run leaves.

The file is a log in LevelDB's format: 7 bytes of header, then blocks of 32 KiB with fragments of records;
each fragment has 7 bytes of header (checksum, length, kind). A record is a protocol buffer that wandb ships.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_exp.tracking.wandb.logger import WandbTracker

BLOCK_BYTES = 32 * 1024
HEADER_BYTES = 7
WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4  # kinds of fragments


@dataclass
class WandbRun:
    """The content of one .wandb file; `exit_code` is None for a run that was killed."""

    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    resumed: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def metric_rows(self) -> list[dict[str, float]]:
        """Return the history as logged, without W&B's own keys and without images and tables, which have no step."""
        rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in self.history]
        return [row for row in rows if "step" in row]


def read_wandb(path: Path) -> WandbRun:
    """Read the .wandb file `path`, or the only one in the folder `path`."""
    if path.is_dir():
        (path,) = path.glob("run-*.wandb")
    run = WandbRun()
    for record in _records(path.read_bytes()):
        _take(run, record)
    return run


def finished(logger: WandbTracker, exit_code: int = 0) -> WandbRun:
    """End the run of `logger` and return what it left."""
    logger.finish(exit_code)
    return read_finished(folder(logger))


def read_finished(path: Path, seconds: float = 10.0) -> WandbRun:
    """Read a run that this process has ended: its last records arrive shortly after `finish` returns."""
    last_moment = time.monotonic() + seconds
    while (run := read_wandb(path)).exit_code is None:
        assert time.monotonic() < last_moment, f"{path} has no end"
        time.sleep(0.01)
    return run


def folder(logger: WandbTracker) -> Path:
    """Return the folder of the run of `logger`, which must have one."""
    assert logger.run_dir_sync is not None
    return logger.run_dir_sync


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    whole = b""
    for kind, fragment in _fragments(data):
        whole = fragment if kind in (WHOLE, FIRST) else whole + fragment
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(whole)


def _fragments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (kind, bytes) up to the end, or to where a kill cut the file short."""
    assert b":W&B".startswith(data[:4]), "not a .wandb file"
    start = HEADER_BYTES
    while start + HEADER_BYTES <= len(data):
        room = BLOCK_BYTES - start % BLOCK_BYTES
        _checksum, length, kind = struct.unpack_from("<IHB", data, start)
        if room < HEADER_BYTES or kind == 0:  # padding up to the next block
            start += room
            continue
        start += HEADER_BYTES
        if start + length > len(data):
            return
        yield kind, data[start : start + length]
        start += length


def _take(run: WandbRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        about = record.run
        run.run_id, run.project, run.name = about.run_id, about.project, about.display_name
        run.group, run.notes, run.tags = about.run_group, about.notes, list(about.tags)
        run.resumed = about.resume
        run.config |= _items(about.config.update)
    elif kind == "config":
        run.config |= _items(record.config.update)
    elif kind == "history":
        run.history.append(_items(record.history.item))
    elif kind == "summary":
        run.summary |= _items(record.summary.update)
    elif kind == "metric":
        run.x_axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "files":
        run.files += [file.path for file in record.files.files]
    elif kind == "artifact":
        run.artifacts += [entry.path for entry in record.artifact.manifest.contents]
    elif kind == "request" and record.request.HasField("log_artifact"):
        run.artifacts += [entry.path for entry in record.request.log_artifact.artifact.manifest.contents]
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    """Return the values by name; images and tables are one item per field, with two names each."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return values
