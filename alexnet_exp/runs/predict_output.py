"""Predictions as a table on the terminal and as files."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet_exp.errors import printable
from alexnet_exp.inference import Prediction
from alexnet_exp.runs.predict_picture import MAX_PICTURES, draw_predictions, thumbnail
from alexnet_exp.tracking.environment import hardware, versions
from alexnet_exp.tracking.predict_page import MAX_SHOWN, Answer, write_predictions
from alexnet_exp.tracking.records import text_file
from alexnet_exp.tracking.run_directory import RunDirectory

MAX_ROWS = 100


@dataclass
class Row:
    """One file: what the network said, or why it could not be asked."""

    path: str
    prediction: Prediction | None = None
    error: str | None = None

    def pairs(self) -> list[tuple[str, float]]:
        """Return class names with their probabilities, the most probable first."""
        found = self.prediction
        return list(zip(found.classes, found.probabilities, strict=True)) if found else []


def print_rows(rows: list[Row], console: Console) -> None:
    """Print the first hundred rows, in as many columns as there are."""
    if not console.is_terminal:  # a file or pipe has no width to fit
        console = Console(width=200)
    table = Table("image", "prediction", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows[:MAX_ROWS]:
        said = ", ".join(f"{printable(name)} {p:.1%}" for name, p in row.pairs())
        outcome = Text(printable(row.error), style="red") if row.error else Text(said)
        table.add_row(Text(printable(row.path)), outcome)
    console.print(table, highlight=False)
    if len(rows) > MAX_ROWS:
        console.print(f"... and {len(rows) - MAX_ROWS:,} more in predictions.csv", highlight=False)
    if failed := sum(row.error is not None for row in rows):
        console.print(f"{failed} of {len(rows)} could not be read.", highlight=False)


def write_all(run: RunDirectory, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write predictions.csv, .jsonl and .png, report.html, and result.json last of all.

    Args:
        run: Where to.
        rows: One for each file.
        facts: Keys of result.json that are known already.
    """
    _write_csv(run.path / "predictions.csv", rows)
    with text_file(run.path / "predictions.jsonl") as file:
        for row in rows:
            file.write(json.dumps(_as_json(row), ensure_ascii=False) + "\n")
    good = [row for row in rows if row.prediction is not None]
    errors = [(row.path, row.error) for row in rows if row.error is not None]
    answers = [Answer(row.path, row.pairs(), thumbnail(row.path)) for row in good[:MAX_SHOWN]]
    if drawn := answers[:MAX_PICTURES]:
        draw_predictions(drawn, run.path / "predictions.png", left_out=len(good) - len(drawn))
    result = {
        "status": "finished",
        **facts,
        "images": len(rows),
        "errors": len(errors),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_predictions(run.path / "report.html", answers, errors, result)
    run.write_result(result)


def _write_csv(path: Path, rows: list[Row]) -> None:
    count = max((len(row.pairs()) for row in rows), default=0)
    header = [f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability")]
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "error", *header])
        for row in rows:
            cells = [cell for name, p in row.pairs() for cell in (name, f"{p:.6g}")]
            writer.writerow([row.path, row.error or "", *(cells or [""] * len(header))])


def _as_json(row: Row) -> dict[str, Any]:
    if row.error:
        return {"image": row.path, "error": row.error}
    return {"image": row.path, "predictions": [{"class": name, "probability": p} for name, p in row.pairs()]}
