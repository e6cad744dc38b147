"""Read the files of a run: config.yaml, overrides.yaml, result.json, metrics.csv."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_exp.errors import UserError, printable
from alexnet_exp.settings import flat
from alexnet_exp.tracking.metrics import lower_is_better
from alexnet_exp.tracking.run_directory import RunDirectory, is_held

Row = dict[str, float]


@dataclass
class Point:
    """One logged value, possibly NaN or infinite."""

    step: float
    epoch: float | None
    value: float


def read_metrics(path: Path) -> list[Row]:
    """Read a metrics.csv, even while the run is writing it or after it was killed in the middle of a line.

    Args:
        path: The file.

    Returns:
        One dict per row, oldest first, without empty cells. Numbers are exactly those that were logged.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a complete line is malformed.
    """
    return parse_metrics(Path(path).read_text(encoding="utf-8"))[1]


def parse_metrics(text: str) -> tuple[list[str], list[Row]]:
    """Return the columns (none if the header is truncated) and the rows of the complete lines."""
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    columns = next(lines, [])
    rows = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(columns):
            raise ValueError(f"line {number} has {len(line)} cells, but the header has {len(columns)}")
        rows.append({name: _logged(cell) for name, cell in zip(columns, line, strict=True) if cell})
    return columns, rows


def _logged(cell: str) -> float:
    try:
        # Integers stay integers, since steps and epochs are printed and compared as such.
        return int(cell)
    except ValueError:
        return float(cell)


def series(rows: list[Row], name: str) -> list[Point]:
    """Return the points of one metric, sorted by step; the last row of a step wins."""
    points = {}
    for position, row in enumerate(rows):
        if name in row:
            step = row.get("step", row.get("epoch", float(position)))
            points[step] = Point(step, row.get("epoch"), row[name])
    return [points[step] for step in sorted(points)]


def finite(points: list[Point]) -> list[Point]:
    """Return the points with finite values."""
    return [point for point in points if math.isfinite(point.value)]


_DEPTH = 4  # folder levels to search: outputs/sweeps/SWEEP/JOB, and one to spare


class Score(NamedTuple):
    """The value that runs are ranked by, and its metric."""

    value: float
    metric: str


class Run:
    """A run directory, read lazily.

    Missing files read as empty, damaged ones add a message to `problems`: one bad run must not break a table.

    Args:
        path: The directory.
        name: Display name; by default that of the directory.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, path.resolve().name if name is None else name
        self.problems: list[str] = []
        self.differs: dict[str, Any] = {}  # settings that distinguish it from the runs next to it, as typed

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of config.yaml, nested."""
        return self._read("config.yaml", RunDirectory(self.path).config) or {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings by dotted key."""
        return flat(self.settings)

    @cached_property
    def overrides(self) -> list[str]:
        return [str(each) for each in self._read("overrides.yaml", RunDirectory(self.path).overrides) or ()]

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json; empty until the run has ended."""
        return self._read("result.json", RunDirectory(self.path).result) or {}

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics.csv, oldest first."""
        return self._read("metrics.csv", lambda: read_metrics(self.path / "metrics.csv")) or []

    def _read(self, file: str, read: Callable[[], Any]) -> Any:
        try:
            if (self.path / file).exists():
                return read()
        except UserError as error:
            self.problems.append(str(error).removeprefix(f"{self.path}{os.sep}"))
        except (OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{file} cannot be read: {' '.join(str(error).split())}")
        return None

    @cached_property
    def status(self) -> str:
        """finished, failed, interrupted, running, or unfinished if it was killed."""
        if self.result:
            return str(self.result.get("status"))
        return "running" if is_held(self.path) else "unfinished"

    @property
    def epochs(self) -> int | None:
        """The number of finished epochs."""
        epochs = self.result.get("epochs")
        if epochs is None and not self.result:
            epochs = max((row["epoch"] for row in self.rows if "epoch" in row), default=None)
        return None if epochs is None else int(epochs)

    @property
    def images_per_second(self) -> float | None:
        if self.result:
            return numeric(self.result.get("images_per_second"))
        found = [row["images_per_second"] for row in self.rows if "images_per_second" in row]
        return statistics.median(found) if found else None

    @property
    def published(self) -> list[dict[str, Any]]:
        """What is published of this run's experiment, as in conf/experiment."""
        found = self.config.get("published")
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    def metric(self, name: str) -> float | None:
        """Return the best value of a metric over the epochs; None if it was never finite.

        Args:
            name: As in metrics.csv: 'val/top1'.
        """
        best = self.result.get("best") or {}
        if best.get("metric") == name:
            return numeric(best.get("value"))
        final = numeric((self.result.get("metrics") or {}).get(name))
        if name.startswith("test/") and self.result:
            return final
        values = [p.value for p in series(self.rows, name) if math.isfinite(p.value)]
        values += [] if final is None else [final]
        return (min if lower_is_better(name) else max)(values, default=None)

    def score(self, metric: str) -> Score | None:
        """Return the value of a metric; val/ stands in for test/ if the run was not tested."""
        for name in (metric, metric.replace("test/", "val/")):
            if (value := self.metric(name)) is not None:
                return Score(value, name)
        return None

    def num_images(self, metric: str) -> int | None:
        """Return how many images a metric is measured on; None if unknown: limited batches, or not recorded."""
        split = metric.partition("/")[0]
        limits = self.config.get(f"trainer.limit_{split}_batches"), self.config.get("trainer.overfit_batches")
        # 1.0 is all batches, but 1 is a single one.
        if (
            not (limits[0] is None or repr(limits[0]) == "1.0")
            or limits[1]
            or self.config.get("trainer.fast_dev_run")
        ):
            return None
        count = numeric((self.result.get("images") or {}).get(split))
        return None if count is None else int(count)


def find_runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Find runs in run directories, sweeps and folders of either.

    A run with an unreadable config.yaml is skipped with a warning.

    Args:
        folders: Paths; a run found twice counts once.

    Raises:
        UserError: For a path that does not exist or holds no training run.
    """
    found: dict[Path, Run] = {}
    for folder in (Path(os.path.expanduser(each)) for each in folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such directory.")
        runs = list(_runs(folder, _DEPTH))
        if not runs:
            raise UserError(f"{folder} holds no training run: no folder in it has the config.yaml of one.")
        for run in runs:
            found.setdefault(run.path.resolve(), run)
    _name(found)
    return list(found.values())


def _runs(folder: Path, depth: int) -> Iterator[Run]:
    if os.path.lexists(folder / "config.yaml") or not os.access(folder, os.X_OK):
        run = Run(folder)
        if not run.settings:
            file = printable(str(folder / "config.yaml"))
            print(f"warning: {file} cannot be read: its run is skipped", file=sys.stderr)
        elif "trainer" in run.settings:  # other verbs write a config.yaml, too
            yield run
        return
    if depth:
        inside: list[str] = []
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            inside = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
        # Numbered jobs of a sweep in the order of their numbers: 2 before 10.
        for name in sorted(inside, key=lambda name: (len(name), name) if name.isdigit() else (0, name)):
            yield from _runs(folder / name, depth - 1)


def _name(runs: dict[Path, Run]) -> None:
    """Name each run by its path below the common folder."""
    if len(runs) > 1:
        shared = os.path.commonpath(list(runs))
        for path, run in runs.items():
            run.name = os.path.relpath(path, shared)
    elif runs:
        (path,) = runs
        runs[path].name = path.name


def learned_nothing(record: Mapping[str, Any]) -> str | None:
    """Return the sentence about a network that is no better than guessing, or None.

    Args:
        record: A checkpoint or a result.json.
    """
    found = record.get("at_chance")
    values = (
        [numeric(found.get(key)) for key in ("steps", "loss", "guessing")]
        if isinstance(found, Mapping)
        else []
    )
    if not values or None in values:
        return None
    steps, loss, guessing = values
    return (
        f"This network has learned nothing: its loss was that of guessing for its last {steps:.0f} steps "
        f"({loss:.4g}; guessing gives {guessing:.4g})."
    )


def numeric(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
