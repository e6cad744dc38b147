"""metrics.csv: every logged metric in one wide table, readable without an account or a server."""

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

    Each row is on disk when the call returns. A file that is already there is continued (resumed run).
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
        """Take over the rows of an earlier part of this run, but not a line that a kill cut short."""
        if not self.path.exists():
            self._rewrite([])
            return
        try:
            text = self.path.read_text(encoding="utf-8")
            columns, rows = parse_metrics(text)
        except (OSError, ValueError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is damaged ({reason}): mend it, or move it away.") from error
        self._columns = columns or self._columns
        self.num_rows = len(rows)
        if not text.endswith("\n"):
            self._rewrite(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics_row(metrics, step)
        new = sorted(set(row) - set(self._columns))
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
        """Drop the rows that a resumed run is going to log again: those after `step`, and the test's.

        Args:
            step: Last step to keep: the global_step of the checkpoint.
            num_rows: How many there were when it was written: where gradients are accumulated, a validation after it
                may have the same step. None keeps all of that step.
        """
        before = [(row.get("step", step), number, row) for number, row in enumerate(self.rows())]
        last = len(before) if num_rows is None else num_rows
        rows = [row for at, number, row in before if at < step or (at == step and number < last)]
        self._rewrite([row for row in rows if not any(name.startswith("test/") for name in row)])

    def rows(self) -> list[dict[str, float]]:
        """Return what is on disk, oldest first; a row has only the metrics that were logged in it."""
        return read_metrics(self.path)

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        """Replace the file in one step, so that a kill leaves either the old one or the new one."""
        text = _format([dict(zip(self._columns, self._columns, strict=True))], self._columns) + _format(
            rows, self._columns
        )
        with self._explained(), replacing(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        self.num_rows = len(rows)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): make room, then go on with "
                f"resume={self.path.parent}."
            ) from error


def metrics_row(metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
    """Return the row that every tracker records: plain ints and floats, with the step beside the epoch.

    Args:
        metrics: values by name, `epoch` among them; numpy scalars and tensors of one element are taken too.
        step: global step, counted from 0; None leaves the column out.
    """
    row = {name: int(v) if isinstance(v, numbers.Integral) else float(v) for name, v in metrics.items()}
    if step is not None:
        row["step"] = int(step)
    return row


def _format(rows: Iterable[Mapping[str, object]], columns: list[str]) -> str:
    """Return csv lines; repr of a float is the shortest text that reads back as the same float."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([cell if isinstance(cell, str) else repr(cell) for cell in cells])
    return buffer.getvalue()
