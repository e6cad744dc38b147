"""The outcome of an evaluation, for figures and tables; numpy only, no networks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from alexnet_exp.tracking.confusion import most_confused, row_shares


@dataclass
class Sample:
    """One stored image, uint8 (H, W, 3) or (H, W, 1), with the network's prediction and its probability."""

    image: np.ndarray
    label: int
    prediction: int
    probability: float
    index: int
    name: str


@dataclass
class ClassScore:
    """Scores of one class; None where a score is undefined (a division by zero)."""

    name: str
    support: int
    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None for a class without images and predictions."""
        if self.precision is None and self.recall is None:
            return None
        # If only one is undefined, the class has no hits, and its score is 0.
        precision, recall = self.precision or 0.0, self.recall or 0.0
        total = precision + recall
        return 2 * precision * recall / total if total else 0.0


@dataclass
class Evaluation:
    """The outcome on one split.

    Args:
        split: "test", "val" or "train".
        classes: Names of the K classes, in label order.
        confusion: (K, K) counts; rows are true classes, columns predictions.
        mistakes: Misclassified images, most confident first.
        samples: A fixed sample of predictions, right or wrong.
    """

    split: str
    classes: list[str]
    confusion: np.ndarray
    mistakes: list[Sample] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.asarray(self.confusion, dtype=np.int64)
        expected = (len(self.classes), len(self.classes))
        if self.confusion.shape != expected:
            raise ValueError(f"expected a confusion matrix of shape {expected}, not {self.confusion.shape}")

    @property
    def correct(self) -> int:
        """Number of correctly classified images."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    def row_shares(self) -> np.ndarray:
        """Return the confusion matrix normalised by row, (K, K) float64; 0 for a class without images."""
        return row_shares(self.confusion)

    def per_class(self) -> list[ClassScore]:
        """Return precision, recall and support of every class, in label order."""
        hits = np.diagonal(self.confusion)
        support = self.confusion.sum(axis=1)
        predicted = self.confusion.sum(axis=0)
        return [
            ClassScore(name, int(s), _ratio(h, p), _ratio(h, s))
            for name, h, s, p in zip(self.classes, hits, support, predicted, strict=True)
        ]

    def most_confused(self, count: int = 8) -> list[tuple[int, int, int]]:
        """Return (true, predicted, images) of the most frequent mistakes, most frequent first."""
        return most_confused(self.confusion, count)


def class_rows(scores: list[ClassScore]) -> list[dict[str, object]]:
    """Return the scores as one dictionary per class."""
    return [
        {"class": s.name, "images": s.support, "precision": s.precision, "recall": s.recall, "f1": s.f1}
        for s in scores
    ]


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None
