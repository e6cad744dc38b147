"""metrics.csv: all logged metrics in one wide table."""

from __future__ import annotations

import contextlib
import csv
import io
import numbers
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alexnet_exp.errors import UserError
from alexnet_exp.files import replacing
from alexnet_exp.tracking.run_reader import parse_metrics, read_metrics

FILE_NAME = "metrics.csv"
KEYS = ("epoch", "step")  # the two columns that come first


class MetricsCSV(Logger):
    """Lightning logger that appends one row per `log_metrics` call to `run_dir`/metrics.csv.

    Each row is on disk when the call returns. A resumed run appends to its file.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / FILE_NAME
        self._columns: list[str] = list(KEYS)
        self.num_rows = 0
        self._open()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def _open(self) -> None:
        """Load the rows of a resumed run, minus a last line that a kill truncated."""
        if not self.path.exists():
            self._rewrite([])
            return
        try:
            text = self.path.read_text(encoding="utf-8")
            columns, rows = parse_metrics(text)
        except (OSError, ValueError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is damaged ({reason}): fix it, or move it away.") from error
        # An empty file has no header.
        self._columns = columns or self._columns
        self.num_rows = len(rows)
        # Rewrite the file, or the next row would be appended to the truncated line.
        if not text.endswith("\n"):
            self._rewrite(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics_row(metrics, step)
        new = sorted(set(row) - set(self._columns))
        # All rows share one header: a metric logged for the first time rewrites the file, which is rare.
        if new:
            rows = self.rows()
            self._columns = [*KEYS, *sorted({*self._columns, *new} - set(KEYS))]
            self._rewrite([*rows, row])
            return
        with self._explained(), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_format([row], self._columns))
        self.num_rows += 1

    @rank_zero_only
    def truncate(self, step: int, num_rows: int | None = None) -> None:
        """Drop the rows that a resumed run will log again: those after `step`, and test results.

        Args:
            step: Last step to keep: the global_step of the checkpoint.
            num_rows: Number of rows when the checkpoint was written: with gradient accumulation, a later validation can
                have the same step. None keeps all rows of that step.
        """
        # A row without a step counts as one of `step`.
        before = [(row.get("step", step), number, row) for number, row in enumerate(self.rows())]
        last = len(before) if num_rows is None else num_rows
        rows = [row for at, number, row in before if at < step or (at == step and number < last)]
        self._rewrite([row for row in rows if not any(name.startswith("test/") for name in row)])

    def rows(self) -> list[dict[str, float]]:
        """Return the rows on disk, oldest first, each with the metrics that were logged in it."""
        return read_metrics(self.path)

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        """Replace the file atomically: a kill leaves either the old or the new one."""
        header = dict(zip(self._columns, self._columns, strict=True))
        text = _format([header, *rows], self._columns)
        with self._explained(), replacing(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        self.num_rows = len(rows)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): free disk space, then resume with "
                f"resume={self.path.parent}."
            ) from error


def metrics_row(metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
    """Return the row that every logger records: plain ints and floats, with epoch and step.

    Args:
        metrics: Values by name, including `epoch`; numpy scalars and one-element tensors are converted.
        step: Global step, counted from 0; None omits the column.
    """
    row = {name: int(v) if isinstance(v, numbers.Integral) else float(v) for name, v in metrics.items()}
    if step is not None:
        row["step"] = int(step)
    return row


def _format(rows: Iterable[Mapping[str, object]], columns: list[str]) -> str:
    """Return CSV lines, with floats as repr: the shortest text that parses to the same float."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([cell if isinstance(cell, str) else repr(cell) for cell in cells])
    return buffer.getvalue()
