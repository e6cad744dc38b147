"""Read what a run wrote (config.yaml, overrides.yaml, result.json, metrics.csv) and write files whole."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import yaml

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
