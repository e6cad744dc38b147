"""Statistics of a confusion matrix: counts (K, K), rows are true classes. Used by report, figures and W&B."""

from __future__ import annotations

import numpy as np


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Normalise rows to (K, K) float64; a class without images has zeros."""
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return (true, predicted, count) of the most frequent mistakes, sorted."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]  # ties in order of the labels
    pairs = [divmod(int(cell), len(wrong)) for cell in order]
    return [
        (true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]
    ]
