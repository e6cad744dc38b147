"""Write report.html of `predict`: what was said about each image, and which files could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_exp.tracking.markup import Html, join, tag
from alexnet_exp.tracking.pictures import data_uri
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.report import heading, section, write_document
from alexnet_exp.tracking.report_classes import bars
from alexnet_exp.tracking.report_details import environment, reproduce

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
    title = f"{count:,} image{'' if count == 1 else 's'}"
    problem = tag("p", f"{len(errors):,} of {count:,} could not be read.", class_="problem")
    sections = [
        heading("predictions", title, [f"checkpoint: {result['checkpoint']}"], problem if errors else None),
        section("Predictions", _predictions(answers[:MAX_SHOWN], count - len(errors))) if answers else None,
        section("Could not be read", _errors(errors)) if errors else None,
        section("Reproduce", reproduce(result)),
        section("Environment", environment(result)),
    ]
    write_document(path, title, sections, "figure_page.css")


def _predictions(answers: Sequence[Answer], count: int) -> Html:
    rows = [tag("tr", tag("td", _picture(answer)), tag("td", _said(answer))) for answer in answers]
    return join([_left_out(len(answers), count, "images"), tag("table", *rows, class_="answers")])


def _picture(answer: Answer) -> Html:
    if answer.image is None:
        return tag("div", tag("small", GONE), class_="frame")
    small = max(answer.image.shape[:2]) <= 96
    image = tag("img", src=data_uri(answer.image, THUMBNAIL), alt="", class_="pixels" if small else None)
    return tag("div", image, class_="frame")


def _said(answer: Answer) -> Html:
    return join([tag("small", answer.path), bars(answer.bars)])


def _errors(errors: Sequence[tuple[str, str]]) -> Html:
    rows = [
        tag("tr", tag("td", path, class_="name"), tag("td", why, class_="name"))
        for path, why in errors[:MAX_SHOWN]
    ]
    return join([_left_out(len(rows), len(errors), "files"), tag("table", *rows, class_="numbers")])


def _left_out(shown: int, count: int, what: str) -> Html | None:
    if shown == count:
        return None
    return tag("p", f"The first {shown} of {count:,} {what}; predictions.csv has all.")
