"""From probabilities to scores: accuracy, loss, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from alexnet_exp.training.metrics import macro_scores

BINS = 15
TOP = 5


@dataclass
class Table:
    """Predictions for every image of a split.

    Args:
        labels: (N,) int64 true classes.
        top: (N, T) int64 most probable classes, best first.
        probabilities: (N, T) float64, of the top classes.
        whole: (N, K) float32, of all classes; None if not needed.
    """

    labels: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray
    whole: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: whether the top class is the true one."""
        return self.top[:, 0] == self.labels

    def confusion(self, num_classes: int) -> np.ndarray:
        """Return (K, K) counts; rows are true classes."""
        cells = np.bincount(self.labels * num_classes + self.top[:, 0], minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)

    def worst(self, count: int) -> np.ndarray:
        """Return the positions of the most confident mistakes, worst first."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")][:count]


def calibration_error(table: Table) -> float:
    """Return the expected calibration error: the image-weighted |accuracy - confidence| of 15 equal-width bins.

    Source: C. Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """
    confidence = table.probabilities[:, 0]
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bin b is (b / 15, (b + 1) / 15]
    gaps = np.bincount(bins, weights=table.correct - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(table))


def ensemble(tables: list[Table]) -> tuple[Table, dict[str, float]]:
    """Average the probabilities of several classifiers.

    Args:
        tables: Of the same images and classes, with `whole`.

    Returns:
        The ensemble's table, and its loss, top1, top5 for more than five classes, balanced accuracy and macro F1.
    """
    # Probabilities, not logits: a member with a larger scale of logits would outvote the others.
    mean = sum(np.float64(1 / len(tables)) * table.whole for table in tables if table.whole is not None)
    assert isinstance(mean, np.ndarray)
    top = np.argsort(-mean, axis=1, kind="stable")[:, :TOP]
    labels = tables[0].labels
    table = Table(labels, top, np.take_along_axis(mean, top, axis=1))
    tiny = np.finfo(np.float32).tiny  # avoids log(0) where a probability underflowed
    loss = -np.log(np.maximum(mean[np.arange(len(mean)), labels], tiny)).mean()
    metrics = {"loss": float(loss), "top1": float(table.correct.mean())}
    if mean.shape[1] > TOP:
        metrics["top5"] = float((top == labels[:, None]).any(axis=1).mean())
    return table, metrics | macro_scores(torch.from_numpy(table.confusion(mean.shape[1])))
