"""The contents of evaluation.html: confusion matrix, scores per class, sample images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_exp.report.evaluation import Evaluation
from alexnet_exp.report.html import percent
from alexnet_exp.report.pictures import (
    confusion_image,
    confusion_shades,
    encode,
    grouping,
    needs_white_text,
    to_pil,
)
from alexnet_exp.report.summary import SPLITS

MAX_MATRIX_CLASSES = 50  # in a table; with more classes the matrix is drawn as an image
MAX_NUMBERED_CLASSES = 25
MAX_HOVER_CELLS = 2000  # of the drawn matrix: each is an SVG element, and browsers slow down with more
MAX_PICTURES = 24
LOWEST = 15  # classes with the lowest recall


@dataclass(frozen=True)
class Cell:
    """A cell of the table: number of images, CSS classes, shade in 0..1, text, and tooltip."""

    count: int
    style: str
    shade: float
    text: str
    outcome: str


def template_context(evaluation: Evaluation) -> dict[str, Any]:
    """Return the variables of evaluation.html."""
    classes, scores = evaluation.classes, evaluation.per_class()
    as_table = len(classes) <= MAX_MATRIX_CLASSES
    known = [score for score in scores if score.recall is not None]  # a class without images has none
    samples = (
        ("Most confident mistakes", evaluation.mistakes),
        ("Sample of predictions", evaluation.samples),
    )
    return {
        "split": SPLITS.get(evaluation.split, evaluation.split),
        "total": evaluation.total,
        "classes": classes,
        **(_table(evaluation) if as_table else _picture(evaluation)),
        "confused": _most_confused(evaluation),
        "scores": scores,
        "lowest": [] if as_table else sorted(known, key=lambda score: score.recall or 0.0)[:LOWEST],
        "samples": [
            (title, [(s, classes[s.label], classes[s.prediction]) for s in group[:MAX_PICTURES]])
            for title, group in samples
        ],
    }


def _table(evaluation: Evaluation) -> dict[str, Any]:
    shades, shares = confusion_shades(evaluation.confusion), evaluation.row_shares()
    count = len(evaluation.classes)
    numbered = count <= MAX_NUMBERED_CLASSES
    return {
        "size": "small" if count <= 12 else "medium" if numbered else "large",
        "numbered": numbered,
        "group": 1,
        "matrix": [
            (name, [_cell(evaluation, i, j, float(shades[i, j]), float(shares[i, j])) for j in range(count)])
            for i, name in enumerate(evaluation.classes)
        ],
    }


def _cell(evaluation: Evaluation, i: int, j: int, shade: float, share: float) -> Cell:
    count = int(evaluation.confusion[i, j])
    style = ("hit" if i == j else "miss") + (" deep" if needs_white_text(shade, i == j) else "")
    text = str(count) if count < 10_000 else f"{count // 1000}k"
    return Cell(count, style, shade, text, _outcome(evaluation, i, j, share))


def _outcome(evaluation: Evaluation, i: int, j: int, share: float) -> str:
    """Return the tooltip of a cell."""
    pair = f"{evaluation.classes[i]} → {evaluation.classes[j]}"
    return f"{pair}: {evaluation.confusion[i, j]:,} ({percent(share, 1)} of the true class)"


def _picture(evaluation: Evaluation) -> dict[str, Any]:
    """Return a matrix that is too large for a table: an image, and a hover target for each of its dots."""
    drawn, group = confusion_image(evaluation.confusion), grouping(len(evaluation.classes))
    shares, counts = evaluation.row_shares(), evaluation.confusion.ravel()
    cells = np.flatnonzero(counts)
    places: dict[tuple[int, int], str] = {}
    # Largest cells first: they give a dot its tooltip, and are the ones to keep if there are too many dots.
    for flat in cells[np.argsort(-counts[cells], kind="stable")]:
        if len(places) == MAX_HOVER_CELLS:
            break
        i, j = divmod(int(flat), len(evaluation.classes))
        places.setdefault((i // group, j // group), _outcome(evaluation, i, j, float(shares[i, j])))
    return {
        "matrix": None,
        "picture": encode(to_pil(drawn), "PNG"),
        "side": len(drawn),
        "group": group,
        "places": [(*place, outcome) for place, outcome in places.items()],
    }


def _most_confused(evaluation: Evaluation) -> list[tuple[str, str, int, float]]:
    """Return true class, predicted class, images, and their share of the class."""
    classes, shares = evaluation.classes, evaluation.row_shares()
    return [
        (classes[i], classes[j], count, float(shares[i, j])) for i, j, count in evaluation.most_confused()
    ]
