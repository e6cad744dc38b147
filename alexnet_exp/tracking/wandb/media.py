"""Convert images, tables and files to W&B's types; works offline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.tracking.confusion import most_confused, row_shares

MAX_CHART_CLASSES = 100  # W&B draws at most 10,000 rows of a table
MAX_MISTAKES = 100


def image_panel(images: Sequence[tuple[Path | np.ndarray, str]]) -> list[Any]:
    """Return W&B images.

    Args:
        images: (image, caption) pairs; an image is the path of a file or a uint8 array (H, W) or (H, W, 3).
    """
    import wandb

    return [
        wandb.Image(image if isinstance(image, np.ndarray) else str(image), caption=caption)
        for image, caption in images
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a W&B table; each row has one value per column."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def confusion_panels(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return panels of a confusion matrix: a chart, or for many classes an image and the most frequent mistakes.

    Args:
        matrix: Counts (K, K); rows are true classes, columns predicted ones.
        classes: K names.

    Returns:
        Panels by name.
    """
    if len(classes) <= MAX_CHART_CLASSES:
        return {"confusion_matrix": _chart(matrix, classes)}
    picture = np.round(255 * (1 - row_shares(matrix))).astype(np.uint8)  # dark where the images are
    return {
        "confusion_matrix": image_panel([(picture, "rows: true class, columns: predicted class")]),
        "confusion_mistakes": table(
            ["Actual", "Predicted", "Images"],
            [(classes[a], classes[p], n) for a, p, n in most_confused(matrix, MAX_MISTAKES)],
        ),
    }


def model_artifact(name: str, path: Path, metadata: dict[str, Any]) -> Any:
    """Return a W&B artifact of type `model` with the file at `path` in it."""
    import wandb

    artifact = wandb.Artifact(name, type="model", metadata=metadata)
    # immutable: uploaded in place, not copied to the home directory first
    artifact.add_file(str(path), name=path.name, policy="immutable")
    return artifact


def _chart(matrix: np.ndarray, classes: Sequence[str]) -> Any:
    """Return W&B's own confusion chart, from counts: `wandb.plot.confusion_matrix` needs a row per image."""
    import wandb

    columns = ["Actual", "Predicted", "nPredictions"]
    size = len(classes)
    # All cells, zeros included, as `wandb.plot.confusion_matrix` sends them.
    cells = [(classes[a], classes[p], int(matrix[a, p])) for a in range(size) for p in range(size)]
    fields = {column: column for column in columns}
    title = {"title": "Confusion matrix"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table(columns, cells), fields, title)


def wandb_place(split: str, views: str, data: str = "") -> str:
    """Return the name under which an evaluation is logged to the W&B run of its checkpoint.

    Args:
        split: The split evaluated.
        views: Test-time views per image.
        data: Name of the data set, if it is not the run's own.
    """
    named = re.sub(r"[^\w.-]+", "_", data) + "_" if data else ""
    return f"evaluate/{named}{split}_{views}"
