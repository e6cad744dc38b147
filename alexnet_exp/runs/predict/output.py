"""Predictions as a table on the terminal and as files."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet_exp.data.decode import decode
from alexnet_exp.errors import UserError, printable
from alexnet_exp.files import replacing, text_file
from alexnet_exp.inference import Prediction
from alexnet_exp.memory import free_memory
from alexnet_exp.report.details import origin
from alexnet_exp.report.figures import INK, MUTED, TRAIN, page, plain, show
from alexnet_exp.report.html import write_html
from alexnet_exp.report.pictures import to_pil
from alexnet_exp.tracking.environment import provenance
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_directory import RunDirectory

MAX_ROWS = 100


@dataclass
class Row:
    """The prediction for one file, or the reason why it could not be read."""

    path: str
    prediction: Prediction | None = None
    error: str | None = None

    def pairs(self) -> list[tuple[str, float]]:
        """Return (class name, probability), the most probable first."""
        found = self.prediction
        return list(zip(found.classes, found.probabilities, strict=True)) if found else []


class Embeddings:
    """The embeddings of all images that can be read, in memory that is allocated once.

    Args:
        layer: Its name, for the message.
        count: Number of images, readable or not.
    """

    def __init__(self, layer: str, count: int) -> None:
        self._layer, self._count, self._filled = layer, count, 0
        self._table: np.ndarray | None = None  # from the first batch on, which tells D

    @property
    def array(self) -> np.ndarray:
        """All so far, (N, D) float32."""
        return np.empty((0, 0), np.float32) if self._table is None else self._table[: self._filled]

    def add(self, batch: np.ndarray) -> None:
        """Add those of a batch, (n, D).

        Raises:
            UserError: If the embeddings of all images exceed free memory.
        """
        if self._table is None:
            self._table = self._allocate(batch.shape[1])
        self._table[self._filled : self._filled + len(batch)] = batch
        self._filled += len(batch)

    def _allocate(self, width: int) -> np.ndarray:
        needed, free = 4 * self._count * width, free_memory()
        if needed > free:
            raise UserError(
                f"embed={self._layer} needs {needed / 1e9:.1f} GB of memory ({self._count:,} images of {width:,} "
                f"values), but {free / 1e9:.1f} GB are free: choose another layer, or predict fewer images at a time."
            )
        return np.empty((self._count, width), np.float32)


def print_rows(rows: list[Row], console: Console) -> None:
    """Print the first hundred rows, fitted to the width of the terminal."""
    if not console.is_terminal:  # files and pipes have no width
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


def remark(seen: int, total: int) -> str:
    """Return the sentence on images that the network was trained on.

    Args:
        seen: Number of these, 1 or more.
        total: Number of images.
    """
    what = "this image" if total == 1 else f"{seen:,} of these {total:,} images"
    return f"The network was trained on {what}: how it does there says little about new ones."


def write_all(run: RunDirectory, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write predictions.csv, .jsonl and .png, report.html, and result.json last.

    Args:
        run: Output directory.
        rows: One per file.
        facts: Entries of result.json.
    """
    _write_csv(run.path / "predictions.csv", rows)
    with text_file(run.path / "predictions.jsonl") as file:
        for row in rows:
            found = [{"class": name, "probability": p} for name, p in row.pairs()]
            entry = {"error": row.error} if row.error else {"predictions": found}
            file.write(json.dumps({"image": row.path, **entry}, ensure_ascii=False) + "\n")
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
        **provenance(),
    }
    write_predictions(run.path / "report.html", answers, errors, result)
    run.write_result(result)


def write_embeddings(path: Path, embeddings: np.ndarray, rows: list[Row], classes: Sequence[str]) -> None:
    """Write the embeddings of all images that could be read.

    Args:
        path: NPZ to write: embeddings (N, D) float32, paths (N,), labels (N,) int64 (the predicted classes), and
            classes (K,), the names that labels index.
        embeddings: Of the rows without an error, in their order.
        rows: One per file.
        classes: All K class names.
    """
    found = [(row.path, row.prediction.labels[0]) for row in rows if row.prediction is not None]
    if not found:
        return
    paths, labels = zip(*found, strict=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            embeddings=embeddings,
            paths=np.array(paths),
            labels=np.array(labels, dtype=np.int64),
            classes=np.array(classes),
        )


def _write_csv(path: Path, rows: list[Row]) -> None:
    count = max((len(row.pairs()) for row in rows), default=0)
    header = [f"{what}_{i}" for i in range(1, count + 1) for what in ("class", "probability")]
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "error", *header])
        for row in rows:
            cells = [cell for name, p in row.pairs() for cell in (name, f"{p:.6g}")]
            writer.writerow([row.path, row.error or "", *(cells or [""] * len(header))])


MAX_PICTURES, COLUMNS, MAX_BARS = 24, 6, 5
SIDE = 256  # maximum side of a thumbnail in pixels


def draw_predictions(answers: Sequence[Answer], path: Path, left_out: int = 0) -> None:
    """Draw images with their most probable classes.

    Args:
        answers: At most 24.
        path: PNG to write.
        left_out: Number of images that are not drawn, for the caption.
    """
    columns = min(COLUMNS, len(answers))
    lines = math.ceil(len(answers) / columns)
    bars = min(MAX_BARS, max(len(answer.bars) for answer in answers))
    with page(path, max(2.1 * columns, 4.2), (2.3 + 0.2 * bars) * lines + 0.3) as figure:
        grid = figure.add_gridspec(lines, columns)
        for i, answer in enumerate(answers):
            _draw(figure, grid[i // columns, i % columns], answer, bars)
        if left_out:
            text = f"The first {len(answers)} of {len(answers) + left_out:,} images"
            figure.supxlabel(text, fontsize=9, color=MUTED)


def _draw(figure: Figure, place: SubplotSpec, answer: Answer, bars: int) -> None:
    inner = place.subgridspec(2, 1, height_ratios=[1.7, 0.2 * bars], hspace=0.02)
    above, below = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    if answer.image is None:
        above.text(0.5, 0.5, GONE, ha="center", va="center", fontsize=8, color=MUTED)
        above.axis("off")
    else:
        show(above, answer.image)
    above.set_title(plain(os.path.basename(answer.path), 24), fontsize=8, color=INK, parse_math=False)
    for height, (name, p) in enumerate(answer.bars[:bars]):
        below.barh(height, p, height=0.86, color=TRAIN, alpha=0.35)
        text = f"{plain(name, 22)}  {p:.0%}"
        below.text(0.02, height, text, va="center", fontsize=8, color=INK, parse_math=False)
    below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5), xticks=[], yticks=[])
    for side in below.spines.values():
        side.set_visible(False)


def thumbnail(path: str) -> np.ndarray | None:
    """Return the uncropped image, (H, W, 3) uint8, at most 256 pixels a side; None if the file is gone by now."""
    try:
        picture = to_pil(decode(path, 3, enough=SIDE).permute(1, 2, 0).numpy())
    except UserError:
        return None
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


MAX_SHOWN = 100  # images, and as many errors
GONE = "no longer available"  # a file that could not be read a second time, for its thumbnail
THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Answer:
    """An image with its prediction, as drawn.

    Args:
        path: The file.
        bars: (class name, probability), the most probable first.
        image: (H, W, 3) uint8; None if the file can no longer be read.
    """

    path: str
    bars: list[tuple[str, float]]
    image: np.ndarray | None


def write_predictions(
    path: Path, answers: Sequence[Answer], errors: Sequence[tuple[str, str]], result: dict[str, Any]
) -> None:
    """Write report.html.

    Args:
        path: File to write.
        answers: The first images; at most 100 are shown.
        errors: (file, reason) of files that could not be read.
        result: Content of result.json.
    """
    result = redact(result)  # reports are shared, and must not contain secrets
    count = result["images"]
    write_html(
        path,
        "predict.html",
        title=f"{count:,} image{'' if count == 1 else 's'}",
        chips=[f"checkpoint: {result['checkpoint']}"],
        answers=answers[:MAX_SHOWN],
        num_images=count,
        remark=remark(seen, count - len(errors)) if (seen := result.get("training_images")) else None,
        errors=errors[:MAX_SHOWN],
        num_errors=len(errors),
        gone=GONE,
        thumbnail=THUMBNAIL,
        origin=origin(result),
    )
