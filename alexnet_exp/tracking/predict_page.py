"""Write report.html of `predict`: what was said about each image, and which files could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.report.html import write_html
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.report_details import origin

MAX_SHOWN = 100  # images, and as many errors
GONE = "no longer there"  # a file that was read, and could not be read again for its picture
THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Answer:
    """What was said about one file.

    Args:
        path: Of the file.
        bars: Class names with probabilities, the most probable first.
        image: (H, W, 3) uint8; None if the file cannot be read any more.
    """

    path: str
    bars: list[tuple[str, float]]
    image: np.ndarray | None


def write_predictions(
    path: Path, answers: Sequence[Answer], errors: Sequence[tuple[str, str]], result: dict[str, Any]
) -> None:
    """Write the page.

    Args:
        path: The file.
        answers: The first of the images; at most 100 are shown.
        errors: Files that could not be read, each with the reason.
        result: What result.json will hold: `images`, `errors`, `checkpoint` and the command among it.
    """
    result = redact(result)  # a page is made to be handed on
    count = result["images"]
    write_html(
        path,
        "predict.html",
        title=f"{count:,} image{'' if count == 1 else 's'}",
        chips=[f"checkpoint: {result['checkpoint']}"],
        answers=answers[:MAX_SHOWN],
        num_images=count,
        errors=errors[:MAX_SHOWN],
        num_errors=len(errors),
        gone=GONE,
        thumbnail=THUMBNAIL,
        origin=origin(result),
    )
