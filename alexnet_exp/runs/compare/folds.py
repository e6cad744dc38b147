"""Out-of-fold scores: every image is scored by the one run that did not train on it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_exp.report.evaluation import ClassScore, Evaluation, class_rows
from alexnet_exp.tracking.run_reader import Run

PREDICTIONS = "predictions.csv"  # written by a run with data.folds, for its held-out fold


@dataclass
class OutOfFold:
    """Pooled predictions of the folds of one configuration and seed.

    Args:
        seed: Of the runs.
        folds: Number of folds.
        missing: Folds without predictions: not finished, or run with test=false.
        repeated: Images predicted by several folds, whose runs were split differently.
        evaluation: Confusion matrix over all images.
    """

    seed: Any
    folds: int
    missing: list[int]
    repeated: int
    evaluation: Evaluation

    @property
    def accuracy(self) -> float:
        return self.evaluation.correct / self.evaluation.total

    @property
    def scores(self) -> list[ClassScore]:
        return self.evaluation.per_class()

    @property
    def text(self) -> str:
        """One line for the terminal."""
        recall = np.mean([score.recall for score in self.scores if score.recall is not None])
        text = (
            f"Out of fold, seed={self.seed}: {100 * self.accuracy:.2f} % of {self.evaluation.total:,} images"
        )
        text += f", balanced accuracy {100 * recall:.2f} %"
        if self.missing:
            text += f"; without fold {', '.join(map(str, self.missing))} of {self.folds}"
        if self.repeated:
            text += f"; {self.repeated:,} images are in several folds"
        return text + "."

    def record(self) -> dict[str, Any]:
        """Return plain values, for json."""
        return {
            "seed": self.seed, "folds": self.folds, "missing": self.missing, "images": self.evaluation.total,
            "accuracy": self.accuracy, "per_class": class_rows(self.scores),
        }  # fmt: skip


def out_of_fold(runs: Sequence[Run]) -> list[OutOfFold]:
    """Pool the predictions of runs of one configuration, per seed; empty if no run has folds and predictions."""
    found = []
    for seed in dict.fromkeys(str(run.seed) for run in runs):
        same = [run for run in runs if str(run.seed) == seed and run.config.get("data.folds")]
        # Several finished runs of one fold repeat each other: the last one counts.
        last = {int(run.config["data.fold"]): run for run in same if run.status == "finished"}
        rows = {fold: lines for fold, run in last.items() if (lines := _predictions(run))}
        if not rows:
            continue
        folds = int(same[0].config["data.folds"])
        everything = [row for fold in sorted(rows) for row in rows[fold]]
        names = {name for row in everything for name in row[1:]}
        classes = [str(c) for c in next(iter(last.values())).result.get("classes") or []]
        # Names that result.json lacks come last, so that no prediction is dropped.
        classes += sorted(names - set(classes))
        numbers = {name: i for i, name in enumerate(classes)}
        confusion: np.ndarray = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for _, label, prediction in everything:
            confusion[numbers[label], numbers[prediction]] += 1
        repeated = len(everything) - len({row[0] for row in everything})
        missing = [fold for fold in range(folds) if fold not in rows]
        found.append(OutOfFold(same[0].seed, folds, missing, repeated, Evaluation("val", classes, confusion)))
    return found


def _predictions(run: Run) -> list[tuple[str, str, str]]:
    """Return image, label and prediction per line; empty if the file is missing or damaged."""
    try:
        with (run.path / PREDICTIONS).open(newline="", encoding="utf-8") as file:
            return [(row["image"], row["label"], row["class_1"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error):
        return []
