"""Read what a run wrote (config.yaml, overrides.yaml, result.json, metrics.csv) and write files whole."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

from alexnet_exp.errors import UserError, printable
from alexnet_exp.tracking.run_directory import is_held

Row = dict[str, float]


@dataclass
class Point:
    """Hold one logged value; `value` may be NaN or infinite."""

    step: float
    epoch: float | None
    value: float


@dataclass
class Records:
    """Hold everything a run directory says about its run; what is missing is empty."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_rows(path: Path) -> list[Row]:
    """Read metrics.csv: one dict per row with the cells that hold a number.

    A run that was killed may have left half a line behind, so a cell that is no number counts as empty.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [_numbers(row) for row in csv.DictReader(file)]


def _numbers(row: Mapping[str | None, Any]) -> Row:
    numbers = {}
    for name, cell in row.items():
        try:
            numbers[str(name)] = float(cell)
        except (TypeError, ValueError):
            continue
    return numbers


def series(rows: list[Row], name: str) -> list[Point]:
    """Return the points of one metric in order of steps; of several rows of one step the last counts."""
    points = {}
    for position, row in enumerate(rows):
        if name in row:
            step = row.get("step", row.get("epoch", float(position)))
            points[step] = Point(step, row.get("epoch"), row[name])
    return [points[step] for step in sorted(points)]


def finite(points: list[Point]) -> list[Point]:
    """Return the points whose value is a finite number."""
    return [point for point in points if math.isfinite(point.value)]


def read_records(run_dir: Path) -> Records:
    """Read the files of a run directory; an unreadable one becomes a sentence in `problems`."""
    records = Records(name=run_dir.resolve().name)
    records.config = _read(run_dir / "config.yaml", _load_yaml, dict, records.problems) or {}
    overrides = _read(run_dir / "overrides.yaml", _load_yaml, list, records.problems) or []
    records.overrides = [str(override) for override in overrides]
    records.result = _read(run_dir / "result.json", _load_json, dict, records.problems) or {}
    records.rows = _read(run_dir / "metrics.csv", read_rows, list, records.problems) or []
    return records


def _read(path: Path, load: Callable[[Path], Any], expected: type, problems: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        content = load(path)
    except (OSError, ValueError, csv.Error, yaml.YAMLError) as error:
        problems.append(f"{path.name} could not be read: {' '.join(str(error).split())}")
        return None
    if content is not None and not isinstance(content, expected):
        problems.append(f"{path.name} should hold a {expected.__name__}, not a {type(content).__name__}.")
        return None
    return content


def _load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file that takes its place when all is written; bytes of a name that are no text are escaped."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast where libyaml is there
_DEPTH = 4  # folders below the one named: outputs/sweeps/SWEEP/JOB, and one to spare
_LOWER_IS_BETTER = ("loss", "error", "seconds")


class Score(NamedTuple):
    """The figure a run is judged by, and of which metric it is."""

    value: float
    metric: str


@dataclass
class Run:
    """One run directory.

    Args:
        path: The directory.
        name: What tells it from the others.
        config: Settings of config.yaml by dotted key.
        differs: Those settings that tell it from the runs it is compared with, as a user types them.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    differs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def result(self) -> dict[str, Any]:
        """What result.json holds; empty where there is none or it cannot be read."""
        content = _load(self.path / "result.json", json.loads)
        return content if isinstance(content, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        content = _load(self.path / "overrides.yaml", lambda text: yaml.load(text, _LOADER))
        return [str(override) for override in content] if isinstance(content, list) else []

    @cached_property
    def rows(self) -> list[Row]:
        try:
            return read_rows(self.path / "metrics.csv")
        except (OSError, ValueError, csv.Error):  # not there, or damaged: one run does not cost the others
            return []

    @cached_property
    def status(self) -> str:
        """finished, failed, interrupted; running, or unfinished where it was killed."""
        if self.result:
            return str(self.result.get("status"))
        return "running" if is_held(self.path) else "unfinished"

    @property
    def epochs(self) -> int | None:
        """Finished epochs."""
        told = self.result.get("epochs")
        if told is None and not self.result:
            told = max((row["epoch"] for row in self.rows if "epoch" in row), default=None)
        return None if told is None else int(told)

    @property
    def images_per_second(self) -> float | None:
        if self.result:
            return _number(self.result.get("images_per_second"))
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
        """Return the best value of a metric over the epochs; None if it was never a number.

        Args:
            name: As in metrics.csv: 'val/top1'.
        """
        best = self.result.get("best") or {}
        if best.get("metric") == name:
            return _number(best.get("value"))
        told = _number((self.result.get("metrics") or {}).get(name))
        if name.startswith("test/") and self.result:
            return told
        values = [p.value for p in series(self.rows, name) if math.isfinite(p.value)]
        values += [] if told is None else [told]
        return (min if lower_is_better(name) else max)(values, default=None)

    def score(self, metric: str) -> Score | None:
        """Return the metric, or that of the validation images for a run that has none of the test's."""
        for name in (metric, metric.replace("test/", "val/")):
            if (value := self.metric(name)) is not None:
                return Score(value, name)
        return None


def lower_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2].endswith(_LOWER_IS_BETTER)


def find_runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Read the runs that some paths name: run directories, sweeps, folders of either.

    A run whose config.yaml cannot be read is left out with a warning.

    Args:
        folders: Paths; a run found twice counts once.

    Raises:
        UserError: For a path that is not there, or in which there is no training run.
    """
    found: dict[Path, Run] = {}
    for folder in (Path(os.path.expanduser(each)) for each in folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such directory.")
        runs = [Run(path, path.name, config) for path, config in _configs(folder, _DEPTH)]
        if not runs:
            raise UserError(f"{folder} holds no training run: none of its folders has a config.yaml of one.")
        for run in runs:
            found.setdefault(run.path.resolve(), run)
    _name(found)
    return list(found.values())


def _configs(folder: Path, depth: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    if os.path.lexists(folder / "config.yaml") or not os.access(folder, os.X_OK):
        config = _load(folder / "config.yaml", lambda text: yaml.load(text, _LOADER))
        if not isinstance(config, dict):
            unread = printable(str(folder / "config.yaml"))
            print(f"warning: {unread} cannot be read: its run is left out.", file=sys.stderr)
        elif "trainer" in config:  # other verbs keep their settings too
            yield folder, dict(leaves(config))
        return
    if depth:
        inside: list[str] = []
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            inside = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
        for name in sorted(inside, key=lambda name: (len(name), name) if name.isdigit() else (0, name)):
            yield from _configs(folder / name, depth - 1)


def _name(runs: dict[Path, Run]) -> None:
    """Name each run by what of its path the others do not share."""
    if len(runs) > 1:
        shared = os.path.commonpath(list(runs))
        for path, run in runs.items():
            run.name = os.path.relpath(path, shared)
    elif runs:
        (path,) = runs
        runs[path].name = path.name


def leaves(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a nest of settings by its dotted key; an empty group is one too."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load(path: Path, parse: Any) -> Any:
    """Return what a file holds; None where it is missing or broken: one bad run must not cost the table."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
