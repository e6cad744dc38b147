"""The part of the report page about classes: confusion matrix, scores of each class, pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alexnet_exp.tracking.evaluation import ClassScore, Evaluation, Sample
from alexnet_exp.tracking.markup import Html, join, percent, tag
from alexnet_exp.tracking.pictures import (
    confusion_image,
    confusion_shades,
    data_uri,
    encode,
    grouping,
    needs_white_text,
    to_pil,
)

MAX_MATRIX_CLASSES = 50
MAX_TOLD_CELLS = 2000  # of a matrix that is a picture: as many as a page can hold
MAX_NUMBERED_CLASSES = 25
MAX_PICTURES = 24
NOTE = (
    "Rows are the true classes, columns the predictions. Blue: right, as share of the row; "
    "orange: wrong, on a scale of its own so that rare mistakes can be seen."
)
SPLITS = {"test": "test set", "val": "validation set", "train": "training set"}


def confusion(evaluation: Evaluation) -> Html:
    """Return the confusion matrix with the most frequent mistakes beside it."""
    name = SPLITS.get(evaluation.split, evaluation.split)
    if not evaluation.total:
        return tag("p", f"No image of the {name} was evaluated.")
    counts = f"{evaluation.correct:,} of {evaluation.total:,} images of the {name}"
    intro = f"{counts} were classified correctly ({percent(evaluation.correct / evaluation.total)})."
    small = len(evaluation.classes) <= MAX_MATRIX_CLASSES
    matrix = _matrix(evaluation) if small else _picture(evaluation)
    beside = tag("div", tag("h3", "Most frequent mistakes"), _most_confused(evaluation), class_="beside")
    return join([tag("p", intro), tag("div", matrix, beside, class_="confusion")])


def _matrix(evaluation: Evaluation) -> Html:
    shades, shares = confusion_shades(evaluation.confusion), evaluation.row_shares()
    classes, numbered = evaluation.classes, len(evaluation.classes) <= MAX_NUMBERED_CLASSES
    head = [tag("th", tag("span", name), scope="col", title=name) for name in classes]
    rows = [tag("tr", tag("td", tag("span", "true ↓", tag("br"), "predicted →"), class_="corner"), *head)]
    for i, name in enumerate(classes):
        cells = [
            _cell(evaluation, i, j, float(shades[i, j]), float(shares[i, j]), numbered)
            for j in range(len(classes))
        ]
        rows.append(tag("tr", tag("th", tag("span", name), scope="row", title=name), *cells))
    size = "small" if len(classes) <= 12 else "medium" if numbered else "large"
    table = tag("table", *rows, class_=f"matrix {size}")
    return tag("figure", tag("div", table, class_="scroll"), tag("figcaption", NOTE))


def _cell(evaluation: Evaluation, i: int, j: int, shade: float, share: float, numbered: bool) -> Html:
    count = int(evaluation.confusion[i, j])
    if not count:
        return tag("td")
    kind = ("hit" if i == j else "miss") + (" deep" if needs_white_text(shade, i == j) else "")
    text = "" if not numbered else str(count) if count < 10_000 else f"{count // 1000}k"
    return tag("td", text, class_=kind, style=f"--v:{shade:.3f}", title=_outcome(evaluation, i, j, share))


def _outcome(evaluation: Evaluation, i: int, j: int, share: float) -> str:
    """Return what the pointer is told about a cell."""
    pair = f"{evaluation.classes[i]} → {evaluation.classes[j]}"
    return f"{pair}: {evaluation.confusion[i, j]:,} ({percent(share, 1)} of the true class)"


def _picture(evaluation: Evaluation) -> Html:
    """Return a matrix that is too large for a table: a picture, and a place to point at over each of its cells."""
    drawn, group = confusion_image(evaluation.confusion), grouping(len(evaluation.classes))
    alt = f"Confusion matrix of {len(evaluation.classes)} classes"
    image = tag("img", src=encode(to_pil(drawn), "PNG"), alt=alt, class_="paper pixels")
    side = len(drawn)
    box = {"viewBox": f"0 0 {side} {side}", "preserveAspectRatio": "none", "aria_hidden": "true"}
    places = tag("svg", *_places(evaluation, group), **box)
    note = f" A dot stands for {group} × {group} cells, and tells the fullest of them." if group > 1 else ""
    return tag("figure", tag("div", image, places, class_="cells"), tag("figcaption", NOTE + note))


def _places(evaluation: Evaluation, group: int) -> list[Html]:
    """Return an invisible square for each dot of the picture, the fullest first, with what it tells."""
    shares, counts = evaluation.row_shares(), evaluation.confusion.ravel()
    cells = np.flatnonzero(counts)
    told: dict[tuple[int, int], str] = {}
    for flat in cells[np.argsort(-counts[cells], kind="stable")]:
        if len(told) == MAX_TOLD_CELLS:
            break
        i, j = divmod(int(flat), len(evaluation.classes))
        told.setdefault((i // group, j // group), _outcome(evaluation, i, j, float(shares[i, j])))
    return [
        tag("rect", tag("title", text), x=column, y=row, width=1, height=1)
        for (row, column), text in told.items()
    ]


def _most_confused(evaluation: Evaluation) -> Html:
    pairs, shares = evaluation.most_confused(), evaluation.row_shares()
    if not pairs:
        return tag("p", "There are none.")
    head = tag("tr", tag("th", "true → predicted"), tag("th", "images"), tag("th", "of the class"))
    rows = [
        tag(
            "tr",
            tag("td", f"{evaluation.classes[i]} → {evaluation.classes[j]}", class_="name"),
            tag("td", f"{count:,}"),
            tag("td", percent(float(shares[i, j]), 1)),
        )
        for i, j, count in pairs
    ]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="numbers")


def scores(evaluation: Evaluation) -> Html:
    """Return precision, recall and F1 of each class; of many classes the lowest recalls first."""
    found = evaluation.per_class()
    if len(found) <= MAX_MATRIX_CLASSES:
        return _scores_table(found)
    known = [score for score in found if score.recall is not None]
    lowest = sorted(known, key=lambda score: score.recall or 0.0)[:15]
    everything = tag("details", tag("summary", f"All {len(found):,} classes"), _scores_table(found))
    return join([tag("h3", "Lowest recall"), _scores_table(lowest), everything])


def _scores_table(found: list[ClassScore]) -> Html:
    names = ("class", "images", "precision", "recall", "F1")
    head = tag("tr", *[tag("th", name, scope="col") for name in names])
    return tag("table", tag("thead", head), tag("tbody", *map(_score_row, found)), class_="numbers scores")


def _score_row(score: ClassScore) -> Html:
    bar = tag("i", style=f"--v:{score.recall or 0.0:.3f}")
    return tag(
        "tr",
        tag("th", score.name, scope="row", class_="name"),
        tag("td", f"{score.support:,}"),
        tag("td", percent(score.precision, 1)),
        tag("td", percent(score.recall, 1), bar, class_="bar"),
        tag("td", percent(score.f1, 1)),
    )


def pictures(samples: list[Sample], classes: list[str]) -> Html:
    """Return images with what they show and what the network saw."""
    return tag("div", *[_card(sample, classes) for sample in samples[:MAX_PICTURES]], class_="pictures")


def _card(sample: Sample, classes: list[str]) -> Html:
    right = sample.label == sample.prediction
    true, predicted = classes[sample.label], classes[sample.prediction]
    small = max(sample.image.shape[:2]) <= 96
    image = tag(
        "img",
        src=data_uri(sample.image),
        alt=f"{true}, predicted {predicted}",
        class_="pixels" if small else None,
    )
    said = tag(
        "span", tag("b", predicted), " ", percent(sample.probability, 1), class_="right" if right else "wrong"
    )
    truth = tag("span", "✓ right" if right else f"is {true}", class_="truth")
    caption = tag("figcaption", said, truth, tag("small", sample.name, title=sample.name))
    return tag("figure", tag("div", image, class_="frame"), caption, title=f"{true} → {predicted}")


def bars(said: Sequence[tuple[str, float]], true: str | None = None) -> Html:
    """Return a bar for each class name with its probability; that of the true class, where it is known, stands out."""
    drawn = [
        tag(
            "div",
            f"{name}\N{NO-BREAK SPACE} {percent(p, 0)}",
            class_="true" if name == true else None,
            style=f"--v:{p:.3f}",
            title=f"{name}: {percent(p)}",
        )
        for name, p in said
    ]
    return tag("div", *drawn, class_="guess")
